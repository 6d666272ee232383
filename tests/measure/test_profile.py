"""Attribution and roofline, on graphs small enough to work out by hand."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeattn.measure import peaks as peaks_module
from edgeattn.measure.peaks import Peaks, copy_bandwidth
from edgeattn.measure.profile import Profile, make_profile
from edgeattn.measure.work import Work, read_work
from edgeattn.onnx_graph import Graph
from edgeattn.targets import LayerTime
from edgeattn.targets.executed import ExecutedLayer

CHANNELS, SIZE = 8, 4
MAP = CHANNELS * SIZE * SIZE
PEAKS = Peaks(1, {"int8": 1e9, "float": 1e8}, 1e9)


class Network:
    """Writes a quantized graph; tensors carry their module's path, as the exporter names them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def pair(self, tensor: str) -> str:
        self.constants[f"{tensor}.scale"] = np.float32(0.1)
        self.constants[f"{tensor}.zero_point"] = np.uint8(0)
        parameters = [f"{tensor}.scale", f"{tensor}.zero_point"]
        stored = self.node("QuantizeLinear", [tensor, *parameters], f"{tensor}.quantized")
        return self.node("DequantizeLinear", [stored, *parameters], f"{tensor}.dequantized")

    def conv(self, source: str, name: str, weight: str, shape: tuple[int, ...], group: int = 1) -> str:
        self.constants[f"{weight}.quantized"] = np.ones(shape, np.int8)
        self.constants[f"{weight}.scale"] = np.ones(shape[0], np.float32)
        self.constants[f"{weight}.zero_point"] = np.zeros(shape[0], np.int8)
        parts = [f"{weight}.{part}" for part in ("quantized", "scale", "zero_point")]
        self.node("DequantizeLinear", parts, f"{weight}.dequantized", axis=0)
        pads = [shape[2] // 2] * 4
        return self.node("Conv", [source, f"{weight}.dequantized"], name, group=group, pads=pads)

    def work(self, output: str) -> Work:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, CHANNELS, SIZE, SIZE))],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()],
        )
        return read_work(Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])))


def block(gate: str = "attention", swish: bool = False) -> Work:
    """A depthwise and a pointwise convolution, a gate between them, and the residual add."""
    n, path = Network(), "features/1/conv"
    x = n.pair("input")
    y = n.pair(
        n.conv(x, f"{path}/0/2/hardtanh/0", "features.1.conv.0.0.weight", (CHANNELS, 1, 3, 3), CHANNELS)
    )
    pooled = n.pair(n.node("GlobalAveragePool", [y], f"{path}/{gate}/pool/avg_pool2d/0"))
    shape = (CHANNELS, CHANNELS, 1, 1)
    squeezed = n.conv(pooled, f"{path}/{gate}/fc/conv2d/0", f"features.1.conv.{gate}.fc.weight", shape)
    if swish:
        squeezed = n.node("HardSwish", [n.pair(squeezed)], f"{path}/{gate}/act/hardswish/0")
    squashed = n.node("Sigmoid", [n.pair(squeezed)], f"{path}/{gate}/sigmoid/sigmoid/0")
    y = n.pair(n.node("Mul", [y, n.pair(squashed)], f"{path}/{gate}/mul/0"))
    y = n.pair(n.conv(y, f"{path}/2/batch_norm/0", "features.1.conv.1.weight", shape))
    return n.work(n.pair(n.node("Add", [x, y], "features/1/add/0")))


def timed(*layers: tuple[str, str, float], dtype: str = "int8") -> list[LayerTime]:
    return [LayerTime(name, kind, dtype, time) for name, kind, time in layers]


def with_rest(executed: list[ExecutedLayer], work: Work, *covered: str) -> list[ExecutedLayer]:
    """Add an untimed layer for every operation but the covered ones."""
    rest = [name for name in work.operations if name not in covered]
    return executed + [ExecutedLayer(f"layer of {name}", "Kernel", (name,)) for name in rest]


