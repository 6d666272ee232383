"""Engines of the catalogue are built apart: a runtime that crashes costs one figure, not the table."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quant_networks import inverted_residual, pictures

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import ModelError
from edgeattn.export.qdq import emit_qdq
from edgeattn.pipeline_catalogue import CatalogueSettings
from edgeattn.pipeline_catalogue_bench import Bench, Quantized, build
from edgeattn.quant.config import RANGES_ONLY
from edgeattn.quant.ptq import make_plan
from edgeattn.targets import Engine, get_target
from edgeattn.targets.reference import Reference


class Crashing(Reference):
    """Ends its process as a fault in a native library does."""

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError("it lives")


class Refusing(Reference):
    """Refuses as targets do."""

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        raise ModelError("no kernel\nfor this")


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


def test_a_crash_while_building_is_an_error_that_names_the_signal(bench: Bench, quantized: Quantized) -> None:
    with pytest.raises(ModelError, match=r"reference .* crashes while it builds this graph \(SIGSEGV\)"):
        build(bench, Crashing(), quantized, "network")


def test_a_refusal_comes_back_in_one_line(bench: Bench, quantized: Quantized) -> None:
    with pytest.raises(ModelError, match="no kernel for this"):
        build(bench, Refusing(), quantized, "network")


@pytest.mark.parametrize("name", ["ort-cpu", "reference"])
def test_an_engine_that_was_built_apart_runs_here(bench: Bench, quantized: Quantized, name: str) -> None:
    target = get_target(name)
    if not target.probe().can_run:
        pytest.skip(target.probe().reason)
    feeds: dict[str, Any] = {"input": pictures(1)[0]}
    with target.open(build(bench, target, quantized, "network")) as session:
        assert session.infer(feeds)["logits"].shape == (1, 10)
