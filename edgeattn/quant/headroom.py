"""Weight scales that leave room in 16-bit sums, which x86 kernels without VNNI make on the way.

Such kernels multiply with ``vpmaddubsw``: products of neighbouring input channels, u8 x s8, are added in
pairs, and a pair that does not fit 16 bits saturates without a word (Intel's Software Developer's Manual,
"PMADDUBSW"). 255 x 127 x 2 = 64,770 does not fit 32,767. ONNX Runtime and OpenVINO both run it on CPUs with
AVX2 only; there a MobileNetV2 of 98 % agreement with FP32 fell to 80 %. The usual way out is seven-bit
weights everywhere. Here each output channel's scale grows by what costs least on calibration images: a larger
scale rounds weights more coarsely, a smaller one saturates more often. Most channels keep all their bits,
and the others lose a fraction of one.

Depthwise kernels of both runtimes sum in 32 bits and need no room.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import NodeProto

from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.channel_order import Order, input_orders
from edgeattn.quant.pairs import pair_safe_scales
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import QuantParams, QuantPlan, quantize_weight
from edgeattn.quant.simulation import batches_of, simulated
from edgeattn.quant.torch_graph import Quantizer, TorchGraph, fake_quantize, quantizers_of

__all__ = ["PAIR_LIMIT", "Headroom", "adds_pairs", "largest_pairs", "leave_headroom", "saturating_product"]

PAIR_LIMIT = 32767
"""Largest sum of two products that 16 bits hold."""
POSITIONS = 1024
"""Places of maps looked at for each layer, spread over all images."""
_STEPS = 4
_MARGIN = 1.02  # for places that were not looked at
_PACKING = 4  # int8 kernels take input channels in groups of four bytes
_CHUNK = 1 << 23

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Headroom:
    """What `leave_headroom` did.

    Attributes:
        plan: The plan with other weight scales.
        channels: Output channels of layers whose kernels add in pairs.
        widened: How many of them got a larger scale.
        bits: What those lost on average, in bits of weight.
    """

    plan: QuantPlan
    channels: int
    widened: int
    bits: float


@torch.no_grad()
def leave_headroom(
    plan: QuantPlan,
    graph: Graph,
    place: Placement,
    images: Sequence[NDArray[np.float32]],
    progress: Progress | None = None,
    *,
    proven: bool = False,
) -> Headroom:
    """Widen the weight scales of output channels whose pairs of products saturate on `images`.

    Args:
        plan: Complete plan; its profile u8 is what x86 kernels run.
        graph: The float graph that it belongs to.
        place: Gives the axes of the weights.
        images: Arrays (1, C, H, W).
        progress: Called with (done, total).
        proven: Widen until no image at all can make a pair saturate, whatever that costs.
    """
    network = simulated(graph, plan, "u8", place.weights)
    layers = [node for node in network.graph.nodes if adds_pairs(node, network.graph, plan)]
    orders = input_orders(graph, plan.channel_orders)
    samples = {} if proven else _sample(network, layers, plan, images, orders)
    # Other scales have other roundings.
    plan = plan.model_copy(update={"roundings": {}})
    adjusted = simulated(graph, plan.model_copy(update={"weights": {}}), "u8", place.weights).constants
    weights = dict(plan.weights)
    factors = []
    for done, node in enumerate(layers):
        if progress:
            progress(done, len(layers))
        name, axis = node.input[1], place.weights[node.input[1]]
        rows = np.moveaxis(adjusted[name].numpy(), axis, 0)
        if name in orders:
            rows = rows[:, orders[name]]
        zero_point = plan.activations[node.input[0]].params("u8").zero_point
        scales = np.asarray(weights[name])
        if proven:
            factor = pair_safe_scales(rows, scales, 0) / scales
        else:
            factor = _best_factors(samples[name], rows, scales, zero_point)
        weights[name] = (scales * factor).tolist()
        factors.append(factor)
    if progress:
        progress(len(layers), len(layers))
    every = np.concatenate(factors) if factors else np.ones(0)
    wider = every[every > 1]
    return Headroom(
        plan.model_copy(update={"weights": weights}),
        len(every),
        len(wider),
        float(np.log2(wider).mean()) if len(wider) else 0.0,
    )


def saturating_product(columns: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return ``columns @ weights.T`` as vpmaddubsw makes it: sums of neighbours clamped to 16 bits.

    Args:
        columns: (P, K) unsigned integers, as floats.
        weights: (O, K) signed integers, as floats.

    Returns:
        (P, O).
    """
    result = torch.zeros(len(columns), len(weights))
    for pairs in _pair_sums(columns, weights):
        result += pairs.clamp_(-PAIR_LIMIT - 1, PAIR_LIMIT).sum(0)
    return result


