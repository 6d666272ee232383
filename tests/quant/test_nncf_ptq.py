"""What NNCF decides arrives in the plan: ranges, channels of its own ranges, corrected biases."""

from __future__ import annotations

import nncf
import numpy as np
import pytest
from onnx import ModelProto
from quant_networks import inverted_residual, pictures, run

from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.nncf_ptq import quantize_with_nncf, quiet_nncf
from edgeattn.quant.ptq import make_plan

# Ranges that cut three values of a hundred lose against NNCF's, so the plan is NNCF's.
ONLY_NNCF = PtqConfig(
    headroom="none",
    range_estimator="percentile",
    percentile=97,
    equalization=False,
    importance=False,
    tuning_steps=0,
    rounding=False,
)


def nncf_itself(model: ModelProto, images: list[np.ndarray]) -> ModelProto:
    with quiet_nncf():
        return nncf.quantize(
            model,
            nncf.Dataset(images, lambda image: {"input": image}),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(images),
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_plan_read_from_nncf_errs_no_more_than_its_own_graph(seed: int) -> None:
    model, images = inverted_residual(seed), pictures(48)
    plan = make_plan(model, images, ONLY_NNCF)
    assert [(step.step, step.kept) for step in plan.ladder] == [("ranges: percentile", True), ("NNCF", True)]
    theirs, ours = nncf_itself(model, images), emit_qdq(model, plan, "u8")
    errors = [
        sum(float(np.square(run(graph, x)[0] - run(model, x)[0]).sum()) for x in images)
        for graph in (theirs, ours)
    ]
    assert errors[1] < 1.5 * errors[0]


def test_channels_with_ranges_of_their_own_become_scaled_channels() -> None:
    model, images = inverted_residual(), pictures(16)
    decisions = quantize_with_nncf(model, images)
    assert list(decisions.channel_scales) == ["expand"]
    scales = np.array(decisions.channel_scales["expand"])
    assert scales.max() == 1.0
    assert scales.min() < 0.9
    # Every channel's own range is its share of the common one.
    own = next(
        node
        for node in Graph(nncf_itself(model, images)).nodes
        if node.op_type == "QuantizeLinear" and node.input[0] == "expand_act"
    )
    steps = Graph(nncf_itself(model, images)).constants[own.input[1]]
    assert steps.shape == scales.shape
    _, high = decisions.ranges["expand_act"]
    np.testing.assert_allclose(high * scales / 255, steps, rtol=1e-5)


@pytest.mark.parametrize("constant", ["expand.weight", "depthwise.weight"])
def test_no_step_scales_channels_of_a_layer_whose_weight_is_fixed(constant: str) -> None:
    """A module that computes its weight could not be given another one."""
    model, images, fixed = inverted_residual(), pictures(16), frozenset([constant])
    decisions = quantize_with_nncf(model, images, fixed=fixed)
    assert decisions.channel_scales == {}
    low, high = decisions.ranges["expand_act"]
    assert np.shape(low) == np.shape(high) == ()
    config = PtqConfig(range_estimator="minmax", nncf=False, importance=False, tuning_steps=0, rounding=False)
    steps = {
        free: [step.step for step in make_plan(model, images, config, fixed=fixed_ones).ladder]
        for free, fixed_ones in ((True, frozenset[str]()), (False, fixed))
    }
    assert "channel equalization" in steps[True]
    assert "channel equalization" not in steps[False]


def test_nncf_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    quantize_with_nncf(inverted_residual(), pictures(4))
    assert capfd.readouterr().out == ""


def test_the_float_graph_stays_as_it_was() -> None:
    model = inverted_residual()
    before = model.SerializeToString()
    quantize_with_nncf(model, pictures(4))
    assert model.SerializeToString() == before
