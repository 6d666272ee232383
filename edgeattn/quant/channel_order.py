"""Put channels in an order in which no two large weights are neighbours, so that 16-bit sums have room for free.

x86 kernels without VNNI add products of neighbouring input channels in 16 bits (`edgeattn.quant.pairs`). A row whose
largest weights meet in such a pair needs a coarser scale, and so all its weights lose precision. But which channels are
neighbours is for us to choose: the order of inner channels is arbitrary. Channels are paired here so that large weights
of one sign meet small ones, in every row of every layer that reads the channels: a matching of least cost, found by a
greedy start and exchanges between two pairs. Rows of layers that read many channels and write few, such as the
projections of inverted residuals, then keep all their bits; a plan's provenance says what all rows lose in both orders.

The order changes no number: integers are summed exactly, and a plan holds everything in the float graph's own order. Only
graphs that are exported have their channels in the plan's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import ModelError
from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.channel_classes import ChannelClass, find_channel_classes
from edgeattn.quant.pairs import LARGEST_SAFE_PAIR, pair_safe_scales
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import WEIGHT_LIMIT, QuantPlan

__all__ = ["Order", "apply_channel_orders", "input_orders", "order_channels"]

_SHARPNESS = 0.1
"""Of the cost of a pair, which grows e-fold with every 1 / sharpness steps that the sum of its weights is larger."""
_PASSES = 30
_LEAST_GAIN = 1e-9
_LEAST_CHANNELS = 4

Order = NDArray[np.int64]


def order_channels(plan: QuantPlan, graph: Graph, place: Placement) -> QuantPlan:
    """Return the plan with an order of channels in which weights can keep fine scales and no pair saturates.

    Args:
        plan: Complete plan; its scales say how large weights are.
        graph: Canonical fp32 graph that it belongs to.
        place: The axes of the weights.
    """
    plan = plan.model_copy(update={"channel_orders": {}})
    adjusted = Graph(graph.to_model())
    apply_plan_constants(adjusted, plan.model_copy(update={"bias_shift": {}, "roundings": {}}), "u8")
    orders = {}
    kept, found = [np.ones(0)], [np.ones(0)]
    for item in find_channel_classes(graph):
        rows = _rows(item, adjusted, plan, place)
        if item.channels < _LEAST_CHANNELS or not rows:
            continue
        order = _matching(_pair_costs([weight / _by_row(scales, weight) for weight, scales in rows]))
        before, after = _losses(rows, np.arange(item.channels)), _losses(rows, order)
        is_better = bool(after.sum() < before.sum())
        if is_better:
            orders[item.name] = order.tolist()
        kept.append(before)
        found.append(after if is_better else before)
    provenance = dict(plan.provenance)
    if orders:
        before, after = np.concatenate(kept), np.concatenate(found)
        provenance["channel_order"] = (
            f"{len(orders)} groups; rounding errors of the {len(after)} rows that read them have {after.mean():.2f} times "
            f"their power if no pair may saturate, {before.mean():.2f} times in the float graph's order"
        )
    return plan.model_copy(update={"channel_orders": orders, "provenance": provenance})


def apply_channel_orders(graph: Graph, orders: Mapping[str, Sequence[int]]) -> dict[str, Order]:
    """Put a graph's channels in another order, in place.

    Args:
        graph: Float graph, its constants under their own names.
        orders: By class of tensors, the channels in their new order.

    Returns:
        By weight, the new order of its output channels, which scales kept elsewhere have to take on.

    Raises:
        ModelError: If the graph has no such class, or an order is none of its channels.
    """
    written: dict[str, Order] = {}
    for item, order in _matched(graph, orders):
        for name, axis in item.readers:
            graph.constants[name] = np.ascontiguousarray(np.take(graph.constants[name], order, axis))
        for name, axis, start in item.writers:
            value = graph.constants[name]
            places = np.arange(value.shape[axis])
            places[start : start + len(order)] = start + order
            graph.constants[name] = np.ascontiguousarray(np.take(value, places, axis))
            # Of a layer whose output is cut in parts, each part has an order.
            written[name] = written[name][places] if name in written else places
    return written


def input_orders(graph: Graph, orders: Mapping[str, Sequence[int]]) -> dict[str, Order]:
    """Return, by weight, the order in which exported graphs hold the channels that it reads.

    Args:
        graph: Canonical fp32 graph.
        orders: Of a plan that belongs to it.

    Raises:
        ModelError: If the graph has no such class, or an order is none of its channels.
    """
    return {name: order for item, order in _matched(graph, orders) for name, _ in item.readers}


def _matched(graph: Graph, orders: Mapping[str, Sequence[int]]) -> list[tuple[ChannelClass, Order]]:
    classes = {item.name: item for item in find_channel_classes(graph)} if orders else {}
    found = []
    for name, values in orders.items():
        item = classes.get(name)
        if item is None or sorted(values) != list(range(item.channels)):
            raise ModelError(
                f"The plan puts {len(values)} channels of {name!r} in another order, which the graph lacks or joins "
                "otherwise. A plan belongs to one graph: calibrate this one."
            )
        found.append((item, np.asarray(values, np.int64)))
    return found


def _rows(
    item: ChannelClass, graph: Graph, plan: QuantPlan, place: Placement
) -> list[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Return weights (O, C, ...) that add up the channels in pairs, and their scales."""
    found = []
    for name, _ in item.readers:
        # Only integers add up to the same in any order.
        if name not in plan.weights:
            return []
        rows = np.moveaxis(graph.constants[name], place.weights[name], 0)
        # With an odd number of channels, those of two places of a kernel may meet.
        if item.channels % 2 and rows[0, 0].size > 1:
            return []
        found.append((rows, np.asarray(plan.weights[name])))
    return found