def by_name(profile: Profile) -> dict[str, Any]:
    return {layer.name: layer for layer in profile.layers}


def test_multiplications_and_bytes_are_those_of_the_graph() -> None:
    """Quantized tensors count a byte an element; what the caller gives and takes are floats."""
    work = block()
    depthwise = work.operations["features/1/conv/0/2/hardtanh/0"]
    assert depthwise.macs == MAP * 9
    assert depthwise.weight_bytes == CHANNELS * 9
    assert depthwise.reads == (("input.quantized", MAP),)
    pointwise = work.operations["features/1/conv/2/batch_norm/0"]
    assert pointwise.macs == MAP * CHANNELS
    assert pointwise.reads == (("features/1/conv/attention/mul/0", MAP),)
    assert pointwise.uses == (("features/1/add/0", MAP),)
    assert work.operations["input.quantized"].reads == (("input", 4 * MAP),)
    assert work.operations["features/1/add/0"].uses == ((None, 4 * MAP),)


def test_work_is_sorted_into_kinds_by_module_and_operator() -> None:
    kinds = {name: operation.category for name, operation in block().operations.items()}
    assert kinds["features/1/conv/0/2/hardtanh/0"] == "depthwise convolution"
    assert kinds["features/1/conv/2/batch_norm/0"] == "pointwise convolution"
    assert kinds["features/1/add/0"] == "element-wise add"
    assert kinds["input.quantized"] == "conversion"
    inside = [kind for name, kind in kinds.items() if "/attention/" in name]
    assert inside == ["attention"] * 4


@pytest.mark.parametrize("gate", ["attention", "attention_1", "se"])
def test_attention_is_known_by_insertions_name_and_by_its_structure(gate: str) -> None:
    work = block(gate)
    assert work.attentions == {f"features/1/conv/{gate}"}
    assert work.group_of(f"features/1/conv/{gate}/fc") == f"features/1/conv/{gate}"


def test_an_activation_that_multiplies_by_its_sigmoid_is_no_attention() -> None:
    n = Network()
    x = n.pair(
        n.conv(n.pair("input"), "features/0/0/conv2d/0", "features.0.0.weight", (CHANNELS, CHANNELS, 1, 1))
    )
    y = n.node("Mul", [x, n.node("Sigmoid", [x], "features/0/2/sigmoid/0")], "features/0/2/mul/0")
    assert n.work(y).attentions == frozenset()


@pytest.mark.parametrize(
    ("module", "group"),
    [
        ("features/0/0", "features/0"),
        ("features/2/conv/0/0", "features/2"),
        ("features/2/0/block/1/0", "features/2/0"),
        ("features/2/0", "features/2/0"),
        ("classifier/1", "classifier"),
        ("pool", "pool"),
        ("blocks/0/1/conv_pw", "blocks/0/1"),
        ("conv_stem", "conv_stem"),
        ("features/3/conv/attention/fc", "features/3/conv/attention"),
    ],
)
def test_modules_are_grouped_by_block(module: str, group: str) -> None:
    modules = frozenset(
        {"features/0/0", "features/2/conv/0/0", "features/2/0/block/1/0", "features/2/0", "classifier/1"}
        | {"pool", "blocks/0/1/conv_pw", "conv_stem", module}
    )
    assert Work({}, {}, frozenset({"features/3/conv/attention"}), modules).group_of(module) == group


