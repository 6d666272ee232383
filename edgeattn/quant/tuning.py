"""Tune biases and ranges of a quantized network until its logits are the float network's again.

What quantization changes on average can be changed back by biases, which cost nothing when the network
runs. Correcting each layer's mean (Nagel et al., arXiv 1906.04721, section 4.2) goes wrong where a
tensor holds rare huge values that the range cuts and the network ignores: they rule the mean. Here the
biases follow the gradient of the logits' squared error instead, which knows what matters. So do the
widths of the ranges (Esser et al., "Learned Step Size Quantization", arXiv 1902.08153): how much to cut
depends on what all others cut. Gradients pass through rounding as if it were not there
(straight-through, Bengio et al., arXiv 1308.3432).

Neither labels nor weights are touched, so a few hundred images do not overfit: the parameters are one
number for each channel and each tensor.

More parameters were tried and left out (ImageNet's MobileNetV2, profile u8 in simulation, 400 unseen images, from a plan
at 25.8 dB without exact grids). Weights trained along by distillation, 22,000 crops in 50 minutes: 26.2 dB, where biases
and ranges alone come to 26.0 in three minutes; rounding noise of activations is nothing that weights could take back. A
learned step for every channel: 26.9 dB while weights are float, but dense convolutions that take such factors back land
on other grids, which costs as much (on exact grids, with learned rounding behind it, 24.85 dB for 24.75).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeattn.onnx_graph import Graph, clip_bounds
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import ActivationRange, Profile, QuantParams, QuantPlan
from edgeattn.quant.simulation import batches_of, channels_last, simulated, takes_batches
from edgeattn.quant.torch_graph import Quantizer, TorchGraph, quantizers_of

__all__ = ["tune_plan"]

BATCH = 16
LEARNING_RATE = 1e-3
"""Of the biases, with Adam, in standard deviations of the layer's output."""
RANGE_LEARNING_RATE = 1e-2
"""Of the ranges, with Adam, in logarithms of their width."""
_WARMUP, _DECAY = 5, 0.4
_SMALLEST_SPREAD = 1e-6


def tune_plan(
    graph: Graph,
    plan: QuantPlan,
    profile: Profile,
    place: Placement,
    images: Sequence[NDArray[np.float32]],
    steps: int,
    progress: Callable[[int, int], None] | None = None,
    fixed_biases: frozenset[str] = frozenset(),
    *,
    ranges: bool = True,
) -> QuantPlan:
    """Return the plan with other biases and ranges for `profile`.

    Profile s8 takes over from u8 the grids whose zero point it folds; those belong to u8, and tuning
    s8 leaves them.

    Args:
        graph: Canonical fp32 graph; its logits are the target.
        plan: Ranges, scales and biases to start from.
        profile: Which spelling to tune.
        place: Which ranges are fixed or another tensor's, and the axes of the weights.
        images: Arrays (1, C, H, W).
        steps: Number of batches to learn from.
        progress: Called with (done, total) steps.
        fixed_biases: Biases to leave as they are.
        ranges: Whether ranges are tuned, too.
    """
    teacher, student = TorchGraph(graph), simulated(graph, plan, profile, place.weights)
    batches = batches_of(teacher, images, BATCH)
    at_once = len(batches[0])
    size = min(BATCH, len(images)) if takes_batches(teacher, batches_of(teacher, images[:2], 1)) else 1
    spread = _output_spread(teacher, batches[0] if at_once >= size else torch.cat(batches)[:size])
    origin = {
        name: student.constants[name]
        for name in _biases(student.graph, plan)
        if name in spread and name not in fixed_biases
    }
    shifts = {name: torch.zeros_like(value, requires_grad=True) for name, value in origin.items()}
    widths = _Widths(student.graph, plan, profile, place, learned=ranges)
    quantizers = quantizers_of(plan, profile) | widths.quantizers()
    # Each image also as its mirror image, with its own answer: twice the data to learn from.
    batches += [channels_last(batch.flip(-1)) for batch in batches if batch.ndim == 4]
    with torch.no_grad():
        targets = torch.cat([teacher(batch) for batch in batches])
    inputs = torch.cat(batches)
    power = targets.square().mean().clamp_min(_SMALLEST_SPREAD)
    groups = [
        {"params": list(shifts.values()), "peak": LEARNING_RATE},
        {"params": list(widths.values.values()), "peak": RANGE_LEARNING_RATE},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.99))
    for step, chosen in enumerate(_shuffled(len(inputs), size, steps)):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(step, steps)
        optimizer.zero_grad()
        # Large maps in parts, whose gradients add up to those of all.
        for start in range(0, size, at_once):
            part = chosen[start : start + at_once]
            for name, value in origin.items():
                student.constants[name] = value + shifts[name] * spread[name]
            batch = channels_last(inputs[part])
            errors = (student(batch, quantizers) - targets[part]).square().mean() / power
            loss = errors * (len(part) / len(chosen))
            if not loss.requires_grad:
                return plan
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress:
            progress(step + 1, steps)
    learned = {name: (shift.detach().double() * spread[name]).numpy() for name, shift in shifts.items()}
    return plan.model_copy(
        update={
            "bias_shift": {**plan.bias_shift, profile: _added(plan.bias_shift.get(profile, {}), learned)},
            "activations": widths.activations(),
        }
    )


