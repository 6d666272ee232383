"""Every pass leaves the numbers (to a stated bound), does what it promises, and leaves other graphs alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_graphs import Builder, branch_model, lower, operators, operators_after_optimization, run

from edgeattn.lower.base import LoweringPass
from edgeattn.lower.drop_idle_pairs import DropIdlePairs
from edgeattn.lower.drop_inner_pairs import DropInnerPairs
from edgeattn.lower.float_sums import FloatSums
from edgeattn.lower.fold_scaling import FoldScaling
from edgeattn.lower.integer_bias import IntegerBias
from edgeattn.lower.part_concats import PartConcats
from edgeattn.lower.passes import PASSES
from edgeattn.lower.pool_to_depthwise import PoolToDepthwise
from edgeattn.lower.spread_gates import SpreadGates
from edgeattn.lower.widen_gates import WidenGates
from edgeattn.onnx_graph import mark_clip

ALL = {type(item).__name__: item for passes in PASSES.values() for item in passes}


def quantized_input(builder: Builder, scale: float = 0.02, zero_point: int = 120) -> str:
    return builder.pair("x", scale, zero_point)


def noise(seed: int, *shape: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv_model(seed: int, channels: int = 5) -> onnx.ModelProto:
    rng, b = np.random.default_rng(seed), Builder()
    weight = b.weight(rng.integers(-127, 128, (channels, 3, 1, 1)), rng.uniform(0.001, 0.02, channels))
    bias = b.constant(rng.standard_normal(channels).astype(np.float32))
    out = b.add("Conv", quantized_input(b), weight, bias)
    return b.model({"x": (1, 3, 4, 6)}, b.pair(out, 0.05, 128))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_integer_biases_move_a_result_by_at_most_half_an_accumulator_step(seed: int) -> None:
    rng, b = np.random.default_rng(seed), Builder()
    scales = rng.uniform(0.001, 0.02, 5).astype(np.float32)
    weight = b.weight(rng.integers(-127, 128, (5, 3, 1, 1)), scales)
    bias = b.constant(rng.standard_normal(5).astype(np.float32))
    model = b.model({"x": (1, 3, 4, 6)}, b.add("Conv", quantized_input(b), weight, bias))
    lowered, changed = lower(model, IntegerBias())
    assert changed == ["integer-bias"]
    feeds = {"x": noise(seed, 1, 3, 4, 6)}
    difference = np.abs(run(model, feeds) - run(lowered, feeds)).max(axis=(0, 2, 3))
    assert np.all(difference <= 0.5 * scales * 0.02 + 1e-5)


def gemm_model(weight_scale: float = 0.01) -> onnx.ModelProto:
    b = Builder()
    weight = b.weight(np.arange(-20, 20).reshape(5, 8), np.full(5, weight_scale))
    bias = b.constant(np.linspace(-1, 1, 5, dtype=np.float32))
    return b.model({"x": (1, 8)}, b.add("Gemm", quantized_input(b), weight, bias, transB=1))


def test_onnx_runtime_makes_an_integer_gemm_of_a_lowered_classifier(tmp_path: Path) -> None:
    assert "QGemm" not in operators_after_optimization(gemm_model(), tmp_path)
    assert "QGemm" in operators_after_optimization(lower(gemm_model(), IntegerBias())[0], tmp_path)


def test_a_bias_that_overflows_int32_stays_float() -> None:
    """A dead channel has a scale near zero: its bias is billions of steps."""
    assert lower(gemm_model(weight_scale=1e-12), IntegerBias())[1] == []


@pytest.mark.parametrize("kernel", [(1, 6), (4, 1), (2, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_depthwise_average_is_the_pool_to_one_step(kernel: tuple[int, int], seed: int) -> None:
    b = Builder()
    pooled = b.add("AveragePool", quantized_input(b), kernel_shape=list(kernel), strides=list(kernel))
    model = b.model({"x": (1, 3, 4, 6)}, b.pair(pooled, 0.011, 119))
    lowered, changed = lower(model, PoolToDepthwise())
    assert changed == ["pool-to-depthwise"]
    assert "AveragePool" not in operators(lowered)
    feeds = {"x": noise(seed, 1, 3, 4, 6)}
    for optimized in (False, True):
        assert np.abs(run(model, feeds) - run(lowered, feeds, optimized=optimized)).max() <= 0.011 * 1.001


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1]}, {"ceil_mode": 1}])
def test_pools_that_are_no_plain_average_stay(attributes: dict[str, object]) -> None:
    b = Builder()
    pooled = b.add("AveragePool", quantized_input(b), kernel_shape=[2, 3], **attributes)
    assert lower(b.model({"x": (1, 3, 4, 6)}, b.pair(pooled, 0.01, 120)), PoolToDepthwise())[1] == []


def test_pools_over_the_whole_map_stay_unless_asked_for() -> None:
    b = Builder()
    pooled = b.add("AveragePool", quantized_input(b), kernel_shape=[4, 6])
    model = b.model({"x": (1, 3, 4, 6)}, b.pair(pooled, 0.01, 120))
    assert lower(model, PoolToDepthwise())[1] == []
    assert lower(model, PoolToDepthwise(whole_maps=True))[1]


@given(factor=st.floats(0.125, 8.0, width=32), seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_a_folded_scalar_moves_a_result_by_at_most_one_step(factor: float, seed: int) -> None:
    b = Builder()
    total = b.add("Add", quantized_input(b), b.pair("y", 0.03, 100))
    scaled = b.add("Mul", total, b.constant(np.float32(factor)))
    model = b.model({"x": (1, 3, 4, 6), "y": (1, 3, 4, 6)}, b.pair(scaled, 0.04, 128))
    lowered, changed = lower(model, FoldScaling())
    assert changed == ["fold-scaling"]
    assert "Mul" not in operators(lowered)
    feeds = {"x": noise(seed, 1, 3, 4, 6), "y": noise(seed + 1, 1, 3, 4, 6)}
    assert np.abs(run(model, feeds) - run(lowered, feeds)).max() <= 0.04 * 1.001


def test_scalars_one_behind_the_other_are_all_folded() -> None:
    """As GELU's half behind which somebody doubles."""
    b = Builder()
    once = b.add("Mul", quantized_input(b), b.constant(np.float32(0.5)))
    twice = b.add("Mul", b.constant(np.float32(3)), once)
    model = b.model({"x": (1, 3, 4, 6)}, b.pair(twice, 0.04, 128))
    lowered, _ = lower(model, FoldScaling())
    assert "Mul" not in operators(lowered)
    feeds = {"x": noise(5, 1, 3, 4, 6)}
    assert np.abs(run(model, feeds) - run(lowered, feeds)).max() <= 0.04 * 1.001