def test_a_fused_layer_does_the_work_of_its_parts_and_not_what_passes_between_them() -> None:
    """As OpenVINO fuses: the convolution carries the add, whose other branch is read too."""
    work = block()
    originals = (
        "features/1/conv/2/batch_norm/0/WithoutBiases",
        "features/1/conv/2/batch_norm/0",
        "features/1/add/0",
    )
    executed = [ExecutedLayer("fused", "Convolution", originals)]
    profile = make_profile(timed(("fused", "Convolution", 10.0)), executed, work, PEAKS)
    fused = profile.layers[0]
    assert fused.category == "pointwise convolution"
    assert (fused.module, fused.group) == ("features/1/conv/1", "features/1")
    assert fused.macs == MAP * CHANNELS
    # Weights, both branches, and the float result; not the sum's first operand.
    assert fused.bytes == CHANNELS**2 + MAP + MAP + 4 * MAP
    assert fused.attainable_us == pytest.approx(1e6 * max(fused.macs / 1e9, fused.bytes / 1e9))
    assert fused.roofline == pytest.approx(fused.attainable_us / 10.0)


def test_nothing_is_capped_and_shares_add_up() -> None:
    work = block()
    name = "features/1/conv/0/2/hardtanh/0"
    times = timed((name, "Convolution", 0.25), ("features/1/add/0", "Add", 0.75))
    profile = make_profile(times, [], work, PEAKS)
    first = by_name(profile)[name]
    assert first.roofline is not None and first.roofline > 1
    assert first.share == 0.25
    assert sum(group.share for group in profile.modules) == pytest.approx(1)
    assert sum(group.share for group in profile.categories) == pytest.approx(1)
    assert profile.total.latency_us == 1.0
    assert profile.total.macs == sum(layer.macs for layer in profile.layers) > 0


def test_layers_in_float_are_held_against_the_float_peak() -> None:
    name = "features/1/conv/2/batch_norm/0"
    int8 = make_profile(timed((name, "Conv", 5.0)), [], block(), PEAKS).layers[0]
    floating = make_profile(timed((name, "Conv", 5.0), dtype="float32"), [], block(), PEAKS).layers[0]
    assert floating.attainable_us == pytest.approx(1e6 * floating.macs / 1e8)
    assert int8.attainable_us is not None and int8.attainable_us < floating.attainable_us
    unknown = make_profile(timed((name, "", 5.0), dtype=""), [], block(), PEAKS, "fp32").layers[0]
    assert unknown.attainable_us == floating.attainable_us


def test_an_operation_that_was_split_stays_in_its_module() -> None:
    """As ONNX Runtime does: HardSwish becomes two nameless nodes between two conversions."""
    path = "features/1/conv/attention"
    executed = [
        ExecutedLayer(f"{path}/fc/conv2d/0_token_7", "QLinearConv", (f"{path}/fc/conv2d/0_token_6",)),
        ExecutedLayer("dq", "DequantizeLinear", (f"{path}/fc/conv2d/0.dequantized_token_8",), (0,)),
        ExecutedLayer("", "HardSigmoid", ("_token_9",), (1,)),
        ExecutedLayer("", "Mul", ("_token_10",), (1, 2)),
        ExecutedLayer("q", "QuantizeLinear", (f"{path}/act/hardswish/0.quantized_token_11",), (3,)),
    ]
    times = timed(
        (f"{path}/fc/conv2d/0_token_7", "QLinearConv", 4.0),
        ("dq", "DequantizeLinear", 1.0),
        ("HardSigmoid_12", "HardSigmoid", 2.0),
        ("Mul_13", "Mul", 2.0),
        ("q", "QuantizeLinear", 1.0),
    )
    work = block(swish=True)
    executed = with_rest(executed, work, f"{path}/fc/conv2d/0", f"{path}/act/hardswish/0")
    profile = make_profile(times, executed, work, PEAKS)
    assert {layer.module for layer in profile.layers[2:5]} == {f"{path}/act"}
    assert {layer.category for layer in profile.layers[:5]} == {"attention"}
    assert f"{path}/act/hardswish/0" in by_name(profile)["Mul_13"].operations
    assert by_name(profile)["q"].attainable_us == 0.0


