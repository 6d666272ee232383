"""The torch interpreter computes what ONNX Runtime computes, float and quantized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from quant_networks import Builder, inverted_residual, pictures, run

from edgeattn.export.canonical_affine import fold_affine
from edgeattn.export.qdq import emit_qdq
from edgeattn.onnx_graph import Graph
from edgeattn.quant import simulation
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import Profile
from edgeattn.quant.ptq import make_plan
from edgeattn.quant.simulation import PlanMeter, batches_of, fitting_batch, simulated
from edgeattn.quant.torch_graph import TorchGraph, quantizers_of


@pytest.mark.parametrize("profile", ["u8", "s8"])
def test_simulation_agrees_with_the_emitted_graph(profile: Profile) -> None:
    model, images = inverted_residual(5), pictures(12)
    plan = make_plan(model, images, PtqConfig(tuning_steps=3))
    network = simulated(Graph(model), plan, profile, place_quantizers(model).weights)
    emitted = emit_qdq(model, plan, profile)
    with torch.no_grad():
        got = np.concatenate(
            [network(torch.from_numpy(x), quantizers_of(plan, profile)).numpy() for x in images]
        )
    expected = np.concatenate([run(emitted, x)[0] for x in images])
    # Sums in another order may round one value to its neighbour, here and there.
    error = np.square(got - expected).sum() / np.square(expected).sum()
    assert error < 1e-4
    assert (got.argmax(1) == expected.argmax(1)).all()


def test_batches_are_used_only_where_the_graph_takes_them() -> None:
    images = pictures(5)
    assert [len(batch) for batch in batches_of(TorchGraph(Graph(inverted_residual())), images, 4)] == [4, 1]
    # A token of the network's own is one, however many images there are.
    b = Builder()
    b.constants["shape"], b.constants["ends"] = np.asarray([1, 3, 64]), np.asarray([0])
    b.constant("token", np.ones((1, 1, 64)))
    x = b.node("Concat", ["token", b.node("Reshape", ["input", "shape"], "rows")], "tokens", axis=1)
    b.constant("w", np.ones((64, 2)))
    y = b.node("Gather", [b.node("MatMul", [x, "w"], "all"), "ends"], "first", axis=1)
    b.constants["flat"] = np.asarray([1, 2])
    graph = Graph(b.model(b.node("Reshape", [y, "flat"], "logits"), (1, 2)))
    assert [len(batch) for batch in batches_of(TorchGraph(graph), images, 4)] == [1] * 5


def test_windows_that_became_part_of_the_batch_keep_batches() -> None:
    """As in MobileViT: one dimension for image, channel and row, others for what lies in a window."""
    b = Builder(1)
    x = b.conv("input", "stem", 3, 8, kernel=3)
    for name, shape in {
        "windows": (32, 2, 4, 2),
        "rows": (1, 8, 16, 4),
        "tokens": (4, 16, 8),
        "back": (1, 4, 16, 8),
    }.items():
        b.constants[name] = np.asarray(shape)
    x = b.node("Transpose", [b.node("Reshape", [x, "windows"], "cut")], "swapped", perm=[0, 2, 1, 3])
    x = b.node("Transpose", [b.node("Reshape", [x, "rows"], "placed")], "last", perm=[0, 3, 2, 1])
    x = b.node("Reshape", [x, "tokens"], "sequences")
    b.constant("w", np.random.default_rng(0).standard_normal((8, 8)))
    x = b.node("Reshape", [b.node("MatMul", [x, "w"], "mixed"), "back"], "joined")
    x = b.node("ReduceMean", [x], "mean", axes=[1, 2], keepdims=0)
    b.constant("head", np.random.default_rng(1).standard_normal((8, 4)))
    model = b.model(b.node("MatMul", [x, "head"], "logits"), (1, 4))
    images = pictures(5)
    network = TorchGraph(Graph(model))
    batches = batches_of(network, images, 4)
    assert [len(batch) for batch in batches] == [4, 1]
    with torch.no_grad():
        got = np.concatenate([network(batch).numpy() for batch in batches])
    expected = np.concatenate([run(model, x)[0] for x in images])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_batches_of_large_maps_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = TorchGraph(Graph(inverted_residual())), pictures(5)
    once = fitting_batch(network.graph)
    assert once > 100
    monkeypatch.setattr(simulation, "_MOST_NUMBERS", simulation._MOST_NUMBERS * 2 // once)
    assert [len(batch) for batch in batches_of(network, images)] == [2, 2, 1]
    monkeypatch.setattr(simulation, "_MOST_NUMBERS", 1)
    assert [len(batch) for batch in batches_of(network, images)] == [1] * 5


def test_a_meter_finds_the_float_graph_perfect() -> None:
    model, images = inverted_residual(), pictures(4)
    place = place_quantizers(model)
    plan = make_plan(model, images, PtqConfig(tuning_steps=0, rounding=False)).model_copy(
        update={"activations": {}, "weights": {}, "channel_scales": {}}
    )
    step = PlanMeter(Graph(model), place, images).step("float", plan, 0.0)
    assert step.agreement_u8 == step.agreement_s8 == 1.0
    assert min(step.sqnr_db_u8, step.sqnr_db_s8) > 100


def with_softmax(model: ModelProto) -> ModelProto:
    """Return a classifier that gives probabilities, and is all but certain of them."""
    changed = ModelProto()
    changed.CopyFrom(model)
    (given,) = changed.graph.output
    for node in changed.graph.node:
        for place, name in enumerate(node.output):
            if name == given.name:
                node.output[place] = "scores"
    changed.graph.initializer.append(numpy_helper.from_array(np.float32(40), "forty"))
    changed.graph.node.append(helper.make_node("Mul", ["scores", "forty"], ["certain"]))
    changed.graph.node.append(helper.make_node("Softmax", ["certain"], [given.name], axis=1))
    return changed


def test_errors_are_those_of_the_scores_where_a_softmax_answers() -> None:
    model, images = inverted_residual(), pictures(4)
    network = TorchGraph(Graph(with_softmax(model)))
    assert network.gives_classes
    plain = TorchGraph(Graph(model))
    for image in images:
        batch = torch.from_numpy(image)
        torch.testing.assert_close(network(batch), 40 * plain(batch))


def test_a_softmax_changes_nothing_about_a_plan() -> None:
    """Probabilities near 1 would tell of no error, and the ladder would end at its first step."""
    model, images = inverted_residual(), pictures(32)
    # How certain an answer is does matter to what its values weigh.
    config = PtqConfig(tuning_steps=4, importance=False)
    steps = [make_plan(canonical(network), images, config).ladder for network in (model, with_softmax(model))]
    for bare, answering in zip(*steps, strict=True):
        assert answering.step.split(":")[0] == bare.step.split(":")[0]
        assert answering.sqnr_db_u8 == pytest.approx(bare.sqnr_db_u8, abs=0.1)


def canonical(model: ModelProto) -> ModelProto:
    graph = Graph(model)
    fold_affine(graph)
    return graph.to_model()
