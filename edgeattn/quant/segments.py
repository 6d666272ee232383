"""Run a graph piece by piece over a set of images, looking at or changing values in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeattn.onnx_graph import Graph
from edgeattn.onnx_plain import open_plain

__all__ = ["SegmentRunner"]

Values = dict[str, NDArray[np.generic]]


class SegmentRunner:
    """Executes a model in segments that each end with one chosen tensor.

    The values that later segments need are kept for every image, so that each node runs once per image.
    Nothing is optimized: what is computed is what the graph says.

    Args:
        model: ONNX with one input.
        images: Arrays (1, C, H, W).
    """

    def __init__(self, model: ModelProto, images: Sequence[NDArray[np.float32]]) -> None:
        self.graph = Graph(model)
        self.graph.sort()
        name = self.graph.input_names[0]
        self.values: list[Values] = [{name: image} for image in images]

    def segments(self, ends: Sequence[str]) -> Iterator[str]:
        """Run up to each of `ends` in graph order, yielding its name once its values are there.

        Between two steps the caller may replace `self.values[i][name]`.
        """
        wanted = set(ends)
        piece: list[NodeProto] = []
        last_use = self._last_uses()
        for index, node in enumerate(self.graph.nodes):
            piece.append(node)
            done = [name for name in node.output if name in wanted]
            if done:
                self._run(piece, index, last_use)
                yield done[0]
                self._forget(index, last_use)
                piece = []

    def _last_uses(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for index, node in enumerate(self.graph.nodes):
            for name in node.input:
                last[name] = index
        return last

    def _run(self, piece: Sequence[NodeProto], index: int, last_use: dict[str, int]) -> None:
        made = {name for node in piece for name in node.output}
        read = {name for node in piece for name in node.input if name}
        constants = {name: self.graph.constants[name] for name in read if name in self.graph.constants}
        inputs = sorted(read - made - constants.keys())
        outputs = sorted(name for name in made if last_use.get(name, -1) > index or name in piece[-1].output)
        sample = self.values[0]
        graph = helper.make_graph(
            list(piece),
            "segment",
            [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(sample[name].dtype), sample[name].shape
                )
                for name in inputs
            ],
            [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
            initializer=[numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        for item in graph.output:
            item.ClearField("type")
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.graph.opset)])
        model.ir_version = 8
        # One thread: many small graphs, where waking threads costs more than they give.
        session = open_plain(model, "running a graph in segments")
        for values in self.values:
            results = session.run(outputs, {name: values[name] for name in inputs})
            values.update(zip(outputs, results, strict=True))

    def _forget(self, index: int, last_use: dict[str, int]) -> None:
        for values in self.values:
            for name in [name for name in values if last_use.get(name, -1) <= index]:
                del values[name]
