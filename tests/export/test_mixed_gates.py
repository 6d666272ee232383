"""A network whose gates take different policies is exported, lowered and trained as any other."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from gate_networks import GATE_SHAPE, GATES, contrasts, coord_and_eca

from edgeattn.errors import RecipeError
from edgeattn.export.fake_quant import attach_fake_quant, attach_trainable, read_back, write_constants
from edgeattn.export.float_onnx import export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.export.selfcheck import check_export
from edgeattn.lower import PASSES, lower_model
from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.config import RANGES_ONLY, GatePolicy
from edgeattn.quant.gates import GateChoice, gate_paths, gate_regions
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES
from edgeattn.quant.ptq import make_plan

POLICIES: tuple[GatePolicy, ...] = ("int8", "fixed", "float")
# Every policy at every gate.
MIXES = [dict(zip(GATES, (*POLICIES[turn:], *POLICIES[:turn]), strict=True)) for turn in range(3)]
IDS = ["-".join(mix.values()) for mix in MIXES]


@functools.cache
def _exported():  # type: ignore[no-untyped-def]
    edge = coord_and_eca()
    return edge, export_float(edge, GATE_SHAPE)


def _plan(mix: dict[str, GatePolicy]):  # type: ignore[no-untyped-def]
    edge, export = _exported()
    return make_plan(export.model, contrasts(8), RANGES_ONLY, gate_regions(edge, "int8", mix))


def _inside(plan, path: str):  # type: ignore[no-untyped-def]
    return {name: item for name, item in plan.activations.items() if name.startswith(path.replace(".", "/"))}


@pytest.mark.parametrize("mix", MIXES, ids=IDS)
def test_a_mix_of_policies_passes_the_self_check_and_every_lowering(mix: dict[str, GatePolicy]) -> None:
    edge, export = _exported()
    plan = _plan(mix)
    for profile in PROFILES:
        model = emit_qdq(export.model, plan, profile, reorders_channels=False)
        adjusted = Graph(export.model)
        apply_plan_constants(adjusted, plan, profile)
        module = write_constants(edge, export, adjusted)
        check = check_export(attach_fake_quant(module, export, plan, profile), model, contrasts(4, seed=1))
        assert check.largest_lsb <= 1
        for target in PASSES:
            lowered, _ = lower_model(model, target)
            assert lowered.graph.output == model.graph.output


@pytest.mark.parametrize("mix", MIXES, ids=IDS)
def test_each_gate_is_quantized_as_its_own_policy_says(mix: dict[str, GatePolicy]) -> None:
    """As it would be, were all gates of that policy."""
    plan = _plan(mix)
    for path, policy in mix.items():
        alike = _plan(dict.fromkeys(GATES, policy))
        assert _inside(plan, path) == _inside(alike, path)
    assert plan.float_regions == [path.replace(".", "/") for path, policy in mix.items() if policy == "float"]


def test_policies_differ_in_what_they_quantize() -> None:
    # ECA's sigmoid here does not reach 1: its fixed range is another than the calibrated one.
    int8, fixed, floats = (_inside(_plan(dict.fromkeys(GATES, policy)), GATES[1]) for policy in POLICIES)
    assert set(int8) == set(fixed) > set(floats)
    assert int8 != fixed


def test_a_mix_of_policies_is_trained() -> None:
    edge, export = _exported()
    mix = MIXES[1]
    plan = _plan(mix)
    placement = place_quantizers(export.model, GateChoice("int8", mix).regions(edge))
    quantized = attach_trainable(edge, export, plan, placement)
    quantized.module(torch.randn(2, *GATE_SHAPE[1:])).square().sum().backward()
    back = read_back(quantized, export, plan, placement)
    assert set(back.activations) == set(plan.activations)
    for name, wanted in plan.activations.items():
        assert np.isclose(back.activations[name].limit, wanted.limit, rtol=1e-5)


def test_a_path_that_is_no_gate_is_refused() -> None:
    edge, _ = _exported()
    assert tuple(gate_paths(edge)) == GATES
    with pytest.raises(
        RecipeError, match=r"'features\.0\.attentoin' is no attention module.*features\.0\.attention"
    ):
        gate_regions(edge, "int8", {"features.0.attentoin": "float"})