class _Widths:
    """The ranges being learned: of each, the logarithm of what its width is multiplied by.

    Not learned are ranges that are fixed, another tensor's, or the other profile's. A range inside a clip's
    bounds does the clipping, and runtimes compute clip and convolution in one INT8 kernel. One step beyond,
    the clip would have to stay, and they compute both in float32: so none widens beyond its clip.
    """

    def __init__(
        self, graph: Graph, plan: QuantPlan, profile: Profile, place: Placement, *, learned: bool
    ) -> None:
        self._plan, self._profile = plan, profile
        self.values = {
            name: torch.zeros((), requires_grad=True)
            for name, item in plan.activations.items()
            if learned
            and name not in place.fixed
            and name not in place.same_range
            and item.is_quantized(profile)
            and not (profile == "s8" and item.folds_zero_point)
        }
        self._widest = {
            name: _room_to_clip(graph, name, plan.activations[name].params(profile)) for name in self.values
        }
        # Tensors that share a range share it here.
        sources = {name: place.same_range.get(name, name) for name in plan.activations}
        self._sources = {name: source for name, source in sources.items() if source in self.values}

    def quantizers(self) -> dict[str, Quantizer]:
        """Return quantizers through which gradients reach the widths."""
        return {
            name: self._quantizer(self._plan.activations[name].params(self._profile), source)
            for name, source in self._sources.items()
            if self._plan.activations[name].is_quantized(self._profile)
        }

    def activations(self) -> dict[str, ActivationRange]:
        """Return the plan's ranges, those of the profile as wide as was learned."""
        changed = dict(self._plan.activations)
        keys = ("low", "high") if self._profile == "u8" else ("limit",)
        for name, source in self._sources.items():
            factor = math.exp(min(float(self.values[source].detach()), self._widest[source]))
            changed[name] = changed[name].model_copy(
                update={key: getattr(changed[name], key) * factor for key in keys}
            )
        return changed

    def _quantizer(self, params: QuantParams, source: str) -> Quantizer:
        low, high = params.quant_min - params.zero_point, params.quant_max - params.zero_point

        def quantize(value: torch.Tensor) -> torch.Tensor:
            scale = params.scale * self.values[source].clamp(max=self._widest[source]).exp()
            steps = (value / scale).clamp(low, high)
            return (steps + (steps.round() - steps).detach()) * scale

        return quantize


def _room_to_clip(graph: Graph, name: str, params: QuantParams) -> float:
    """Return the logarithm of how much wider a range may be inside the clip that writes its tensor."""
    bounds = clip_bounds(graph, graph.producer.get(name))
    return math.inf if bounds is None or bounds[1] <= 0 else max(math.log(bounds[1] / params.high), 0.0)


def _added(
    before: Mapping[str, Sequence[float]], shifts: Mapping[str, NDArray[np.float64]]
) -> dict[str, list[float]]:
    sums = {name: (shift + np.asarray(before.get(name, 0.0))).tolist() for name, shift in shifts.items()}
    return {name: list(values) for name, values in before.items()} | sums


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