def _by_row(scales: NDArray[np.float64], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return scales.reshape((-1,) + (1,) * (rows.ndim - 1))


def _losses(
    rows: Sequence[tuple[NDArray[np.float32], NDArray[np.float64]]], order: Order
) -> NDArray[np.float64]:
    """Return, for every row, by how much its rounding error grows in power if no pair may saturate."""
    factors = [pair_safe_scales(weight[:, order], scales, 0) / scales for weight, scales in rows]
    result: NDArray[np.float64] = np.square(np.concatenate(factors))
    return result


def _pair_costs(weights: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return (C, C): what it costs that two channels are neighbours.

    The sum over rows of exp(sharpness * (size of the pair's sum - the largest safe one)), as if the two had the one sign
    and as if they had the other; with opposite signs it is next to nothing. Such a cost is a product of matrices.

    Args:
        weights: (O, C, ...) in steps of their grids.
    """
    channels = weights[0].shape[1]
    costs = np.zeros((channels, channels))
    for weight in weights:
        rows = weight.reshape(len(weight), channels, -1).transpose(0, 2, 1).reshape(-1, channels)
        rows = np.clip(rows, -WEIGHT_LIMIT, WEIGHT_LIMIT)
        for signed in (rows, -rows):
            size = np.exp(_SHARPNESS * (signed - LARGEST_SAFE_PAIR / 2))
            costs += size.T @ size
    np.fill_diagonal(costs, np.inf)
    return costs


def _matching(costs: NDArray[np.float64]) -> Order:
    """Return the channels in an order whose neighbours (0 and 1, 2 and 3, ...) cost little together.

    Args:
        costs: (C, C), symmetric, infinite on the diagonal.
    """
    finite = np.where(np.isfinite(costs), costs, 0.0)
    free = np.ones(len(costs), np.bool_)
    single: list[int] = []
    if len(costs) % 2:
        single = [int(finite.sum(1).argmax())]
        free[single] = False
    found: list[tuple[int, int]] = []
    for one in np.argsort(-finite.sum(1), kind="stable"):
        if free[one]:
            free[one] = False
            other = int(np.where(free, costs[one], np.inf).argmin())
            free[other] = False
            found.append((int(one), other))
    pairs = np.asarray(found)
    own = costs[pairs[:, 0], pairs[:, 1]]
    for _ in range(_PASSES):
        moved = False
        for index in np.argsort(-own, kind="stable"):
            one, other = pairs[index]
            first, second = pairs.T
            now = own[index] + own
            gains = np.stack(
                [
                    now - costs[one, first] - costs[other, second],
                    now - costs[one, second] - costs[other, first],
                ]
            )
            gains[:, index] = -np.inf
            way, partner = np.unravel_index(int(gains.argmax()), gains.shape)
            if gains[way, partner] <= _LEAST_GAIN * now[partner]:
                continue
            moved = True
            near, far = pairs[partner][:: -1 if way else 1]
            pairs[index], pairs[partner] = (one, near), (other, far)
            own[index], own[partner] = costs[one, near], costs[other, far]
        if not moved:
            break
    return np.concatenate([pairs.reshape(-1), np.asarray(single, np.int64)])
