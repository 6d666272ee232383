"""Choose which weights round up and which down, so that layers compute what their own weights would.

The nearest step is best for a weight that errs alone. In a layer errors add up, and which way each one goes decides
whether they cancel. As in Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv
2004.10568), layers are looked at one after another, each on what the quantized network before it gives, and weights go to
the one of their two neighbouring steps with which the layer's output errs least. Four things differ:

* The squared error of a layer's output is a quadratic form in its weights, made of second moments of its inputs. These
  are summed up once, and a search over single weights then goes downhill (`edgeattn.quant.rounding_search`). On ImageNet's
  MobileNetV2 the paper's relaxation to a sigmoid of one variable for each weight came to the same SQNR, in more time.
* What is wanted is the product of the unrounded weights with these same inputs, not what the float network writes. The
  float network's values hold rare huge ones that a range cuts and the answer ignores; a layer that makes up for them
  makes up for nothing: 3 to 8 dB were lost that way on ImageNet's MobileNetV2.
* Where a layer has a bias, weights answer for what varies in the error only: the bias takes the mean. It takes also
  what scales that have changed since biases were found (headroom, exact grids) did to the mean of a layer: 2 dB there.
* Places of maps count by how much the network's logits depend on them, as in Li et al., "BRECQ" (arXiv 2102.05426,
  section 3.2). Their Fisher information would leave out images that the network is sure of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import NodeProto

from edgeattn.onnx_graph import Graph, attribute
from edgeattn.quant.channel_order import Order, input_orders
from edgeattn.quant.config import Headroom
from edgeattn.quant.headroom import PAIR_LIMIT, adds_pairs, largest_pairs
from edgeattn.quant.pairs import with_safe_pairs
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import PROFILES, Profile, QuantPlan, quantize_weight
from edgeattn.quant.rounding import pack_rounding, second_nearest
from edgeattn.quant.rounding_search import RoundingProblem, choose_rounding
from edgeattn.quant.simulation import adjusted_graph, batches_of, simulated
from edgeattn.quant.torch_graph import TorchGraph, quantizers_of

__all__ = ["LearnedRounding", "learn_rounding"]

POSITIONS = 4096
"""Places of maps that a layer learns from, spread over all images."""
PAIR_POSITIONS = 1024
_LEAST_IMPORTANCE = 1e-2
"""Of the mean: a place on which no answer depended on these images may matter on others."""
_TINY = 1e-30

Tensor = torch.Tensor
Places = tuple[Tensor, Tensor] | None


@dataclasses.dataclass(frozen=True)
class LearnedRounding:
    """What `learn_rounding` did.

    Attributes:
        plan: The plan with roundings, and biases that keep the means.
        weights: How many weights it looked at.
        changed: How many of them take their second nearest integer.
    """

    plan: QuantPlan
    weights: int
    changed: int


def learn_rounding(
    plan: QuantPlan,
    graph: Graph,
    place: Placement,
    images: Sequence[NDArray[np.float32]],
    progress: Callable[[int, int], None] | None = None,
    fixed: frozenset[str] = frozenset(),
    *,
    settled: Mapping[str, Sequence[float]] | None = None,
    headroom: Headroom = "none",
) -> LearnedRounding:
    """Choose one of the two neighbouring integers for every weight, and let biases take the mean of what is left.

    Both profiles get the same integers, learned on the activations of profile u8.

    Args:
        plan: Complete plan, with final scales of weights.
        graph: Canonical fp32 graph that it belongs to.
        place: The axes of the weights.
        images: Arrays (1, C, H, W).
        progress: Called with (done, total).
        fixed: Weights and biases to leave as they are.
        settled: Scales of the weights with which the plan's biases were found; None where they are the float
            network's.
        headroom: What the plan's scales keep of 16-bit sums of pairs, and roundings shall keep.
    """
    plan = plan.model_copy(update={"roundings": {}})
    adjusted = adjusted_graph(graph, plan.model_copy(update={"bias_shift": {}}), "u8")
    teacher, student = TorchGraph(adjusted), simulated(graph, plan, "u8", place.weights)
    layers = {
        index: node
        for index, node in enumerate(student.graph.nodes)
        if node.input[1:2] and node.input[1] not in fixed and _is_learnable(node, student.graph, plan)
    }
    batches = batches_of(teacher, images)
    total = len(batches) + len(student.graph.nodes)
    samples = _choose_places(teacher, layers, batches, lambda done: progress and progress(done, total))
    quantizers = quantizers_of(plan, "u8")
    # Here and not when the first node runs, since that may be a layer to learn.
    begin = quantizers.pop(student.input_name, None)
    inputs = [{student.input_name: begin(batch) if begin else batch} for batch in batches]
    orders = input_orders(graph, plan.channel_orders)
    roundings: dict[str, str] = {}
    shifts: dict[str, NDArray[np.float64]] = {}
    count = changed = 0
    for index, node in enumerate(student.graph.nodes):
        if index in samples:
            name, axis = node.input[1], place.weights[node.input[1]]
            shape = tuple(student.constants[name].shape)
            places, importance = samples[index]
            read = torch.cat(
                [_windows(node, v[node.input[0]], shape, at) for v, at in zip(inputs, places, strict=True)], 1
            )
            bias = node.input[2] if len(node.input) > 2 and node.input[2] not in fixed else ""
            bias = bias if _is_own_bias(bias, student.graph) else ""
            rows = np.ascontiguousarray(np.moveaxis(teacher.constants[name].numpy(), axis, 0))
            scales = np.asarray(plan.weights[name], np.float32)
            nearest, learned, mean = _learn_layer(rows, scales, read, importance, keeps_mean=bool(bias))
            learned = _with_headroom(
                node, student.graph, plan, read, nearest, learned, headroom, orders.get(name)
            )
            mask = nearest != learned
            count, changed = count + mask.size, changed + int(mask.sum())
            value = learned.astype(np.float32) * scales.reshape(_by_row(rows))
            if mask.any():
                roundings[name] = pack_rounding(np.moveaxis(mask, 0, axis))
                student.constants[name] = torch.from_numpy(np.ascontiguousarray(np.moveaxis(value, 0, axis)))
            if bias:
                fitted = rows if settled is None else _on_grid(rows, settled[name])
                off = (value.astype(np.float64) - fitted).reshape(len(mean), -1, mean.shape[1])
                shifts[bias] = -np.einsum("gok,gk->go", off, mean.double().numpy()).reshape(-1)
                student.constants[bias] = student.constants[bias] + torch.from_numpy(shifts[bias]).float()
        with torch.no_grad():
            for values in inputs:
                student.run(values, [index], quantizers)
        if progress:
            progress(len(batches) + index + 1, total)
    return LearnedRounding(
        plan.model_copy(update={"roundings": roundings, "bias_shift": _shifted(plan, shifts)}), count, changed
    )


def _learn_layer(
    rows: NDArray[np.float32],
    scales: NDArray[np.float32],
    read: Tensor,
    importance: Tensor,
    *,
    keeps_mean: bool,
) -> tuple[NDArray[np.int8], NDArray[np.int8], Tensor]:
    """Return nearest and learned integers (O, ...) and the mean input (G, K).

    Args:
        rows: Float weights (O, ...).
        scales: Of the O output channels.
        read: What the layer reads in the quantized network (G, P, K).
        importance: Of every place (G, P).
        keeps_mean: Whether a bias takes the mean of the error.
    """
    nearest, second = quantize_weight(rows, scales), second_nearest(rows, scales)
    groups, _, size = read.shape
    share = importance + importance.mean(1, keepdim=True) * _LEAST_IMPORTANCE + _TINY
    share = (share / share.sum(1, keepdim=True))[..., None]
    mean = (read * share).sum(1)
    inputs = read - mean[:, None] if keeps_mean else read
    moments = (inputs * share).transpose(1, 2) @ inputs
    # What few places say of how channels go together is partly chance; and places of little importance count little.
    seen = 1 / share.square().sum(1)[..., None]
    trust = seen / (seen + size)
    own = torch.diag_embed(moments.diagonal(dim1=1, dim2=2))
    steps = torch.from_numpy(rows / scales.reshape(_by_row(rows)))
    wanted, first, other = (
        item.float().reshape(groups, -1, size)
        for item in (steps, torch.from_numpy(nearest), torch.from_numpy(second))
    )
    learned = choose_rounding(RoundingProblem(wanted, first, other, trust * moments + (1 - trust) * own))
    return nearest, learned.reshape(rows.shape).to(torch.int8).numpy(), mean


def _on_grid(rows: NDArray[np.float32], scales: Sequence[float]) -> NDArray[np.float64]:
    steps = np.asarray(scales, np.float32)
    return quantize_weight(rows, steps).astype(np.float64) * steps.reshape(_by_row(rows))


def _by_row(rows: NDArray[np.float32]) -> tuple[int, ...]:
    return (-1,) + (1,) * (rows.ndim - 1)


def _with_headroom(
    node: NodeProto,
    graph: Graph,
    plan: QuantPlan,
    read: Tensor,
    nearest: NDArray[np.int8],
    learned: NDArray[np.int8],
    headroom: Headroom,
    order: Order | None,
) -> NDArray[np.int8]:
    """Return the learned integers, nearest ones back where pairs of products would saturate because of them.

    Args:
        node: The layer.
        graph: It is part of.
        plan: Its grids.
        read: What it reads (G, P, K).
        nearest: Integers (O, C, ...).
        learned: The same, some rounded the other way.
        headroom: What to keep.
        order: In which an exported graph holds the C channels; None for this one.
    """
    if headroom == "none":
        return learned
    if order is not None:
        groups, places, _ = read.shape
        ordered = read.reshape(groups, places, len(order), -1)[:, :, torch.from_numpy(order)].flatten(2)
        found = _with_headroom(
            node, graph, plan, ordered, nearest[:, order], learned[:, order], headroom, None
        )
        return found[:, np.argsort(order)]
    if headroom == "proven":
        return with_safe_pairs(learned, nearest)
    if not adds_pairs(node, graph, plan):
        return learned
    params = plan.activations[node.input[0]].params("u8")
    columns = read[0, :: max(1, read.shape[1] // PAIR_POSITIONS)]
    integers = (columns / params.scale).round() + params.zero_point
    before, after = largest_pairs(integers, nearest), largest_pairs(integers, learned)
    worse = (after > PAIR_LIMIT) & (after > before)
    result: NDArray[np.int8] = learned.copy()
    result[worse] = nearest[worse]
    return result


def _is_learnable(node: NodeProto, graph: Graph, plan: QuantPlan) -> bool:
    """Whether a layer's windows are gathered here, and its weight is nobody else's."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in plan.weights:
        return False
    rank = graph.constants[node.input[1]].ndim
    if len(graph.consumers[node.input[1]]) != 1 or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return False
    return rank == 4 if node.op_type == "Conv" else rank == 2 and not attribute(node, "transA", 0)