@pytest.mark.parametrize("factor", [-2.0, 0.0])
def test_a_factor_that_is_not_positive_stays(factor: float) -> None:
    b = Builder()
    scaled = b.add("Mul", quantized_input(b), b.constant(np.float32(factor)))
    assert lower(b.model({"x": (1, 3, 4, 6)}, b.pair(scaled, 0.04, 128)), FoldScaling())[1] == []


@pytest.mark.parametrize("scale", [0.02, 0.03])
def test_only_pairs_on_the_same_grid_are_idle(scale: float) -> None:
    b = Builder()
    pooled = b.add("MaxPool", quantized_input(b), kernel_shape=[4, 1])
    moved = b.add("Reshape", b.pair(pooled, scale, 120), b.constant(np.asarray([1, 6, 3, 1])))
    joined = b.add("Concat", b.pair(moved, scale, 120), b.pair(moved, scale, 120), axis=1)
    model = b.model({"x": (1, 3, 4, 6)}, b.pair(joined, scale, 120))
    lowered, changed = lower(model, DropIdlePairs())
    assert bool(changed)
    assert operators(lowered).count("QuantizeLinear") == (1 if scale == 0.02 else 2)
    feeds = {"x": noise(0, 1, 3, 4, 6)}
    np.testing.assert_array_equal(run(model, feeds), run(lowered, feeds))


