"""The integer reference: against ONNX's own evaluator, by hand, and by its options."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeattn.errors import ModelError, RecipeError
from edgeattn.onnx_graph import Graph
from edgeattn.targets import get_target
from edgeattn.targets._reference.integer import convolve, exact_dtype
from edgeattn.targets._reference.numbers import round_bfloat16
from edgeattn.targets.reference import make_program


class Net:
    """Writes a small QDQ graph with one input ``x``."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.shape, self.random = shape, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def const(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def pair(self, tensor: str, scale: float, zero: Any) -> str:
        parts = [self.const(np.float32(scale)), self.const(zero)]
        return self.add("DequantizeLinear", self.add("QuantizeLinear", tensor, *parts), *parts)

    def weight(self, integers: NDArray[Any], scales: NDArray[Any], axis: int = 0) -> str:
        zeros = np.zeros(len(scales), np.int8)
        parts = [self.const(v) for v in (integers.astype(np.int8), scales.astype(np.float32), zeros)]
        return self.add("DequantizeLinear", *parts, axis=axis)

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        model.ir_version = 10
        return model


def integers_of_both(model: onnx.ModelProto, x: NDArray[np.float32], **options: Any) -> Any:
    """Return the integers of every QuantizeLinear, of the reference and of ONNX's evaluator."""
    program = make_program(model, **options)
    names = program.quantized_names
    graph = Graph(model)
    for name in names:
        graph.outputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8, None))
    evaluator = ReferenceEvaluator(graph.to_model())
    wanted = dict(zip([output.name for output in graph.outputs], evaluator.run(None, {"x": x}), strict=True))
    return program.run({"x": x}, names), wanted, names