def _is_own_bias(name: str, graph: Graph) -> bool:
    value = graph.constants.get(name)
    return value is not None and value.ndim == 1 and len(graph.consumers[name]) == 1


def _choose_places(
    teacher: TorchGraph,
    layers: Mapping[int, NodeProto],
    batches: Sequence[Tensor],
    progress: Callable[[int], None],
) -> dict[int, tuple[list[Places], Tensor]]:
    """Return, for each layer that the answer depends on, places of each batch and their importance (G, P)."""
    generator = torch.Generator().manual_seed(0)
    share = max(1, POSITIONS // sum(len(batch) for batch in batches))
    wanted = {node.output[0] for node in layers.values()}
    found: dict[int, list[tuple[Places, Tensor]]] = {}
    for done, batch in enumerate(batches):
        seen: dict[str, Tensor] = {}

        def keep(name: str, seen: dict[str, Tensor] = seen) -> Callable[[Tensor], Tensor]:
            def quantizer(value: Tensor) -> Tensor:
                seen[name] = value if value.requires_grad else value.detach().requires_grad_(True)
                return seen[name]

            return quantizer

        logits = teacher(batch, {name: keep(name) for name in wanted})
        if not logits.requires_grad:
            return {}
        # Of a random sum of logits: its mean square is the squared Jacobian, which is what errors of logits follow.
        noise = torch.randn(logits.shape, generator=generator)
        gradients = torch.autograd.grad(logits, list(seen.values()), noise, allow_unused=True)
        by_name: dict[str, Tensor | None] = dict(zip(seen, gradients, strict=True))
        for index, node in layers.items():
            gradient = by_name[node.output[0]]
            if gradient is None or not torch.isfinite(gradient).all():
                continue
            places: Places = None
            if node.op_type == "Conv":
                width = gradient.shape[3]
                chosen = torch.randperm(gradient[0, 0].numel(), generator=generator)[:share]
                places = chosen // width, chosen % width
                gradient = gradient[:, :, places[0], places[1]]
            else:
                gradient = gradient.reshape(-1, gradient.shape[-1], 1)
            groups = int(attribute(node, "group", 1))
            power = gradient.square().reshape(len(gradient), groups, -1, gradient.shape[2])
            power = power.mean(2).transpose(0, 1).flatten(1)
            found.setdefault(index, []).append((places, power))
        progress(done + 1)
    return {
        index: ([place for place, _ in parts], torch.cat([power for _, power in parts], 1))
        for index, parts in found.items()
        if len(parts) == len(batches)
    }


def _windows(node: NodeProto, value: Tensor, shape: Sequence[int], places: Places) -> Tensor:
    """Return what a layer multiplies its weights with at some places, (G, P, K)."""
    if places is None:
        return value.reshape(1, -1, value.shape[-1])
    pads = attribute(node, "pads", [0, 0, 0, 0])
    strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    padded = F.pad(value, (pads[1], pads[3], pads[0], pads[2])) if any(pads) else value
    down, right = places[0] * strides[0], places[1] * strides[1]
    taps = [
        padded[:, :, down + y * dilations[0], right + x * dilations[1]]
        for y in range(shape[2])
        for x in range(shape[3])
    ]
    groups = int(attribute(node, "group", 1))
    # From (N, C, taps, P).
    stacked = torch.stack(taps, 2).reshape(len(padded), groups, -1, len(taps), len(down))
    result: Tensor = stacked.permute(1, 0, 4, 2, 3).flatten(3).flatten(1, 2)
    return result


def _shifted(
    plan: QuantPlan, shifts: Mapping[str, NDArray[np.float64]]
) -> dict[Profile, dict[str, list[float]]]:
    """Return the plan's shifts of biases with others added, in both profiles."""
    result: dict[Profile, dict[str, list[float]]] = {
        profile: dict(plan.bias_shift.get(profile, {})) for profile in PROFILES
    }
    for items in result.values():
        for name, shift in shifts.items():
            items[name] = (np.asarray(items.get(name, 0.0)) + shift).tolist()
    return {profile: items for profile, items in result.items() if items}
