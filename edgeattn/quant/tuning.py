"""Tune the biases of a quantized network until its logits are the float network's again.

What quantization changes on average can be changed back by biases, which cost nothing when the network
runs. Correcting each layer's mean (Nagel et al., arXiv 1906.04721, section 4.2) goes wrong where a
tensor holds rare huge values that the range cuts and the network ignores: they rule the mean. Here the
biases follow the gradient of the logits' squared error instead, which knows what matters. Gradients
pass through rounding as if it were not there (straight-through, Bengio et al., arXiv 1308.3432).

Neither labels nor weights are touched, so a few hundred images do not overfit: the parameters are one
number for each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeattn.onnx_graph import Graph
from edgeattn.quant.plan import Profile, QuantPlan
from edgeattn.quant.simulation import batches_of, channels_last, simulated
from edgeattn.quant.torch_graph import TorchGraph, quantizers_of

__all__ = ["tune_biases"]

BATCH = 16
LEARNING_RATE = 1e-3
"""Of Adam, in standard deviations of the layer's output."""
_WARMUP, _DECAY = 5, 0.4
_SMALLEST_SPREAD = 1e-6


def tune_biases(
    graph: Graph,
    plan: QuantPlan,
    profile: Profile,
    axes: dict[str, int],
    images: Sequence[NDArray[np.float32]],
    steps: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Return what to add to each bias in `profile`, what the plan adds already included.

    Args:
        graph: Canonical fp32 graph; its logits are the target.
        plan: Ranges and scales, which stay.
        profile: Which spelling to tune.
        axes: Weight -> axis of its output channels.
        images: Arrays (1, C, H, W).
        steps: Number of batches to learn from.
        progress: Called with (done, total) steps.
    """
    teacher, student = TorchGraph(graph), simulated(graph, plan, profile, axes)
    batches = batches_of(teacher, images, BATCH)
    spread = _output_spread(teacher, batches[0])
    origin = {name: student.constants[name] for name in _biases(student.graph, plan) if name in spread}
    shifts = {name: torch.zeros_like(value, requires_grad=True) for name, value in origin.items()}
    if not shifts:
        return {}
    with torch.no_grad():
        targets = torch.cat([teacher(batch) for batch in batches])
    inputs = torch.cat(batches)
    power = targets.square().mean().clamp_min(_SMALLEST_SPREAD)
    quantizers = quantizers_of(plan, profile)
    optimizer = torch.optim.Adam(list(shifts.values()), lr=LEARNING_RATE, betas=(0.9, 0.99))
    size = batches[0].shape[0]
    for step, chosen in enumerate(_shuffled(len(inputs), size, steps)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step, steps)
        for name, value in origin.items():
            student.constants[name] = value + shifts[name] * spread[name]
        batch = channels_last(inputs[chosen])
        loss = (student(batch, quantizers) - targets[chosen]).square().mean() / power
        if not loss.requires_grad:
            return {}
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress:
            progress(step + 1, steps)
    before = plan.bias_shift.get(profile, {})
    learned = {name: (shift.detach().double() * spread[name]).numpy() for name, shift in shifts.items()}
    return before | {
        name: (shift + np.asarray(before.get(name, 0.0))).tolist() for name, shift in learned.items()
    }


def _biases(graph: Graph, plan: QuantPlan) -> list[str]:
    """Return the biases of quantized layers that no other node reads."""
    return [
        node.input[2]
        for node in graph.nodes
        if node.op_type in ("Conv", "Gemm")
        and node.input[1] in plan.weights
        and len(node.input) == 3
        and node.input[2] in graph.constants
        and graph.constants[node.input[2]].ndim == 1
        and len(graph.consumers[node.input[2]]) == 1
    ]


@torch.no_grad()
def _output_spread(network: TorchGraph, batch: torch.Tensor) -> dict[str, float]:
    """Return, by bias, the median over channels of the layer's standard deviation."""
    spread: dict[str, float] = {}
    values = {network.input_name: batch}
    for index, node in enumerate(network.graph.nodes):
        network.run(values, [index], {})
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 3:
            channels = values[node.output[0]].transpose(0, 1).flatten(1)
            median = float(channels.std(dim=1, unbiased=False).median())
            spread[node.input[2]] = max(median, _SMALLEST_SPREAD)
    return spread


def _schedule(step: int, steps: int) -> float:
    """Rise over the first steps, fall to 0 over the last."""
    return min(1.0, (step + 1) / _WARMUP, (1 - step / steps) / _DECAY)


def _shuffled(count: int, size: int, steps: int) -> list[NDArray[np.int64]]:
    """Return `steps` batches of indices; every image comes up once before any comes again."""
    generator = np.random.default_rng(0)
    order = np.concatenate([generator.permutation(count) for _ in range(steps * size // count + 1)])
    return [order[step * size : (step + 1) * size] for step in range(steps)]
