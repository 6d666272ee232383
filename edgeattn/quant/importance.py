"""Ranges that cut what the network ignores: squared errors weighted by the Fisher information.

A value's error matters as much as the network's answer depends on it. To second order an error e adds
g^2 e^2 to the divergence of the answers, on average over answers drawn from the network's own
distribution, where g is the gradient of the answer's log-likelihood (the diagonal Fisher information, as
in Li et al., "BRECQ", arXiv 2102.05426, section 3.2). Rare huge values behind which everything saturates
have no gradient, so a range need not hold them; a plain mean of squared errors is ruled by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeattn.onnx_graph import Graph
from edgeattn.quant.calibrate import BINS, SAMPLES_PER_IMAGE, TensorStatistics
from edgeattn.quant.simulation import batches_of
from edgeattn.quant.torch_graph import TorchGraph

__all__ = ["weighted_statistics"]

Tensor = torch.Tensor


def weighted_statistics(
    graph: Graph,
    tensors: Sequence[str],
    images: Sequence[NDArray[np.float32]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TensorStatistics]:
    """Describe activations by histograms of their values, weighted by squared gradients.

    Args:
        graph: Canonical fp32 graph.
        tensors: Activations, the input among them.
        images: Arrays (1, C, H, W).
        progress: Called with (done, total) batches.

    Returns:
        Statistics of the tensors that the answer depends on; the others are left out.
    """
    network = TorchGraph(graph)
    batches = batches_of(network, images)
    low, high = _extremes(network, tensors, batches)
    counts = {name: np.zeros(BINS) for name in tensors}
    generator = torch.Generator().manual_seed(0)
    draw = _class if network.gives_classes else _numbers
    for index, batch in enumerate(batches):
        seen: dict[str, Tensor] = {}
        logits = network(batch, {name: _observed(name, seen) for name in tensors})
        if not logits.requires_grad:
            return {}
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            logits, list(seen.values()), draw(logits.detach(), generator), allow_unused=True
        )
        for (name, value), gradient in zip(seen.items(), gradients, strict=True):
            if gradient is not None and high[name] > low[name]:
                width = (high[name] - low[name]) / BINS
                stride = max(1, value.numel() // (SAMPLES_PER_IMAGE * len(batch)))
                flat = value.detach().flatten()[::stride].double().numpy()
                bins = np.clip((flat - low[name]) / width, 0, BINS - 1).astype(np.int64)
                weight = gradient.flatten()[::stride].double().square().numpy()
                counts[name] += np.bincount(bins, weights=weight, minlength=BINS)
        if progress:
            progress(index + 1, len(batches))
    return {
        name: TensorStatistics(low[name], high[name], low[name], high[name], counts[name])
        for name in tensors
        if np.isfinite(counts[name]).all() and counts[name].any()
    }


@torch.no_grad()
def _extremes(
    network: TorchGraph, tensors: Sequence[str], batches: Sequence[Tensor]
) -> tuple[dict[str, float], dict[str, float]]:
    low, high = dict.fromkeys(tensors, 0.0), dict.fromkeys(tensors, 0.0)

    def seen(name: str) -> Callable[[Tensor], Tensor]:
        def look(value: Tensor) -> Tensor:
            low[name] = min(low[name], float(value.min()))
            high[name] = max(high[name], float(value.max()))
            return value

        return look

    for batch in batches:
        network(batch, {name: seen(name) for name in tensors})
    return low, high


def _observed(name: str, seen: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Keep a tensor as the network reads it, with a gradient of its own."""

    def keep(value: Tensor) -> Tensor:
        seen[name] = value if value.requires_grad else value.detach().requires_grad_(True)
        return seen[name]

    return keep


def _numbers(answer: Tensor, generator: torch.Generator) -> Tensor:
    """Draw gradients at numbers whose errors have equal weight."""
    return torch.randn(answer.shape, generator=generator)


def _class(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw gradients at the logits whose covariance is the Fisher information of the softmax.

    For probabilities p that is diag(p) - p p^T.
    """
    p = logits.softmax(dim=1)
    root = p.sqrt() * _numbers(logits, generator)
    return root - p * root.sum(dim=1, keepdim=True)
