"""The executed graphs of the CPU runtimes: every timed layer is in them, with where it came from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.errors import ModelError
from edgeattn.targets import Engine, get_target
from edgeattn.targets.executed import executed_graph

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

Build = Callable[..., Engine]


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("name", ["ort-cpu", "openvino-cpu"])
def test_every_timed_layer_is_in_the_graph(
    name: str, precision: str, build: Build, images: NDArray[np.float32]
) -> None:
    with get_target(name).open(build(name, precision)) as session:
        times = session.layer_times({"input": images}, runs=2)
        layers = executed_graph(session)
    assert {time.name for time in times} <= {layer.name for layer in layers}
    convolutions = [layer for layer in layers if "Conv" in layer.kind]
    assert len(convolutions) == 2
    first = layers.index(convolutions[0])
    # The second convolution reads what the first computed, maybe through a conversion.
    waiting, seen = [layers.index(convolutions[1])], set()
    while waiting:
        place = waiting.pop()
        seen.add(place)
        waiting += layers[place].producers
    assert first in seen


def test_openvino_lists_what_it_fused(build: Build) -> None:
    with get_target("openvino-cpu").open(build("openvino-cpu")) as session:
        layers = executed_graph(session)
    fused = next(layer for layer in layers if "Conv" in layer.kind)
    # The rectifier is implied by the range of the quantizer behind it, which is in the same kernel.
    assert {"conv1", "a1_Q"} <= set(fused.originals)


@pytest.mark.parametrize("name", ["ort-cpu", "openvino-cpu"])
def test_a_closed_engine_shows_no_graph(name: str, build: Build) -> None:
    with get_target(name).open(build(name)) as session:
        pass
    with pytest.raises(ModelError, match="closed"):
        executed_graph(session)


def test_a_session_that_cannot_tell_has_an_empty_graph() -> None:
    assert executed_graph(object()) == ()  # type: ignore[arg-type]
