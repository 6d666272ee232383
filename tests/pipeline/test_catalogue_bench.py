"""Engines of the catalogue are built apart: a runtime that crashes costs one figure, not the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crashing_graph import joined_maps
from quant_networks import inverted_residual, pictures

from edgeattn.artifact import OnnxArtifact, sha256_of_file
from edgeattn.errors import ModelError
from edgeattn.export.qdq import emit_qdq
from edgeattn.pipeline_catalogue import CatalogueSettings
from edgeattn.pipeline_catalogue_bench import Bench, Quantized, build
from edgeattn.quant.config import RANGES_ONLY
from edgeattn.quant.ptq import make_plan
from edgeattn.targets import Target, get_target


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(CatalogueSettings())
    yield made
    made.close()


@pytest.fixture(scope="module")
def quantized() -> Quantized:
    model = inverted_residual()
    graph = emit_qdq(model, make_plan(model, pictures(4), RANGES_ONLY), "u8")
    return Quantized(model, {"u8": graph}, {"u8": 0.0}, "int8")


def left_as_it_is(target: Target, artifact: OnnxArtifact, folder: Path) -> OnnxArtifact:
    """Lower nothing: the pass that spares OpenVINO the graph is left out."""
    return artifact


def test_a_crash_while_building_is_an_error_that_names_the_signal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = get_target("openvino-cpu")
    if not target.probe().can_build:
        pytest.skip(target.probe().reason)
    monkeypatch.setattr(type(target), "lower", left_as_it_is)
    crashing = joined_maps(shifted=True)
    with pytest.raises(ModelError, match=r"openvino-cpu .* crashed while it built this graph \(SIGSEGV\)"):
        build(bench, target, Quantized(crashing, {"u8": crashing}, {"u8": 0.0}, "int8"), "network")


def test_a_refusal_comes_back_in_one_line(
    bench: Bench, quantized: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = get_target("ort-cpu")
    if not target.probe().can_build:
        pytest.skip(target.probe().reason)

    def spoiled(_: Target, artifact: OnnxArtifact, folder: Path) -> OnnxArtifact:
        artifact.path.write_bytes(b"no model\n")
        return dataclasses.replace(artifact, sha256=sha256_of_file(artifact.path))

    monkeypatch.setattr(type(target), "lower", spoiled)
    with pytest.raises(ModelError) as caught:
        build(bench, target, quantized, "network")
    assert "network.u8.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ort-cpu", "reference"])
def test_an_engine_that_was_built_apart_runs_here(bench: Bench, quantized: Quantized, name: str) -> None:
    target = get_target(name)
    if not target.probe().can_run:
        pytest.skip(target.probe().reason)
    feeds: dict[str, Any] = {"input": pictures(1)[0]}
    with target.open(build(bench, target, quantized, "network")) as session:
        assert session.infer(feeds)["logits"].shape == (1, 10)