def _pair_sums(columns: torch.Tensor, weights: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield (pairs, P, O), a part of the pairs at a time: what each pair of neighbours adds up to."""
    if columns.shape[1] % 2:
        columns, weights = F.pad(columns, (0, 1)), F.pad(weights, (0, 1))
    left = columns.T.reshape(-1, 2, len(columns)).transpose(1, 2)
    right = weights.T.reshape(-1, 2, len(weights))
    chunk = max(1, _CHUNK // (len(columns) * len(weights)))
    for start in range(0, len(left), chunk):
        yield torch.bmm(left[start : start + chunk], right[start : start + chunk])


def _best_factors(
    columns: list[torch.Tensor], rows: NDArray[np.float32], scales: NDArray[np.float64], zero_point: int
) -> NDArray[np.float64]:
    """Return by how much each output channel's scale should grow.

    Args:
        columns: (P, K) activations in the orders in which kernels may pair them.
        rows: (O, C, ...) float weights.
        scales: Of the O output channels.
        zero_point: Of the activations.
    """
    factors = np.ones(len(rows))
    needed = np.ones(len(rows))
    for order in columns:
        integers = _in_order(quantize_weight(rows, scales), order)
        largest = _largest_pairs(order, integers)
        needed = np.maximum(needed, np.where(largest > PAIR_LIMIT, largest * _MARGIN / PAIR_LIMIT, 1.0))
    wanted = np.flatnonzero(needed > 1.0)
    if not len(wanted):
        return factors
    exact = [(order - zero_point) @ _in_order(rows[wanted], order).T for order in columns]
    best = np.full(len(wanted), np.inf)
    for step in range(_STEPS + 1):
        factor = needed[wanted] ** (step / _STEPS)
        grid = scales[wanted] * factor
        errors = np.zeros(len(wanted))
        for order, target in zip(columns, exact, strict=True):
            integers = _in_order(quantize_weight(rows[wanted], grid), order)
            sums = saturating_product(order, integers) - zero_point * integers.sum(1)
            off = (sums * torch.from_numpy(grid.astype(np.float32)) - target).square().mean(0)
            errors = np.maximum(errors, off.double().numpy())
        better = errors < best
        best[better] = errors[better]
        factors[wanted[better]] = factor[better]
    return factors


def largest_pairs(columns: torch.Tensor, weights: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return the largest magnitude that sums of two products reach, by output channel.

    Args:
        columns: Unsigned activations as floats (P, K), by channel and then by tap.
        weights: (O, C, ...).
    """
    orders = _kernel_orders(columns, weights.shape[1])
    found = [_largest_pairs(order, _in_order(weights, order)) for order in orders]
    return np.asarray(np.max(found, axis=0), np.float64)


def _largest_pairs(order: torch.Tensor, weights: torch.Tensor) -> NDArray[np.float64]:
    """Return the largest magnitude of a pair's sum by output channel."""
    result = torch.zeros(len(weights))
    for pairs in _pair_sums(order, weights):
        result = torch.maximum(result, pairs.abs_().amax(dim=(0, 1)))
    return result.double().numpy()


def _in_order(rows: NDArray[np.float32] | NDArray[np.int8], order: torch.Tensor) -> torch.Tensor:
    """Return weights (O, K) in the order of `order`'s columns: by tap, then by channel, perhaps padded."""
    value = torch.from_numpy(rows.astype(np.float32))
    value = value.reshape(*value.shape[:2], -1).transpose(1, 2)
    missing = order.shape[1] - value.shape[1] * value.shape[2]
    if missing:
        value = F.pad(value, (0, missing // value.shape[1]))
    return value.reshape(len(value), -1)


def adds_pairs(node: NodeProto, graph: Graph, plan: QuantPlan) -> bool:
    """Whether a layer is INT8, and its kernels add products of neighbouring channels."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in plan.weights:
        return False
    if node.input[0] not in plan.activations:
        return False
    # Convolutions in groups go through kernels of their own; depthwise ones sum in 32 bits.
    is_plain = int(attribute(node, "group", 1)) == 1 and graph.constants[node.input[1]].ndim == 4
    return node.op_type != "Conv" or is_plain


def _sample(
    network: TorchGraph,
    layers: Sequence[NodeProto],
    plan: QuantPlan,
    images: Sequence[NDArray[np.float32]],
    orders: Mapping[str, Order],
) -> dict[str, list[torch.Tensor]]:
    """Return by weight the activations (P, K) that its layer reads, at places spread over all images.

    Their channels are in the order in which an exported graph has them.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in layers:
        readers.setdefault(node.input[0], []).append(node)
    found: dict[str, list[list[torch.Tensor]]] = {}
    batches = batches_of(network, images)
    share = max(1, POSITIONS // len(batches))
    generator = torch.Generator().manual_seed(0)

    def observed(name: str, params: QuantParams) -> Quantizer:
        def quantize(value: torch.Tensor) -> torch.Tensor:
            result = fake_quantize(value, params)
            integers = (result / params.scale).round() + params.zero_point
            for node in readers[name]:
                weight = node.input[1]
                shape, order = network.constants[weight].shape, orders.get(weight)
                ordered = integers if order is None else integers[:, torch.from_numpy(order)]
                found.setdefault(weight, []).append(
                    _columns(node, ordered, shape, params.zero_point, share, generator)
                )
            return result

        return quantize

    quantizers = quantizers_of(plan, "u8")
    for name in readers:
        quantizers[name] = observed(name, plan.activations[name].params("u8"))
    for batch in batches:
        network(batch, quantizers)
    return {name: [torch.cat(parts) for parts in zip(*orders, strict=True)] for name, orders in found.items()}


def _columns(
    node: NodeProto,
    integers: torch.Tensor,
    shape: Sequence[int],
    zero_point: int,
    count: int,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Return up to `count` columns that a layer multiplies, in the orders that kernels use."""
    if node.op_type != "Conv":
        rows = integers.reshape(-1, integers.shape[-1])
        return [rows[_choose(len(rows), count, generator)]]
    channels, kernel = shape[1], tuple(shape[2:])
    strides = tuple(int(item) for item in attribute(node, "strides", [1, 1]))
    if kernel == (1, 1):
        kept = integers[:, :, :: strides[0], :: strides[1]]
        rows = kept.movedim(1, -1).reshape(-1, channels)
        return [rows[_choose(len(rows), count, generator)]]
    pads = [int(item) for item in attribute(node, "pads", [0, 0, 0, 0])]
    padded = F.pad(integers, (pads[1], pads[3], pads[0], pads[2]), value=float(zero_point))
    dilations = tuple(int(item) for item in attribute(node, "dilations", [1, 1]))
    image = torch.randint(len(padded), (1,), generator=generator)
    windows = F.unfold(
        padded[image], kernel, dilation=(dilations[0], dilations[1]), stride=(strides[0], strides[1])
    )[0].T
    windows = windows[_choose(len(windows), count, generator)]
    return _kernel_orders(windows, channels)


def _kernel_orders(windows: torch.Tensor, channels: int) -> list[torch.Tensor]:
    """Return columns (P, K), by channel and then by tap, in the orders in which kernels may pair them."""
    by_tap = windows.reshape(len(windows), channels, -1).transpose(1, 2)
    orders = [by_tap.reshape(len(windows), -1)]
    if channels % 2:
        orders.append(F.pad(by_tap, (0, -channels % _PACKING)).reshape(len(windows), -1))
    return orders


def _choose(total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(total, generator=generator)[:count]