def test_conversions_belong_to_what_they_serve() -> None:
    """A reorder comes from no operation and does no work that the network needs."""
    executed = [
        ExecutedLayer("input_abcd_acdb_conv", "Reorder", ()),
        ExecutedLayer("conv", "Convolution", ("features/1/conv/0/2/hardtanh/0",), (0,)),
        ExecutedLayer("back", "Reorder", (), (1,)),
    ]
    times = timed(
        ("input_abcd_acdb_conv", "Reorder", 1.0), ("conv", "Convolution", 2.0), ("back", "Reorder", 3.0)
    )
    layers = by_name(make_profile(times, executed, block(), PEAKS))
    for name in ("input_abcd_acdb_conv", "back"):
        assert (layers[name].category, layers[name].group) == ("conversion", "features/1")
        assert layers[name].bytes == 0


def test_a_fused_name_is_taken_apart_where_there_is_no_graph() -> None:
    times = timed(("features/1/conv/2/batch_norm/0 + features/1/add/0", "", 3.0), dtype="")
    layer = make_profile(times, [], block(), PEAKS).layers[0]
    assert {"features/1/conv/2/batch_norm/0", "features/1/add/0"} <= set(layer.operations)
    assert layer.category == "pointwise convolution"


def test_a_product_that_the_runtime_left_out_is_nobodys_work() -> None:
    """Two branches that read the same map may be the same computation."""
    work, left_out = block(), "features/1/conv/0/2/hardtanh/0"
    executed = with_rest([], work, left_out)
    profile = make_profile(timed(*((layer.name, layer.kind, 1.0) for layer in executed)), executed, work)
    assert profile.total.macs == sum(o.macs for o in work.operations.values()) - MAP * 9
    assert left_out not in {name for layer in profile.layers for name in layer.operations}


def test_a_layer_too_short_for_the_clock_still_does_its_work() -> None:
    work = block()
    executed = with_rest([], work)
    profile = make_profile(timed((executed[1].name, "Kernel", 1.0)), executed, work, PEAKS)
    assert profile.total.macs == sum(o.macs for o in work.operations.values())
    assert profile.total.latency_us == 1.0
    assert {layer.roofline is None for layer in profile.layers if not layer.latency_us} == {True}


def test_layers_are_known_by_the_name_of_a_node_too() -> None:
    work = dataclasses.replace(block(), tensors={"Add_7": "features/1/add/0"})
    layer = make_profile(timed(("Add_7", "Add", 1.0)), [], work).layers[0]
    assert layer.operations[0] == "features/1/add/0"


def test_what_cannot_be_attributed_is_shown() -> None:
    times = timed(("features/1/add/0", "Add", 3.0), ("mystery", "Kernel", 1.0))
    profile = make_profile(times, [], block())
    assert by_name(profile)["mystery"].group == "unattributed"
    rest = profile.categories[-1]
    assert (rest.name, rest.share) == ("unattributed", 0.25)
    assert profile.total.roofline is None


def test_nameless_layers_are_told_apart_only_where_all_of_their_kind_are_there() -> None:
    work, names = block(), ("features/1/conv/attention/mul/0", "features/1/add/0")
    executed = with_rest([ExecutedLayer("", "Mul", (name,)) for name in names], work, *names)
    both = make_profile(timed(("Mul_1", "Mul", 1.0), ("Mul_2", "Mul", 1.0)), executed, work)
    assert [layer.module for layer in both.layers[:2]] == ["features/1/conv/attention", "features/1"]
    one = make_profile(timed(("Mul_2", "Mul", 1.0)), executed, work)
    assert by_name(one)["Mul_2"].category == "unattributed"


def test_bandwidth_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=0.25)
    monkeypatch.setattr(peaks_module.time, "perf_counter", lambda: next(clock))
    assert copy_bandwidth(2, megabytes=1, seconds=1.0) == 2 * (1 << 20) / 0.25


def test_a_missing_peak_is_no_number() -> None:
    assert Peaks(1, {"int8": 1e9}, 1e9).attainable_us(10, 10, "float") is None
    assert Peaks(1, {}, 1e9).attainable_us(0, 1000, "float") == pytest.approx(1.0)
