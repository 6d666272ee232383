"""Context encoding (EncNet, arXiv 1803.08904; authors' code: zhanghang1989/PyTorch-Encoding).

Every position's features are softly assigned to K learned codewords d_k by their distance,
``a_ik = softmax over k of (scale_k * ||x_i - d_k||^2)``; the residuals are aggregated,
``e_k = sum over i of a_ik * (x_i - d_k)``; ``e = sum over k of relu(bn(e_k))``; ``x * sigmoid(fc(e))``.
Shapes: (N, C, H, W) -> a (N, K, H, W) -> e_k (N, K, C) -> gate (N, C, 1, 1).

Deviations: only the encoding and the channel gate; the convolution in front of it and the semantic encoding
loss belong to the authors' segmentation network. The batch norm has one mean and variance for each codeword,
as in the authors' code. In the edge form the distance is multiplied out, ``||x||^2 - 2 x d + ||d||^2``: a
1x1 convolution of x and one of x squared; and the residuals are ``sum a x - (sum a) d``: one MatMul.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.attention.layers import DerivedConv2d, check_positive

__all__ = ["ContextEncoding"]


class ContextEncoding(Attention):
    """EncNet's context encoding module, keys ``codewords`` (K, C), ``scale`` (K,), ``bn`` and ``fc``.

    Args:
        channels: Channels of the map.
        codewords: K.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "enc"
    absorbs_input_scale: ClassVar[bool] = False

    def __init__(self, channels: int, *, codewords: int = 32) -> None:
        super().__init__(channels)
        count = check_positive("codewords", codewords)
        limit = 1.0 / math.sqrt(count * channels)
        self.codewords = nn.Parameter(torch.empty(count, channels).uniform_(-limit, limit))
        self.scale = nn.Parameter(torch.empty(count).uniform_(-1.0, 0.0))
        self.bn = nn.BatchNorm2d(count)
        self.relu = nn.ReLU()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, shape (N, C, H, W)."""
        positions = x.flatten(2).transpose(1, 2).unsqueeze(2)  # (N, HW, 1, C)
        residuals = positions - self.codewords  # (N, HW, K, C)
        assignment = (residuals.square().sum(-1) * self.scale).softmax(-1)  # (N, HW, K)
        encoded = (assignment.unsqueeze(-1) * residuals).sum(1).unsqueeze(-1)  # (N, K, C, 1)
        context = self.relu(self.bn(encoded)).sum(1).unsqueeze(-1)  # (N, C, 1, 1)
        gate: torch.Tensor = self.fc(context).sigmoid()
        return x * self.apply_factor(gate)

    def _zero_gates(self) -> float:
        self.fc.weight.zero_()
        if self.fc.bias is not None:
            self.fc.bias.zero_()
        return 0.5

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _ContextEncodingEdge(self, height, width, form)


class _Products(DerivedConv2d):
    """``scale_k * (||d_k||^2 - 2 x d_k)`` as a 1x1 convolution."""

    def __init__(self, source: ContextEncoding) -> None:
        super().__init__()
        # In a tuple, so that they keep the one key that the edge form has them under.
        self._held = (source.codewords, source.scale)

    def derived_weight(self) -> torch.Tensor:
        codewords, scale = self._held
        return (codewords * scale.unsqueeze(1) * -2.0).unsqueeze(-1).unsqueeze(-1)

    def derived_bias(self) -> torch.Tensor:
        codewords, scale = self._held
        return codewords.square().sum(1) * scale


class _Squares(DerivedConv2d):
    """``scale_k * ||x||^2`` as a 1x1 convolution of x squared."""

    def __init__(self, source: ContextEncoding) -> None:
        super().__init__()
        self._held = (source.codewords, source.scale)

    def derived_weight(self) -> torch.Tensor:
        codewords, scale = self._held
        return scale.reshape(-1, 1, 1, 1) * torch.ones_like(codewords).unsqueeze(-1).unsqueeze(-1)


class _ContextEncodingEdge(EdgeForm):
    """Distances by two convolutions, residuals by one product of matrices."""

    def __init__(self, source: ContextEncoding, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.codewords, self.scale = source.codewords, source.scale
        self.products: nn.Module = _Products(source)
        self.squares: nn.Module = _Squares(source)
        self.bn, self.relu, self.fc = source.bn, source.relu, source.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        count, area = self.codewords.shape[0], self.height * self.width
        logits = self.products(x) + self.squares(x * x)
        assignment = logits.softmax(1).reshape(-1, count, area)
        gathered = torch.matmul(assignment, x.reshape(-1, self.channels, area).transpose(1, 2))
        encoded = gathered - assignment.sum(2, keepdim=True) * self.codewords
        context = self.relu(self.bn(encoded.unsqueeze(-1))).sum(1).unsqueeze(-1)
        gate: torch.Tensor = self.fc(context).sigmoid()
        return x * self.apply_factor(gate)
