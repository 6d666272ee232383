"""Every mechanism in INT8: both profiles, and the graph computes what the simulation says it loses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from onnx import ModelProto

from edgeattn.attention import attentions
from edgeattn.models.example import make_example
from edgeattn.pipeline_catalogue import CatalogueSettings
from edgeattn.pipeline_catalogue_bench import Bench, quantize, trained_like
from edgeattn.targets.reference import make_program

GATE_BOUND_DB = 25.0


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench(CatalogueSettings())
    yield made
    made.close()


def outputs(model: ModelProto, images: list[np.ndarray]) -> np.ndarray:
    program = make_program(model)
    name = model.graph.input[0].name
    return np.concatenate([next(iter(program.run({name: image}).values())).reshape(-1) for image in images])


@pytest.mark.slow
@pytest.mark.parametrize("name", attentions)
def test_quantizes_in_both_profiles(name: str, bench: Bench) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = make_example(name, 32, 14, seed=0)
        shape = example.alone_shape or example.input_shape
        found = quantize(trained_like(example.alone or example.network, shape), shape, bench)
    assert set(found.graphs) == {"u8", "s8"}
    if attentions.get(name).gates:
        assert found.sqnr_db["u8"] >= GATE_BOUND_DB
    images = bench.inputs(shape, 2)
    expected = outputs(found.floating, images)
    for profile, graph in found.graphs.items():
        error = expected - outputs(graph, images)
        measured = 10 * np.log10(np.square(expected).sum() / np.square(error).sum())
        assert abs(measured - found.sqnr_db[profile]) < 1.0, profile
