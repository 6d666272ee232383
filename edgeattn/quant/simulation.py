"""What a plan does to a network, before any runtime is chosen: its logits on calibration images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeattn.onnx_graph import Graph
from edgeattn.quant.apply import apply_plan_constants, weight_integers
from edgeattn.quant.equalize import scale_clips
from edgeattn.quant.placement import Placement
from edgeattn.quant.plan import PROFILES, LadderStep, Profile, QuantPlan
from edgeattn.quant.torch_graph import TorchGraph, quantizers_of

__all__ = [
    "PlanMeter",
    "adjusted_graph",
    "batches_of",
    "channels_last",
    "fitting_batch",
    "simulated",
    "sqnr_of",
    "takes_batches",
]

BATCH = 8
_MOST_NUMBERS = 1 << 28
"""In all layers' outputs together, 4 bytes each: with gradients a few GB."""
_SILENCE = 1e-30


class PlanMeter:
    """Measures plans of one graph against the float graph.

    Args:
        graph: Canonical fp32 graph, as it was before any step.
        placement: Where plans quantize, with the axis of each weight's output channels.
        images: Arrays (1, C, H, W).
    """

    def __init__(self, graph: Graph, placement: Placement, images: Sequence[NDArray[np.float32]]) -> None:
        self._graph = graph
        self._placement = placement
        network = TorchGraph(graph)
        self._batches = batches_of(network, images)
        self._gives_classes = network.gives_classes
        self._reference = self._logits(network)

    def step(self, name: str, plan: QuantPlan, seconds: float, *, kept: bool = True) -> LadderStep:
        """Return what both profiles of `plan` reach."""
        agreement: dict[Profile, float | None] = {}
        sqnr: dict[Profile, float] = {}
        for profile in PROFILES:
            network = simulated(self._graph, plan, profile, self._placement.weights)
            logits = self._logits(network, plan, profile)
            same = float((logits.argmax(1) == self._reference.argmax(1)).mean())
            agreement[profile] = same if self._gives_classes else None
            error = float(np.square(logits - self._reference).sum())
            power = float(np.square(self._reference).sum())
            sqnr[profile] = sqnr_of(power, error)
        return LadderStep(
            step=name,
            agreement_u8=agreement["u8"],
            sqnr_db_u8=sqnr["u8"],
            agreement_s8=agreement["s8"],
            sqnr_db_s8=sqnr["s8"],
            seconds=seconds,
            kept=kept,
        )

    @torch.no_grad()
    def _logits(
        self, network: TorchGraph, plan: QuantPlan | None = None, profile: Profile = "u8"
    ) -> NDArray[np.float64]:
        quantizers = quantizers_of(plan, profile) if plan else {}
        parts = [network(batch, quantizers).flatten(1).double().numpy() for batch in self._batches]
        return np.concatenate(parts)


def sqnr_of(signal: float, noise: float) -> float:
    """Return the ratio of two sums of squares in dB; finite for silence and for no noise."""
    return 10 * float(np.log10(max(signal, _SILENCE) / max(noise, _SILENCE)))


def adjusted_graph(graph: Graph, plan: QuantPlan, profile: Profile) -> Graph:
    """Return the float graph with the plan's constants; it cuts where the calibrated graph cuts.

    Args:
        graph: The calibrated graph; not changed.
        plan: Its plan.
        profile: Which spelling.
    """
    adjusted = Graph(graph.to_model())
    apply_plan_constants(adjusted, plan, profile)
    scale_clips(adjusted, plan.channel_scales)
    return adjusted


def simulated(graph: Graph, plan: QuantPlan, profile: Profile, axes: dict[str, int]) -> TorchGraph:
    """Return the graph with the plan's constants, weights on their grid.

    Args:
        graph: The calibrated graph; not changed.
        plan: Its plan.
        profile: Which spelling.
        axes: Weight -> axis of its output channels.
    """
    adjusted = adjusted_graph(graph, plan, profile)
    for name, integers in weight_integers(adjusted, plan, axes).items():
        shape = [-1 if dim == axes[name] else 1 for dim in range(integers.ndim)]
        steps = np.asarray(plan.weights[name], np.float32).reshape(shape)
        adjusted.constants[name] = integers.astype(np.float32) * steps
    return TorchGraph(adjusted)


@torch.no_grad()
def batches_of(
    network: TorchGraph, images: Sequence[NDArray[np.float32]], largest: int = BATCH
) -> list[torch.Tensor]:
    """Return the images in batches, single ones where the graph computes only those.

    Args:
        network: That reads them.
        images: Each (1, C, H, W).
        largest: Of the batches; those of large maps are smaller.
    """
    tensors = [channels_last(torch.from_numpy(np.ascontiguousarray(image))) for image in images]
    size = min(largest, fitting_batch(network.graph)) if takes_batches(network, tensors) else 1
    return [torch.cat(tensors[start : start + size]) for start in range(0, len(tensors), size)]


def fitting_batch(graph: Graph) -> int:
    """Return how many images at once leave memory for the values of all layers, which gradients need."""
    shapes = graph.shapes()
    numbers = sum(math.prod(shapes.get(name, ())) for node in graph.nodes for name in node.output)
    return max(_MOST_NUMBERS // max(numbers, 1), 1)


def channels_last(image: torch.Tensor) -> torch.Tensor:
    """Return the images in the layout in which torch's convolutions on CPUs are fastest."""
    return image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image


@torch.no_grad()
def takes_batches(network: TorchGraph, images: Sequence[torch.Tensor]) -> bool:
    """Whether there are several images, and two at once give what they give one by one; constants may say batch 1."""
    pair = images[:2]
    if len(pair) < 2:
        return False
    single = torch.cat([network(image) for image in pair])
    try:
        both = network(torch.cat(list(pair)))
    except (RuntimeError, ValueError, IndexError):
        return False
    return both.shape == single.shape and torch.allclose(both, single, rtol=1e-3, atol=1e-4)