@st.composite
def networks(draw: st.DrawFn) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """Graphs whose scales are powers of two, so that float32 computes them exactly, ties included."""
    # At least 5: with stride 2 and a kernel of 3, two rows are left for the pool that follows.
    channels, size = draw(st.integers(1, 5)), draw(st.integers(5, 9))
    net = Net((1, channels, size, size), draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from([np.uint8, np.int8]))
    zero = kind(draw(st.integers(0, 127)))
    x = net.pair("x", 2.0**-4, zero)
    kernel, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, channels]))
    outputs = channels * draw(st.integers(1, 2))
    integers = net.random.integers(-127, 128, (outputs, channels // group, kernel, kernel))
    scales = 2.0 ** -net.random.integers(6, 9, outputs)
    bias = net.const((net.random.integers(-500, 500, outputs) * scales * 2.0**-4).astype(np.float32))
    y = net.add(
        "Conv",
        x,
        net.weight(integers, scales),
        bias,
        group=group,
        kernel_shape=[kernel, kernel],
        strides=[draw(st.integers(1, 2)), draw(st.integers(1, 2))],
        pads=draw(st.sampled_from([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]])),
    )
    if draw(st.booleans()):
        y = net.add("Clip", y, net.const(np.float32(0)), net.const(np.float32(6)))
    y = net.pair(y, 2.0**-3, kind(draw(st.integers(0, 60))))
    branch = draw(st.sampled_from(["add", "mul", "pool", "swish", "none"]))
    if branch == "add":
        y = net.add("Add", y, net.pair(net.add("Relu", y), 2.0**-2, kind(3)))
    elif branch == "mul":
        y = net.add("Mul", y, net.pair(net.add("GlobalAveragePool", y), 2.0**-3, kind(0)))
    elif branch == "pool":
        y = net.add("AveragePool", y, kernel_shape=[2, 1], strides=[1, 1])
    elif branch == "swish":
        y = net.add("HardSigmoid", y, alpha=0.25, beta=0.5)
    if branch != "none":
        y = net.pair(y, 2.0**-4, kind(7))
    flat = net.add("Flatten", net.add("GlobalMaxPool", y))
    head = net.random.integers(-127, 128, (outputs, 3))
    logits = net.add(
        "Gemm", flat, net.weight(head, np.full(3, 2.0**-7), 1), net.const(np.zeros(3, np.float32))
    )
    return net.model(logits), net.random.normal(size=net.shape).astype(np.float32) * 4


@settings(max_examples=60)
@given(networks())
def test_equals_onnx_where_float32_is_exact(case: tuple[onnx.ModelProto, NDArray[np.float32]]) -> None:
    model, x = case
    got, wanted, names = integers_of_both(model, x)
    for name in names:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
    output = model.graph.output[0].name
    np.testing.assert_array_equal(got[output], wanted[output])


def rounding_net(scale: float) -> onnx.ModelProto:
    net = Net((1, 1, 1, 6))
    return net.model(net.pair(net.pair("x", 1.0, np.int8(0)), scale, np.int8(0)))


def test_ties_round_as_asked() -> None:
    x = np.array([[[[1, 3, 5, -1, -3, -5]]]], np.float32)
    model = rounding_net(2.0)
    even = make_program(model, rounding="half-even").run({"x": x})
    away = make_program(model, rounding="half-away").run({"x": x})
    assert next(iter(even.values())).ravel().tolist() == [0, 4, 4, 0, -4, -4]
    assert next(iter(away.values())).ravel().tolist() == [2, 4, 6, -2, -4, -6]


def test_what_does_not_fit_saturates() -> None:
    x = np.array([[[[1000, -1000, 100, 63, 64, np.nan]]]], np.float32)
    program = make_program(rounding_net(0.5))
    found = program.run({"x": x}, program.quantized_names)
    assert found[program.quantized_names[1]].ravel().tolist() == [127, -128, 127, 126, 127, 0]


def test_bias_is_a_whole_number_of_accumulator_steps_or_not() -> None:
    net = Net((1, 1, 1, 1))
    weight = net.weight(np.ones((1, 1, 1, 1)), np.array([1.0]))
    y = net.add("Conv", net.pair("x", 1.0, np.int8(0)), weight, net.const(np.array([0.3], np.float32)))
    model = net.model(net.pair(y, 0.25, np.int8(0)))
    x = np.full((1, 1, 1, 1), 2, np.float32)
    output = model.graph.output[0].name
    assert make_program(model).run({"x": x})[output] == 2.0
    assert make_program(model, bias="float").run({"x": x})[output] == 2.25


def saturating_sum(weights: NDArray[Any], raw: NDArray[Any]) -> int:
    """Sum as vpmaddubsw does, one pair after another."""
    total = 0
    for k in range(0, len(weights), 2):
        pair = sum(int(w) * int(x) for w, x in zip(weights[k : k + 2], raw[k : k + 2], strict=True))
        total += max(-32768, min(32767, pair))
    return total


@pytest.mark.parametrize("zero", [0, 100])
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("channels", [4, 5])
def test_vpmaddubsw_saturates_pairs_as_by_hand(kind: type, zero: int, channels: int) -> None:
    net = Net((1, channels, 1, 1), 3)
    integers = net.random.choice([-127, -120, 90, 127], (8, channels, 1, 1))
    x = net.pair("x", 1.0, kind(zero))
    y = net.add("Conv", x, net.weight(integers, np.ones(8)))
    model = net.model(y)
    values = net.random.integers(0, 256, channels) - zero - (128 if kind is np.int8 else 0)
    feeds = {"x": values.reshape(net.shape).astype(np.float32)}
    raw = values + zero + (128 if kind is np.int8 else 0)
    got = make_program(model, accumulate="vpmaddubsw").run(feeds)[y].ravel()
    # The kernel takes raw bytes; what the zero point adds is subtracted exactly.
    wanted = [saturating_sum(w.ravel(), raw) - int(w.sum()) * (raw[0] - values[0]) for w in integers]
    np.testing.assert_array_equal(got, np.asarray(wanted, np.float32))
    exact = make_program(model).run(feeds)[y].ravel()
    np.testing.assert_array_equal(exact, integers.reshape(8, -1) @ values)
    assert not np.array_equal(exact, got)


@pytest.mark.parametrize("of_image", [True, False])
def test_pairs_cross_places_of_the_kernel_unless_the_image_is_filled(of_image: bool) -> None:
    """ONNX Runtime gets images with a fourth channel of zeros, which the third one is paired with."""
    net = Net((1, 3, 5, 5), 3)
    weight = net.weight(net.random.choice([-127, 127], (16, 3, 3, 3)), np.ones(16))
    x = net.pair("x" if of_image else net.add("Relu", "x"), 1.0, np.uint8(0))
    model = net.model(net.add("Conv", x, weight))
    feeds = {"x": net.random.integers(200, 256, net.shape).astype(np.float32)}
    output = model.graph.output[0].name
    across, alone = (
        make_program(model, accumulate=how).run(feeds)[output] for how in ("vpmaddubsw", "vpmaddubsw-onednn")
    )
    assert np.array_equal(across, alone) == of_image


def test_depthwise_and_grouped_convolutions_agree_with_a_dense_one() -> None:
    random = np.random.default_rng(0)
    x = random.integers(-255, 256, (1, 6, 7, 5)).astype(np.float32)
    window = [3, 3], [2, 1], [1, 0, 1, 2], [1, 1]
    for group in (1, 2, 3, 6):
        weight = random.integers(-127, 128, (12, 6 // group, 3, 3)).astype(np.float32)
        dense = np.zeros((12, 6, 3, 3), np.float32)
        for output in range(12):
            start = output // (12 // group) * (6 // group)
            dense[output, start : start + 6 // group] = weight[output]
        np.testing.assert_array_equal(convolve(x, weight, window, group), convolve(x, dense, window, 1))


@pytest.mark.parametrize("stride", [1, 2])
def test_sequences_are_convolved_as_maps_of_one_row(stride: int) -> None:
    """As ECA's authors write their gate: a Conv1d over the channels."""
    sequence, row = Net((1, 2, 12)), Net((1, 2, 1, 12))
    outputs = []
    for net, lift in ((sequence, ()), (row, (1,))):
        x = net.pair("x", 2.0**-4, np.uint8(100))
        weight = net.weight(np.arange(-9, 9).reshape(3, 2, *lift, 3), np.full(3, 2.0**-5))
        pads = [0, 1, 0, 1] if lift else [1, 1]
        bias = net.const(np.asarray([0.5, -1.0, 0.25], np.float32))
        y = net.add("Conv", x, weight, bias, kernel_shape=[*lift, 3], strides=[*lift, stride], pads=pads)
        y = net.pair(y, 2.0**-3, np.uint8(128))
        y = net.add("AveragePool", y, kernel_shape=[*lift, 3], pads=pads, strides=[*lift, 1])
        y = net.add("MaxPool", y, kernel_shape=[*lift, 2], strides=[*lift, 1])
        x_values = np.random.default_rng(1).normal(size=net.shape).astype(np.float32)
        outputs.append(make_program(net.model(y)).run({"x": x_values})[y])
    np.testing.assert_array_equal(outputs[0], outputs[1][:, :, 0])
    assert np.ptp(outputs[0]) > 0


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads"), [(3, 2, [0, 0, 0, 0]), (2, 3, [1, 1, 1, 1]), (3, 2, [1, 0, 1, 0])]
)
@pytest.mark.parametrize("size", [(7, 8), (6, 5)])
def test_pools_may_leave_the_map_where_ceil_mode_says_so(
    kind: str, kernel: int, strides: int, pads: list[int], size: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    net = Net((1, 2, *size))
    options: dict[str, Any] = {
        "ceil_mode": 1,
        "kernel_shape": [kernel] * 2,
        "strides": [strides] * 2,
        "pads": pads,
    }
    x = np.random.default_rng(2).normal(size=net.shape).astype(np.float32)
    given = {"kernel_size": kernel, "stride": strides, "padding": tuple(pads[:2]), "ceil_mode": True}
    for counts in (0, 1) if kind == "AveragePool" else (0,):
        if kind == "AveragePool":
            options["count_include_pad"] = counts
            wanted = torch.nn.functional.avg_pool2d(
                torch.from_numpy(x), **given, count_include_pad=bool(counts)
            )
        else:
            wanted = torch.nn.functional.max_pool2d(torch.from_numpy(x), **given)
        output = net.add(kind, "x", **options)
        got = make_program(net.model(output)).run({"x": x})[output]
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-6, atol=1e-6)
        net.nodes.pop()


def test_accumulators_are_exact_or_refused() -> None:
    assert exact_dtype(2**24 - 1) is np.float32
    assert exact_dtype(2**24) is np.float64
    with pytest.raises(ModelError, match="2\\*\\*53"):
        exact_dtype(2.0**53)


def test_bfloat16_rounds_half_to_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.14159], np.float32)
    assert round_bfloat16(values).tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -3.140625]


