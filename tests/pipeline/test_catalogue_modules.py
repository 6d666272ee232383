"""Every mechanism in INT8: both profiles, the graph loses what the simulation says, and engines no more than the graph."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from edgeattn.attention import attentions
from edgeattn.lower.base import EveryGraph
from edgeattn.lower.passes import PASSES
from edgeattn.measure import run_session
from edgeattn.models.example import make_example
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_catalogue import CatalogueSettings
from edgeattn.pipeline_catalogue_bench import Bench, Quantized, build, quantize, trained_like
from edgeattn.pipeline_catalogue_row import measure_row
from edgeattn.targets import get_target
from edgeattn.targets.reference import make_program

Array = NDArray[Any]

GATE_BOUND_DB = 25.0


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench(CatalogueSettings())
    yield made
    made.close()


def outputs(model: ModelProto, images: list[Array]) -> Array:
    program = make_program(model)
    name = model.graph.input[0].name
    return np.concatenate([next(iter(program.run({name: image}).values())).reshape(-1) for image in images])


def quantized(name: str, bench: Bench) -> tuple[Quantized, list[Array]]:
    """Return a mechanism's graphs, and inputs that it was not calibrated with."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = make_example(name, 32, 14, seed=0)
        shape = example.alone_shape or example.input_shape
        found = quantize(trained_like(example.alone or example.network, shape), shape, bench)
    return found, bench.inputs(shape, 2)


def sqnr_db(expected: Array, got: Array) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - got).sum()))


@pytest.mark.parametrize("name", attentions)
def test_engines_lose_no_more_than_their_graph(name: str, bench: Bench) -> None:
    found, images = quantized(name, bench)
    expected = outputs(found.floating, images)
    of_graph = sqnr_db(expected, outputs(found.graphs["u8"], images))
    targets = [get_target(runtime) for runtime in ("ort-cpu", "openvino-cpu")]
    here = [target for target in targets if target.probe().can_run]
    if not here:
        pytest.skip("neither ONNX Runtime nor OpenVINO is installed")
    for target in here:
        engine = build(bench, target, found, name)
        with target.open(engine) as session:
            got = run_session(session, np.concatenate(images), engine.inputs[0].name, engine.outputs[0].name)
        assert sqnr_db(expected, got.reshape(-1)) > of_graph - 2, target.name


class _LargerScale(EveryGraph):
    """A pass that breaks its promise: one scale is half as large again."""

    name = "larger-scale"

    def __call__(self, graph: Graph) -> bool:
        first = next((node for node in graph.nodes if node.op_type == "DequantizeLinear"), None)
        if first is None:
            return False  # The float network that INT8 is timed against.
        first.input[1], scale = graph.fresh_name("scale"), graph.constants[first.input[1]]
        graph.constants[first.input[1]] = 1.5 * scale
        return True

    def ensures(self, graph: Graph) -> str:
        return ""


def test_a_row_says_where_an_engine_computes_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    if not get_target("ort-cpu").probe().can_run:
        pytest.skip("ONNX Runtime is not installed")
    monkeypatch.setitem(PASSES, "ort-cpu", (*PASSES["ort-cpu"], _LargerScale()))
    made = Bench(CatalogueSettings(targets=("ort-cpu",), timed_runs=16, rounds=2))
    try:
        verdict = measure_row("eca", made)["targets"]["ort-cpu"]["verdict"]
    finally:
        made.close()
    assert re.fullmatch(r"computes other numbers: 1\d\.\d dB where its graph has 3\d\.\d", verdict)


@pytest.mark.slow
@pytest.mark.parametrize("name", attentions)
def test_quantizes_in_both_profiles(name: str, bench: Bench) -> None:
    found, images = quantized(name, bench)
    assert set(found.graphs) == {"u8", "s8"}
    if attentions.get(name).gates:
        assert found.sqnr_db["u8"] >= GATE_BOUND_DB
    expected = outputs(found.floating, images)
    for profile, graph in found.graphs.items():
        assert abs(sqnr_db(expected, outputs(graph, images)) - found.sqnr_db[profile]) < 1.0, profile