def test_a_pair_between_two_products_goes_and_moves_the_result_by_half_its_step() -> None:
    b = Builder()
    first = b.pair(b.add("Mul", quantized_input(b), b.pair("gate", 1 / 255, 0)), 0.02, 120)
    product = b.add("Mul", first, b.pair("other", 1 / 255, 0))
    shapes = {"x": (1, 3, 4, 6), "gate": (1, 3, 4, 1), "other": (1, 3, 1, 6)}
    model = b.model(shapes, product)
    lowered, changed = lower(model, DropInnerPairs())
    assert changed == ["drop-inner-pairs"]
    assert operators(lowered).count("QuantizeLinear") == operators(model).count("QuantizeLinear") - 1
    rng = np.random.default_rng(0)
    feeds = {name: rng.uniform(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    assert np.abs(run(model, feeds) - run(lowered, feeds)).max() <= 0.01 * 1.001


def test_a_pair_that_stands_for_a_clip_stays_between_two_products() -> None:
    b = Builder()
    first = b.pair(b.add("Mul", quantized_input(b), b.pair("gate", 1 / 255, 0)), 0.02, 0)
    mark_clip(next(node for node in b.nodes if node.output[0] == b.nodes[-1].input[0]))
    product = b.add("Mul", first, b.pair("other", 1 / 255, 0))
    model = b.model({"x": (1, 3, 4, 6), "gate": (1, 3, 4, 1), "other": (1, 3, 1, 6)}, product)
    assert lower(model, DropInnerPairs())[1] == []


def gated_by_a_sum(b: Builder, gates: int, *, factor: bool, quantized: bool = True) -> str:
    """Return the tensor ``x * (gates summed) * factor`` behind its pair."""
    leaves = []
    for index in range(gates):
        gate = b.add("Sigmoid", f"gate{index}")
        leaves.append(b.pair(gate, 1 / 255, 0) if quantized else gate)
    total = leaves[0]
    for leaf in leaves[1:]:
        total = b.add("Add", total, leaf)
    if factor:
        total = b.add("Mul", total, b.constant(np.float32(1 / 3)))
    return b.pair(b.add("Mul", quantized_input(b), total), 0.02, 120)


GATE_SHAPES = ((1, 3, 1, 6), (1, 3, 4, 1), (1, 1, 4, 6))


@given(
    seed=st.integers(0, 2**16),
    gates=st.integers(2, 3),
    factor=st.booleans(),
    quantized=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_spreading_gates_moves_a_result_by_at_most_one_step_and_seldom(
    seed: int, gates: int, factor: bool, quantized: bool
) -> None:
    b = Builder()
    output = gated_by_a_sum(b, gates, factor=factor, quantized=quantized)
    shapes = {"x": (1, 3, 4, 6)} | {f"gate{index}": GATE_SHAPES[index] for index in range(gates)}
    model = b.model(shapes, output)
    lowered, changed = lower(model, SpreadGates())
    assert changed == ["spread-gates"]
    feeds = {name: noise(seed + index, *shape) for index, (name, shape) in enumerate(shapes.items())}
    difference = np.abs(run(model, feeds) - run(lowered, feeds))
    assert difference.max() <= 0.02 * 1.001
    assert (difference > 0).mean() <= 0.05
    # Every product has a whole map on one side: no sum of two broadcast gates is left.
    assert operators(lowered).count("Mul") == gates + factor


def test_a_map_gated_by_what_is_no_gate_stays() -> None:
    b = Builder()
    total = b.add("Add", b.pair("gate0", 1 / 255, 0), b.add("Sigmoid", "gate1"))
    output = b.pair(b.add("Mul", quantized_input(b), total), 0.02, 120)
    model = b.model({"x": (1, 3, 4, 6), "gate0": (1, 3, 1, 6), "gate1": (1, 3, 4, 1)}, output)
    assert lower(model, SpreadGates())[1] == []


def test_a_sum_of_gates_that_is_read_elsewhere_stays() -> None:
    b = Builder()
    total = b.add("Add", b.add("Sigmoid", "gate0"), b.add("Sigmoid", "gate1"))
    product = b.add("Mul", quantized_input(b), total)
    model = b.model(
        {"x": (1, 3, 4, 6), "gate0": (1, 3, 1, 6), "gate1": (1, 3, 4, 1)}, b.add("Add", product, total)
    )
    assert lower(model, SpreadGates())[1] == []


def test_the_pair_of_a_residual_branch_stays() -> None:
    b = Builder()
    x = quantized_input(b)
    y = b.pair(b.add("Conv", x, b.weight(np.ones((3, 3, 1, 1)), np.full(3, 0.1))), 0.05, 128)
    first = b.pair(b.add("Add", x, y), 0.05, 128)
    z = b.pair(b.add("Conv", first, b.weight(np.ones((3, 3, 1, 1)), np.full(3, 0.1))), 0.05, 128)
    model = b.model({"x": (1, 3, 4, 6)}, b.pair(b.add("Add", first, z), 0.05, 128))
    assert lower(model, DropInnerPairs())[1] == []


@pytest.mark.parametrize("item", ALL.values(), ids=ALL)
def test_a_pass_runs_once(item: LoweringPass) -> None:
    """A second run finds nothing to do."""
    b = Builder()
    pooled = b.pair(b.add("AveragePool", quantized_input(b), kernel_shape=[1, 6]), 0.02, 120)
    gate = b.pair(b.add("Sigmoid", pooled), 1 / 255, 0)
    model = b.model({"x": (1, 3, 4, 6)}, b.pair(b.add("Mul", quantized_input(b), gate), 0.02, 120))
    once, _ = lower(model, item)
    assert lower(once, item)[1] == []


def test_every_pass_finds_the_shapes_of_what_an_earlier_one_appended() -> None:
    """Shapes are inferred in the order of nodes: a pool behind a widened gate would be left alone."""
    b = Builder()
    gate = b.pair(b.add("Relu", b.pair("gate", 1 / 255, 0)), 1 / 255, 0)
    gated = b.pair(b.add("Mul", quantized_input(b), gate), 0.02, 120)
    pooled = b.add("AveragePool", gated, kernel_shape=[1, 6])
    model = b.model({"x": (1, 3, 4, 6), "gate": (1, 3, 1, 1)}, b.pair(pooled, 0.02, 120))
    lowered, changed = lower(model, WidenGates(min_pixels=1), PoolToDepthwise())
    assert changed == ["widen-gates", "pool-to-depthwise"]
    assert "AveragePool" not in operators(lowered)


@pytest.mark.parametrize("item", ALL.values(), ids=ALL)
def test_a_float_graph_is_left_alone(item: LoweringPass) -> None:
    b = Builder()
    pooled = b.add("AveragePool", "x", kernel_shape=[1, 6])
    scaled = b.add("Mul", b.add("Sigmoid", pooled), b.constant(np.float32(2)))
    assert lower(b.model({"x": (1, 3, 4, 6)}, b.add("Mul", "x", scaled)), item)[1] == []


def concat_model() -> onnx.ModelProto:
    """Two convolutions whose joined results a batch norm scales, as behind the halves of `scconv`."""
    rng, b = np.random.default_rng(3), Builder()
    source = b.pair("x", 0.05, 128)
    branches = []
    for _ in range(2):
        weight = b.weight(rng.integers(-127, 128, (8, 8, 3, 3)), np.full(8, 2.0**-8, np.float32))
        bias = b.constant((rng.integers(-500, 500, 8) * 0.05 * 2.0**-8).astype(np.float32))
        branches.append(b.pair(b.add("Conv", source, weight, bias, pads=[1, 1, 1, 1]), 0.05, 128))
    joined = b.pair(b.add("Concat", *branches, axis=1), 0.05, 128)
    scaled = b.add("Mul", joined, b.constant(rng.uniform(0.5, 2, (1, 16, 1, 1)).astype(np.float32)))
    shifted = b.add("Add", scaled, b.constant(rng.normal(size=(1, 16, 1, 1)).astype(np.float32)))
    return b.model({"x": (1, 8, 8, 8)}, b.pair(shifted, 0.1, 128))


_COMPILE = """
import sys, openvino
core = openvino.Core()
core.compile_model(core.read_model(sys.argv[1]), "CPU")
"""


def joined_maps(op: str) -> onnx.ModelProto:
    """Two quantized tensors that are joined, and then meet a number or are rectified."""
    b = Builder()
    joined = b.add("Concat", b.pair("x", 0.05, 100), b.pair("y", 0.02, 120), axis=1)
    operands = [] if op == "Relu" else [b.constant(np.float32(3))]
    result = b.add(op, b.pair(joined, 0.05, 100), *operands)
    return b.model({"x": (1, 8, 8, 8), "y": (1, 8, 8, 8)}, b.pair(result, 0.06, 0 if op == "Relu" else 30))


@pytest.mark.parametrize(
    "model",
    [concat_model(), *(joined_maps(op) for op in ("Add", "Sub", "Mul", "Div", "Relu"))],
    ids=["batch norm", "Add", "Sub", "Mul", "Div", "Relu"],
)
def test_openvino_compiles_scaled_concatenations_with_the_pass_and_crashes_without(
    model: onnx.ModelProto, tmp_path: Path
) -> None:
    """Should the second half fail, OpenVINO compiles them by itself, and the pass can go."""
    lowered, changed = lower(model, PartConcats())
    assert changed == ["part-concats"]
    feeds = {item.name: noise(1, 1, 8, 8, 8) for item in model.graph.input}
    np.testing.assert_array_equal(run(lowered, feeds), run(model, feeds))
    codes = []
    for name, item in (("with", lowered), ("without", model)):
        path = tmp_path / f"{name}.onnx"
        onnx.save(item, str(path))
        command = [sys.executable, "-c", _COMPILE, str(path)]
        codes.append(subprocess.run(command, capture_output=True, check=False, timeout=120).returncode)
    assert codes == [0, -signal.SIGSEGV]


def test_sums_on_exact_grids_are_added_in_float(tmp_path: Path) -> None:
    """Every second sum of these lies between two steps: where ONNX Runtime's kernel for ARM rounds otherwise."""
    model = branch_model()
    lowered, changed = lower(model, FloatSums())
    assert changed == ["float-sums"]
    assert "QLinearAdd" in operators_after_optimization(model, tmp_path)
    executed = operators_after_optimization(lowered, tmp_path)
    assert "Sum" in executed
    assert "QLinearAdd" not in executed
    assert "QLinearConv" in executed
    feeds = {"x": 30 * noise(1, 1, 3, 16, 16)}
    np.testing.assert_array_equal(run(lowered, feeds, optimized=True), run(model, feeds, optimized=True))


@pytest.mark.parametrize(("scale", "result"), [(0.3, 0.6), (0.25, 0.25), (0.25, 0.3)])
def test_sums_that_are_never_half_a_step_keep_their_integer_kernel(scale: float, result: float) -> None:
    """Grids that are not exact; and a result in the steps of what is added, where nothing is rounded."""
    assert lower(branch_model(scale, result=result), FloatSums())[1] == []
