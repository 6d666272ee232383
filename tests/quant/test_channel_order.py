"""Channels in an order in which large weights are no neighbours: finer scales, the same integers."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from quant_networks import SIZE, Builder, pictures, residual_network

from edgeattn.errors import ModelError, ParityError
from edgeattn.export import reorder
from edgeattn.export.qdq import emit_qdq
from edgeattn.measure.pair_saturation import prove_pair_saturation
from edgeattn.onnx_graph import Graph
from edgeattn.quant.channel_order import _matching, apply_channel_orders, input_orders, order_channels
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.headroom import leave_headroom
from edgeattn.quant.placement import place_quantizers
from edgeattn.quant.plan import PROFILES, Profile, QuantPlan
from edgeattn.quant.ptq import fit_to_kernels, make_plan
from edgeattn.targets.reference import make_program

BEFORE = PtqConfig(nncf=False, importance=False, tuning_steps=0, headroom="none", rounding=False)
PROVEN = BEFORE.model_copy(update={"headroom": "proven"})
UNORDERED = PROVEN.model_copy(update={"channel_order": False})


def _plan(model: ModelProto, config: PtqConfig, seed: int = 0) -> QuantPlan:
    return make_plan(model, pictures(8, seed), config)


def _awkward(channels: int = 32) -> ModelProto:
    """A layer with large weights in neighbouring channels, and as many small ones."""
    b = Builder()
    x = b.relu6(b.conv("input", "first", 3, channels), "first_act")
    y = b.conv(x, "second", channels, 6)
    small = np.abs(b.constants["second.weight"]) * 1e-3
    small[:, : channels // 2] = 1.0
    b.constant("second.weight", small)
    return b.model(y, (1, 6, SIZE, SIZE))


def test_large_weights_that_were_neighbours_keep_all_their_bits() -> None:
    model = _awkward()
    free, ordered, unordered = (_plan(model, config) for config in (BEFORE, PROVEN, UNORDERED))
    assert ordered.channel_orders and not unordered.channel_orders and not free.channel_orders
    np.testing.assert_array_equal(ordered.weights["second.weight"], free.weights["second.weight"])
    assert "1.00 times" in ordered.provenance["channel_order"]
    coarser = np.divide(unordered.weights["second.weight"], free.weights["second.weight"])
    assert (coarser > 1.9).all()


@given(st.integers(0, 500))
def test_scales_are_no_coarser_than_in_the_old_order_and_no_pair_saturates(seed: int) -> None:
    model = residual_network(seed, blocks=1)
    free, ordered, unordered = (_plan(model, config, seed) for config in (BEFORE, PROVEN, UNORDERED))

    def lost(plan: QuantPlan) -> float:
        return sum(
            float(np.square(np.divide(plan.weights[name], scales)).sum())
            for name, scales in free.weights.items()
        )

    assert lost(ordered) <= lost(unordered)
    assert not any(item.can_saturate for item in prove_pair_saturation(emit_qdq(model, ordered, "u8")))


def test_in_the_float_graphs_order_pairs_would_saturate() -> None:
    """What the proof above would say, were the order not applied where weights are written."""
    model = _awkward()
    plan = _plan(model, PROVEN)
    kept = emit_qdq(model, plan, "u8", reorders_channels=False)
    assert any(item.can_saturate for item in prove_pair_saturation(kept))
    assert not any(item.can_saturate for item in prove_pair_saturation(emit_qdq(model, plan, "u8")))


@pytest.mark.parametrize("proven", [False, True])
def test_room_is_measured_between_the_neighbours_that_engines_have(proven: bool) -> None:
    graph, random = Graph(_awkward()), np.random.default_rng(3)
    graph.constants["second.weight"] = random.uniform(0.1, 1, (6, 32, 1, 1)).astype(np.float32)
    model, images = graph.to_model(), [4 * image for image in pictures(8)]
    order = random.permutation(32)
    plan = make_plan(model, images, BEFORE)
    moved = Graph(model)
    apply_channel_orders(moved, {"first": order.tolist()})
    ordered = make_plan(moved.to_model(), images, BEFORE)
    found = leave_headroom(
        plan.model_copy(update={"channel_orders": {"first": order.tolist()}}),
        Graph(model),
        place_quantizers(model),
        images,
        proven=proven,
    )
    wanted = leave_headroom(ordered, moved, place_quantizers(model), images, proven=proven)
    elsewhere = leave_headroom(plan, Graph(model), place_quantizers(model), images, proven=proven)
    scales = [item.plan.weights["second.weight"] for item in (found, wanted, elsewhere)]
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-6)
    assert not np.allclose(scales[0], scales[2])


def _logits(model: ModelProto, runtime: str, images: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    if runtime == "reference":
        program = make_program(model)
        return np.concatenate([program.run({"input": image})["logits"] for image in images])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": image})[0] for image in images])


@pytest.mark.parametrize("config", [PROVEN, BEFORE.model_copy(update={"exact": True, "headroom": "proven"})])
@pytest.mark.parametrize("profile", PROFILES)
def test_engines_compute_the_same_integers_in_either_order(profile: Profile, config: PtqConfig) -> None:
    model = residual_network(4)
    plan = _plan(model, config, 4)
    assert len(plan.channel_orders) >= 3
    kept, ordered = (emit_qdq(model, plan, profile, reorders_channels=way) for way in (False, True))
    assert kept != ordered
    images = pictures(4, 5)
    expected = _logits(kept, "reference", images)
    np.testing.assert_array_equal(_logits(ordered, "reference", images), expected)
    if config.exact:
        # In the float graph's order, pairs of products may saturate there.
        np.testing.assert_allclose(_logits(ordered, "ort-cpu", images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("headroom", "exact"), [("measured", False), ("proven", False), ("proven", True)])
def test_learned_roundings_keep_the_room_of_the_new_order(headroom: str, exact: bool) -> None:
    model = residual_network(6)
    changes = {"rounding": True, "headroom": headroom, "exact": exact}
    plan = _plan(model, BEFORE.model_copy(update=changes), 6)
    assert plan.roundings and plan.channel_orders
    found = prove_pair_saturation(emit_qdq(model, plan, "u8"))
    if headroom == "proven":
        assert not any(item.can_saturate for item in found)
    images = pictures(8, 6)
    expected = _logits(emit_qdq(model, plan, "u8", reorders_channels=False), "reference", images)
    np.testing.assert_array_equal(_logits(emit_qdq(model, plan, "u8"), "reference", images), expected)


def test_a_trained_plan_gets_an_order_for_its_own_weights() -> None:
    model = _awkward()
    trained = _plan(model, BEFORE)
    graph, place = Graph(model), place_quantizers(model)
    plan = fit_to_kernels(trained, graph, place, pictures(8), PROVEN)
    assert plan.channel_orders
    np.testing.assert_array_equal(plan.weights["second.weight"], trained.weights["second.weight"])


def test_an_order_survives_the_file(tmp_path: object) -> None:
    plan = _plan(_awkward(), PROVEN)
    path = plan.save(tmp_path / "plan.json")  # type: ignore[operator]
    assert QuantPlan.load(path).channel_orders == plan.channel_orders


@pytest.mark.parametrize(
    "orders",
    [{"first": [0, 1]}, {"first": [0] * 32}, {"absent": list(range(32))}, {"first": list(range(1, 33))}],
)
def test_an_order_that_is_none_of_the_graphs_channels_is_refused(orders: dict[str, list[int]]) -> None:
    graph = Graph(_awkward())
    for function in (apply_channel_orders, input_orders):
        with pytest.raises(ModelError, match="calibrate this one"):
            function(graph, orders)


def test_a_reordering_that_forgets_the_readers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual_network(0)
    plan = _plan(model, PROVEN)
    expected = emit_qdq(model, plan, "u8", reorders_channels=False)
    assert reorder.reorder_channels(expected, model, plan, "u8", pictures(2)) != expected
    wrong = Graph(expected)
    weight = "head.weight.quantized"
    wrong.constants[weight] = wrong.constants[weight][:, ::-1].copy()
    monkeypatch.setattr(reorder, "emit_qdq", lambda *_: wrong.to_model())
    with pytest.raises(ParityError, match="channels in another order"):
        reorder.reorder_channels(expected, model, plan, "u8", pictures(2))


@pytest.mark.parametrize(
    ("moved", "quantized", "message"),
    [(1.0, 0.3, ""), (1.0, 0.9, "the QDQ graph"), (1.2, 0.2, "the float graph")],
    ids=["roundings", "another network", "another order"],
)
def test_roundings_may_fall_otherwise_where_quantization_costs_as_much(
    monkeypatch: pytest.MonkeyPatch, moved: float, quantized: float, message: str
) -> None:
    """An output of 1 in float: quantization takes a fifth off, and the reordered graph puts something on.

    Another output stays as it is: the one that changes most counts.
    """
    model = residual_network(0)
    plan = _plan(model, PROVEN)
    expected = emit_qdq(model, plan, "u8", reorders_channels=False)
    outputs = iter([1.0, moved, 0.8, 0.8 + quantized])
    monkeypatch.setattr(reorder, "_outputs", lambda *_: [np.ones((1, 500)), np.full((1, 10), next(outputs))])
    if message:
        with pytest.raises(ParityError, match=message):
            reorder.reorder_channels(expected, model, plan, "u8", pictures(2))
    else:
        assert reorder.reorder_channels(expected, model, plan, "u8", pictures(2)) != expected


def test_layers_that_stay_float_keep_the_order_of_what_they_read() -> None:
    """Sums of floats depend on it; integers do not."""
    model = _awkward()
    plan = _plan(model, BEFORE)
    floating = {name: scales for name, scales in plan.weights.items() if name != "second.weight"}
    graph, place = Graph(model), place_quantizers(model)
    assert order_channels(plan, graph, place).channel_orders
    assert not order_channels(plan.model_copy(update={"weights": floating}), graph, place).channel_orders


@given(st.integers(0, 10_000), st.integers(4, 7))
def test_a_matching_is_an_order_and_costs_little_more_than_the_best(seed: int, channels: int) -> None:
    costs = np.exp(np.random.default_rng(seed).normal(size=(channels, channels)))
    costs = costs + costs.T
    np.fill_diagonal(costs, np.inf)

    def total(order: object) -> float:
        places = np.asarray(order)[: channels // 2 * 2].reshape(-1, 2)
        return float(costs[places[:, 0], places[:, 1]].sum())

    found = _matching(costs)
    assert sorted(found.tolist()) == list(range(channels))
    if channels % 2 == 0:
        best = min(total(order) for order in itertools.permutations(range(channels)))
        assert total(found) <= 1.5 * best
