"""Read what TensorRT made of a network from the layer list that it logs.

TensorRT and TensorRT for RTX write one line for each executed kernel, under ``Layers:``, when the profiling
verbosity is detailed. This is the only report that a build without a GPU gives.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["LoggedLayer", "describe_layers", "dtype_name", "parse_layers"]

_HEAD = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+)")
# The lists inside a tensor end in "]" as well, but only a list of tensors ends in "}]".
_SECTION = re.compile(r"(Inputs|Outputs): \[ ?(\{.*?\}) ?\]")
_TENSOR = re.compile(r"\{ .*?Datatype: ([^},]*)")
_METADATA = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1e|\x1f|\[|$|,)")
# A name holds a type as a word: "Float", "Int8 NC/32HW32", "Thirty-two wide ... Int8 format".
_DTYPES = {
    "int8": "int8",
    "fp8": "float8",
    "half": "float16",
    "fp16": "float16",
    "float": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
_DIMENSIONS = re.compile(r"Dimensions: \[([\d, ]*)\]")
_SIZES = {
    "int8": 1,
    "float8": 1,
    "bool": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "int32": 4,
    "int64": 8,
}
_CONVOLUTION = re.compile(r"conv|correlation", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|matmul|matrix", re.IGNORECASE)
# A convolution that takes its activation along.
_FUSED_PRODUCT = re.compile(r"__myl_\w*(?:Corr|Gemm|Dot|MatM)")
# A generated kernel is named after its operations; these only move data.
_MOVES_ONLY = re.compile(r"__myl_(?:Move|Tran|Resh|Conc|Slic|Cast)+_")


@dataclasses.dataclass(frozen=True)
class LoggedLayer:
    """One executed kernel.

    Attributes:
        name: TensorRT's name.
        kind: TensorRT's ``LayerType``.
        inputs: Element types of its inputs, in NumPy spelling.
        outputs: Element types of its outputs.
        nodes: Names of the ONNX nodes that it computes.
        bytes_moved: Size of its inputs and outputs, constants left out.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    bytes_moved: int = 0

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution or a matrix product, fused or not."""
        fused = bool(_FUSED_PRODUCT.match(self.name)) and self.kind != "kgen"
        return self.is_convolution or fused or bool(_PRODUCT.search(self.kind))

    @property
    def is_int8(self) -> bool:
        """Whether it reads or writes INT8 (or FP8)."""
        return bool({"int8", "float8"} & {*self.inputs, *self.outputs})

    @property
    def is_float32(self) -> bool:
        """Whether it computes in float32 alone: float32 comes in and goes out, and nothing shorter does."""
        types = {*self.inputs, *self.outputs}
        shorter = {"int8", "float8", "float16", "bfloat16"} & types
        return "float32" in self.outputs and "float32" in self.inputs and not shorter

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, fused or not."""
        return bool(_CONVOLUTION.search(self.kind))

    @property
    def is_reformat(self) -> bool:
        """Whether it only moves data or changes its layout or type."""
        return self.kind.lower().startswith("reformat") or bool(_MOVES_ONLY.match(self.name))


def parse_layers(messages: Iterable[str]) -> tuple[LoggedLayer, ...]:
    """Return the kernels that the log lists, in order; empty if it lists none."""
    layers = []
    for message in messages:
        # Not splitlines(): it also splits at the separators that TensorRT puts between node names.
        for line in message.split("\n"):
            if head := _HEAD.match(line):
                sections = dict(_SECTION.findall(line))
                layers.append(
                    LoggedLayer(
                        name=head["name"],
                        kind=head["kind"],
                        inputs=_dtypes(sections.get("Inputs", "")),
                        outputs=_dtypes(sections.get("Outputs", "")),
                        nodes=tuple(_METADATA.findall(line)),
                        bytes_moved=sum(map(_size_bytes, sections.values())),
                    )
                )
    return tuple(layers)


def describe_layers(layers: Sequence[LoggedLayer]) -> dict[str, Any]:
    """Return counts for an engine's details; empty if there are no layers to count."""
    if not layers:
        return {}
    convolutions = [layer for layer in layers if layer.is_convolution]
    int8 = sum(layer.inputs[:1] == ("int8",) for layer in convolutions)
    floating = [layer for layer in layers if not layer.is_int8]
    return {
        "int8_convolutions": int8,
        "float_convolutions": len(convolutions) - int8,
        "int8_convolution_share": int8 / len(convolutions) if convolutions else None,
        # An INT8 convolution that writes float leaves its quantization to another kernel.
        "int8_convolutions_writing_int8": sum(
            layer.inputs[:1] == ("int8",) and set(layer.outputs) == {"int8"} for layer in convolutions
        ),
        "kernels": len(layers),
        "reformats": sum(layer.is_reformat for layer in layers),
        "float_kernels": len(floating),
        "float_kernel_names": [layer.name for layer in floating[:32]],
        "operators": dict(sorted(Counter(layer.kind for layer in layers).items())),
    }


def dtype_name(described: str) -> str:
    """Return the NumPy spelling of the element type in TensorRT's words, or the words."""
    for word in re.findall(r"[A-Za-z0-9]+", described):
        if name := _DTYPES.get(word.lower()):
            return name
    return described.strip()


def _size_bytes(section: str) -> int:
    total = 0
    for tensor in section.split("}"):
        dimensions, described = _DIMENSIONS.search(tensor), _TENSOR.search(tensor + "}")
        if dimensions and described:
            sizes = [int(size) for size in dimensions[1].split(",") if size.strip()]
            total += math.prod(sizes) * _SIZES.get(dtype_name(described[1]), 4)
    return total


def _dtypes(section: str) -> tuple[str, ...]:
    return tuple(dtype_name(described) for described in _TENSOR.findall(section))
