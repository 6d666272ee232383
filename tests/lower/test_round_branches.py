"""OpenVINO rounds the branches of sums where lowering says so, and leaves other sums alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from lowering_graphs import Builder, branch_model, lower, operators, run

from edgeattn.lower.passes import PASSES
from edgeattn.lower.round_branches import RoundBranches


def test_an_identity_is_put_before_the_rounding_of_residual_branches() -> None:
    model = branch_model()
    lowered, changed = lower(model, RoundBranches())
    assert changed == ["round-branches"]
    assert "LeakyRelu" in operators(lowered)
    feeds = {"x": 30 * np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    np.testing.assert_array_equal(run(lowered, feeds), run(model, feeds))


def test_branches_on_other_grids_are_left_alone() -> None:
    assert lower(branch_model(scale=0.3), RoundBranches())[1] == []


def vector_model(outputs: int = 8) -> onnx.ModelProto:
    """The sum of two layers over pooled vectors, rectified by their grids, as in the gate of CBAM."""
    rng, b = np.random.default_rng(11), Builder()
    branches = []
    for name in ("x", "y"):
        source = b.pair(name, 0.0165, 0)
        weight = b.weight(rng.integers(-127, 128, (outputs, 16, 1, 1)), np.full(outputs, 0.0011, np.float32))
        bias = b.constant(rng.uniform(0, 2, outputs).astype(np.float32))
        branches.append(b.pair(b.add("Conv", source, weight, bias), 0.0213 + 0.001 * len(branches), 0))
    total = b.pair(b.add("Add", *branches), 0.0437, 0)
    return b.model({"x": (1, 16, 1, 1), "y": (1, 16, 1, 1)}, total)


def test_openvino_rounds_both_branches_of_a_sum_of_vectors_with_the_pass_only() -> None:
    """Should the second half fail, OpenVINO rounds them by itself, and the pass need not look at vectors."""
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    model = vector_model()
    others = tuple(item for item in PASSES["openvino-cpu"] if item.name != "round-branches")
    steps = {}
    for name, passes in (("with", PASSES["openvino-cpu"]), ("without", others)):
        lowered, _ = lower(model, *passes)
        # What OpenVINO folds at compilation is not at stake: integers in, integers out.
        compiled = ov.Core().compile_model(
            ov.Core().read_model(lowered.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        steps[name] = 0
        for seed in range(40):
            feeds = {
                key: (np.random.default_rng([seed, index]).integers(0, 256, (1, 16, 1, 1)) * 0.0165).astype(
                    np.float32
                )
                for index, key in enumerate(("x", "y"))
            }
            got = next(iter(compiled(feeds).values()))
            steps[name] += int(np.count_nonzero(np.abs(got - run(model, feeds)) > 1e-3))
    assert steps["with"] == 0
    assert steps["without"] > 0