def test_other_operators_run_in_onnx_s_evaluator() -> None:
    net = Net((1, 2, 3, 3))
    model = net.model(net.add("Elu", net.add("LeakyRelu", "x", alpha=0.1), alpha=0.5))
    x = np.random.default_rng(0).normal(size=net.shape).astype(np.float32)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(next(iter(make_program(model).run({"x": x}).values())), wanted, rtol=1e-6)


def test_given_integers_replace_computed_ones_for_later_layers_only() -> None:
    net = Net((1, 1, 1, 2))
    model = net.model(net.pair(net.pair("x", 1.0, np.uint8(0)), 1.0, np.uint8(0)))
    program = make_program(model)
    first, second = program.quantized_names
    x = np.array([[[[3, 4]]]], np.float32)
    found = program.run({"x": x}, [first, second], {first: np.array([[[[7, 8]]]], np.uint8)})
    assert found[first].ravel().tolist() == [3, 4]
    assert found[second].ravel().tolist() == [7, 8]


@pytest.mark.parametrize(
    "options", [{"rounding": "up"}, {"bias": "int8"}, {"accumulate": "fast"}, {"float_dtype": "f16"}]
)
def test_options_are_checked(options: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        get_target("reference", **options)


@pytest.mark.parametrize("kind", ["eca", "coord", "triplet", "se", "cbam"])
def test_runs_every_attention_in_float(kind: str) -> None:
    pytest.importorskip("torch")
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
    try:
        from export_networks import SHAPE, make_edge, make_images
    finally:
        sys.path.pop(0)
    import onnxruntime as ort

    from edgeattn.export.float_onnx import export_float

    model = export_float(make_edge(kind), SHAPE).model
    image = make_images(1)[0]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = model.graph.input[0].name
    got = make_program(model).run({name: image})[model.graph.output[0].name]
    np.testing.assert_allclose(got, session.run(None, {name: image})[0], rtol=1e-3, atol=1e-4)


def test_a_concat_keeps_constants_among_quantized_tensors() -> None:
    """Blank frames before and behind a sequence are constants of the network, not tensors with a scale."""
    net = Net((1, 4, 2, 2))
    blank = net.const(np.full((1, 1, 2, 2), 0.5, np.float32))
    joined = net.add("Concat", blank, net.pair("x", 0.1, np.uint8(10)), blank, axis=1)
    model = net.model(net.pair(joined, 0.1, np.uint8(10)))
    x = np.linspace(-1, 2, 16, dtype=np.float32).reshape(1, 4, 2, 2)
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    (got,) = make_program(model).run({"x": x}).values()
    assert got.shape == (1, 6, 2, 2)
    assert np.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_grid_sample_equals_onnx(padding: str, aligned: int) -> None:
    net = Net((2, 3, 5, 7))
    random = np.random.default_rng(0)
    grid = net.const(random.uniform(-1.3, 1.3, (2, 4, 6, 2)).astype(np.float32))
    model = net.model(
        net.add("GridSample", "x", grid, mode="linear", padding_mode=padding, align_corners=aligned)
    )
    x = random.standard_normal((2, 3, 5, 7)).astype(np.float32)
    (got,) = make_program(model).run({"x": x}).values()
    assert np.allclose(got, ReferenceEvaluator(model).run(None, {"x": x})[0], atol=1e-5)
