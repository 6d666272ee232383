"""What a kit's ``model/`` folder says about itself: plain values, no framework.

``model.json`` travels with the model, so that a program in any language finds there what it must know:
tensor names, preprocessing, class names, thresholds, and a hash of every file.
``python -m edgeattn.kit.spec`` prints its JSON schema, which is kept in ``deploy/model.schema.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeattn.data.spec import Preprocess

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "WEB_VARIANT",
    "KitFile",
    "KitModel",
    "KitTensor",
    "ModelFile",
    "NamedFile",
    "Reference",
    "ReferenceImage",
    "Thresholds",
    "model_schema",
]

SCHEMA_VERSION = 1
MANIFEST = "model.json"
WEB_VARIANT = "web"
"""The model as a browser opens it fastest, among a kit's variants."""

_FROZEN = ConfigDict(extra="forbid", frozen=True)

# Starts no part with a dot, so neither ".." nor a hidden file can be named; no drive, no backslash.
_RELATIVE_PATH = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}$"

RelativePath = Annotated[
    str,
    Field(
        pattern=_RELATIVE_PATH, max_length=200, description="Relative to model.json, with forward slashes."
    ),
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=1 << 31)]


class KitFile(BaseModel):
    """Hash and size of a file, checked before it is used."""

    model_config = _FROZEN

    sha256: Sha256
    size_bytes: Size


class NamedFile(KitFile):
    """A file of the folder."""

    file: RelativePath


class KitTensor(BaseModel):
    """A float32 tensor of fixed shape that goes in or comes out."""

    model_config = _FROZEN

    name: Annotated[str, Field(min_length=1, max_length=200)]
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...], Field(min_length=2, max_length=4)]


class ModelFile(NamedFile):
    """The INT8 model: a QDQ ONNX graph, lowered for ONNX Runtime."""

    profile: Annotated[
        Literal["u8", "s8"],
        Field(description="u8: for CPUs and WebAssembly. s8: symmetric signed, for TensorRT."),
    ]
    opset: Annotated[int, Field(ge=13, le=100)]
    input: Annotated[KitTensor, Field(description="Shape [1, 3, S, S]: normalized RGB.")]
    output: Annotated[KitTensor, Field(description="Shape [1, K]: one logit for each class.")]


class Thresholds(BaseModel):
    """When an answer is worth showing."""

    model_config = _FROZEN

    min_confidence: Annotated[
        float,
        Field(ge=0, le=1, description="Below this softmax probability of the first class, say: not sure."),
    ] = 0.5


class KitModel(BaseModel):
    """``model.json``: the model, its preprocessing and classes, and every file beside it."""

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    description: Annotated[str, Field(max_length=2000)] = ""
    model: ModelFile
    preprocess: Preprocess
    classes: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=200)], ...],
        Field(min_length=2, max_length=100_000, description="Name of each class index."),
    ]
    thresholds: Thresholds = Thresholds()
    reference: Annotated[NamedFile, Field(description="Images with their expected outputs: reference.json.")]
    variants: Annotated[
        dict[Annotated[str, Field(pattern="^[a-z0-9-]{1,40}$")], NamedFile],
        Field(description="The same model in another runtime's fastest spelling, by the runtime's name."),
    ] = {}
    files: Annotated[
        dict[RelativePath, KitFile], Field(description="Every other file in the folder, by its path.")
    ] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> KitModel:
        size, expected = self.preprocess.size, (1, 3, self.preprocess.size, self.preprocess.size)
        if self.model.input.shape != expected:
            raise ValueError(
                f"preprocess makes {size}x{size} pixels, but the model's input is {self.model.input.shape}"
            )
        if self.model.output.shape != (1, len(self.classes)):
            raise ValueError(
                f"there are {len(self.classes)} classes, but the model's output is {self.model.output.shape}"
            )
        names = [name.casefold() for name in self.all_files()]
        if len(set(names)) != len(names) or MANIFEST in names:
            raise ValueError("a file is named twice, or is model.json itself")
        return self

    def all_files(self) -> Mapping[str, KitFile]:
        """Return every file of the folder but ``model.json``, by its path."""
        named = [self.model, self.reference, *self.variants.values()]
        pairs = [*((item.file, item) for item in named), *self.files.items()]
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a file is named twice")
        return dict(pairs)


class ReferenceImage(BaseModel):
    """An image with what the model makes of it."""

    model_config = _FROZEN

    file: RelativePath
    sha256: Sha256
    pixels_sha256: Annotated[
        Sha256, Field(description="Of the 8-bit pixels (height, width, RGB) after resizing and cropping.")
    ]
    label: Annotated[int | None, Field(ge=0, description="True class index; null: not known.")] = None
    top1: Annotated[int, Field(ge=0, description="Index of the largest logit.")]
    logits: Annotated[tuple[float, ...], Field(min_length=2)]


class Reference(BaseModel):
    """``reference.json``: what a kit's self-test compares with."""

    model_config = _FROZEN

    runtime: Annotated[str, Field(description="What computed the logits, such as ort-cpu 1.31.1.")]
    tolerance: Annotated[
        float,
        Field(
            gt=0,
            description="Largest difference of a logit that another runtime or processor may show: its "
            "kernels may round one step differently.",
        ),
    ]
    images: Annotated[tuple[ReferenceImage, ...], Field(min_length=1, max_length=10_000)]


def model_schema() -> Mapping[str, Any]:
    """Return the JSON schema of ``model.json``, with that of ``reference.json`` as definition Reference."""
    schema = KitModel.model_json_schema()
    reference = Reference.model_json_schema()
    schema["$defs"] |= {**reference.pop("$defs"), "Reference": reference}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "edgeattn kit model"
    return schema


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(model_schema(), indent=2) + "\n")
