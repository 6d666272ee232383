"""What every attention mechanism is: a float form, its edge forms, and a start as the identity.

**Identity start.** The gates here multiply the map by a sigmoid, which a network that was trained
without them does not expect. `Attention.start_as_identity` zeroes the last layer before each sigmoid, so
that each opens half-way, and sets `gain` to undo the halves: 2 for one gate, 4 for two in a row. The
network's outputs do not move, and the zeroed layer has a full gradient (the slope of a sigmoid is largest
there), unlike a gate opened by a large bias.

The gain costs no state in the ordinary case: it is saved (as the scalar ``gain``) only while it differs
from 1, so the keys of a plain module are the authors'. Loading the authors' weights sets it back to 1.

It costs nothing in a deployed graph either: `edgeattn.models.absorb_gains` moves it into a neighbouring
linear layer. A power of two moves bit for bit, and an INT8 weight only sees its scale change. Only where
there is no such neighbour does it stay, as one multiplication of the (small) gate.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from edgeattn.attention import attentions
from edgeattn.attention.layers import DerivedConv2d, check_kernel_size
from edgeattn.errors import ModelError, RecipeError, close_matches_hint

__all__ = ["Attention", "ConvolutionAttention", "EdgeForm", "Gated", "Mechanism", "StaticEdge"]


def _is_recording(x: object) -> bool:
    """Return whether a graph is being recorded, where a check would leave operations behind."""
    if isinstance(x, torch.fx.Proxy) or torch.onnx.is_in_onnx_export():
        return True
    # None unless a trace is running.
    return torch._C._get_tracing_state() is not None


class Gated(nn.Module):
    """A module that multiplies its input by a gate; holds the gate's gain.

    Attributes:
        gain: Factor on the product, 1 in the authors' form. Persisted only while it is not 1.
        base_factor: Factor that the authors' formula itself applies (a third in Triplet Attention).
    """

    base_factor: float = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.gain = 1.0

    @property
    def factor(self) -> float:
        """What the product of map and gates is multiplied by: `gain` times `base_factor`."""
        product = self.gain * self.base_factor
        # 3 * (1/3) style round trips must give exactly 1, or a useless multiplication is exported.
        return 1.0 if abs(product - 1.0) < 1e-12 else product

    def apply_factor(self, gate: torch.Tensor) -> torch.Tensor:
        """Multiply `gate` by `factor`, without adding an operation where that is 1."""
        return gate if self.factor == 1.0 else gate * self.factor

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.gain != 1.0:
            destination[prefix + "gain"] = torch.tensor(self.gain, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        key = prefix + "gain"
        if key in state_dict:
            self.gain = float(state_dict[key])
        elif any(name.startswith(prefix) for name in state_dict):
            # Weights of a plain module: they bring their plain form. Without any keys for this module
            # (a bare backbone's checkpoint) the gain stays, as the parameters do.
            self.gain = 1.0
        rest = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(rest, prefix, *args)


class Mechanism(Gated, abc.ABC):
    """What has a float form for any size and edge forms for one size.

    Attributes:
        kind: The mechanism's name in `edgeattn.attention.attentions`.
        key_aliases: Other prefixes that the authors use for this module's keys -> prefixes used here.
        learning_rate_scales: Layers that learn at another rate than the network -> its factor.
        channels: Channels of the map that it takes.
    """

    kind: ClassVar[str]
    key_aliases: ClassVar[dict[str, str]] = {}
    learning_rate_scales: ClassVar[dict[str, float]] = {}

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise RecipeError(f"An attention needs at least 1 channel, got {channels}.")
        self.channels = channels

    @abc.abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the mechanism for `x`, shape (N, C, H, W)."""

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        """Return the edge form called `form`, a name that was checked.

        By default the mechanism's own layers and formula for that size, see `StaticEdge`.
        """
        return StaticEdge(self, height, width, form, self._static_parts(height, width, form))

    def _static_parts(self, height: int, width: int, form: str) -> dict[str, nn.Module]:
        """Return what takes the place of this module's direct children, by name, in a `StaticEdge`."""
        return {}

    def edge_form(self, height: int, width: int, form: str | None = None) -> EdgeForm:
        """Return an equal module for maps of exactly `height` x `width`.

        It shares this module's Parameters and buffers, under the same state-dict keys: training it
        trains this module. `gain` is copied as it is now.

        Args:
            height: Rows of the map.
            width: Columns of the map.
            form: A name in `AttentionInfo.edge_forms`; None means the mechanism's default.

        Raises:
            RecipeError: If the form is unknown, the size is not positive, or there is no edge form.
        """
        info = attentions.get(self.kind)
        if not info.edge_forms:
            raise RecipeError(f"The attention {self.kind!r} has no edge form: {info.no_edge_form_reason}.")
        chosen = info.default_form if form is None else form
        if chosen not in info.edge_forms:
            hint = close_matches_hint(chosen, info.edge_forms)
            raise RecipeError(f"The attention {self.kind!r} has no edge form {chosen!r}. {hint}")
        if height < 1 or width < 1:
            raise RecipeError(f"An edge form needs a positive size, got {height}x{width}.")
        edge = self._make_edge_form(height, width, chosen)
        edge.gain = self.gain
        shared = set(self.modules())
        for module in edge.modules():
            # Not edge.train(...): that would also unfreeze a batch norm that was frozen on purpose.
            if module not in shared:
                module.training = self.training
        return edge


class Attention(Mechanism):
    """Base of the float forms: NCHW in, same shape and dtype out, any height and width.

    Attributes:
        absorbs_input_scale: Whether dividing `map_reading_weights` by s undoes a map scaled by s > 0.
        identity_error: How far `start_as_identity` may be from the identity, of the largest value; 0 where
            it is exact.
    """

    absorbs_input_scale: ClassVar[bool] = True
    identity_error: ClassVar[float] = 0.0

    @abc.abstractmethod
    def _zero_gates(self) -> float:
        """Zero the last layer before every sigmoid; return what multiplying by all of them now costs.

        A mechanism that adds to the map zeroes what it adds, and returns 1.
        """

    def map_reading_weights(self) -> list[torch.Tensor]:
        """Return the weights of the layers that read the (pooled) map.

        A map scaled by s > 0 gives the same gates once these weights are divided by s: pools are positively
        homogeneous. Where that is not so, `absorbs_input_scale` is False and this list is empty.
        """
        return []

    def start_as_identity(self) -> None:
        """Make this module return its input unchanged, ready to be trained from there.

        Zeroes the last layer before each sigmoid and sets `gain`; see this module's docstring.
        """
        with torch.no_grad():
            halves = self._zero_gates()
        self.gain = 1.0 / halves

    def absorb(self, input_scale: float, gain: float = 1.0) -> float:
        """Set `gain` and adapt to inputs that will be scaled by `input_scale`.

        Afterwards, with old and new meaning before and after the call,
        ``new(input_scale * x) * remainder == old(x)``, where the remainder is returned: what a linear
        layer behind must still multiply by.

        Raises:
            ModelError: If the gates depend on the scale of the map in a way that no weight undoes.
        """
        if input_scale != 1.0 and not self.absorbs_input_scale:
            raise ModelError(
                f"The attention {self.kind!r} cannot undo a scale of its input, got {input_scale:g}."
            )
        with torch.no_grad():
            for weight in self.map_reading_weights():
                weight.div_(input_scale)
        remainder = self.gain / (gain * input_scale)
        self.gain = gain
        return remainder


class EdgeForm(Gated):
    """Base of the fixed-size forms.

    Attributes:
        kind: The mechanism's name.
        learning_rate_scales: As the mechanism has them.
        form: This form's name.
        channels: Channels of the map.
        height: Rows of the map it was made for.
        width: Columns of the map it was made for.
    """

    def __init__(self, source: Mechanism, height: int, width: int, form: str) -> None:
        super().__init__()
        self.kind = source.kind
        self.learning_rate_scales = source.learning_rate_scales
        self.form = form
        self.channels = source.channels
        self.height = height
        self.width = width
        self.base_factor = source.base_factor

    def check_size(self, x: torch.Tensor) -> None:
        """Raise ModelError unless `x` is (N, channels, height, width); adds nothing to traced graphs."""
        if _is_recording(x):
            return
        if tuple(x.shape[1:]) != (self.channels, self.height, self.width):
            raise ModelError(
                f"The edge form {self.form!r} of {self.kind!r} was made for maps of "
                f"{self.channels}x{self.height}x{self.width}, got {tuple(x.shape)}. "
                "Make another one with edge_form(height, width) for this size."
            )

    def materialize(self) -> EdgeForm:
        """Return a copy whose derived weights are ordinary `nn.Conv2d` parameters.

        For calibration and export: it shares nothing with this module, has other state-dict keys, and
        batch norms that became part of a derived weight are fixed at their running statistics.
        """
        plain = copy.deepcopy(self)
        for parent in list(plain.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, DerivedConv2d):
                    setattr(parent, name, child.to_conv2d())
        return plain

    def extra_repr(self) -> str:
        """Describe the form."""
        return f"{self.kind}, {self.form}, {self.channels}x{self.height}x{self.width}, gain={self.gain}"


class StaticEdge(EdgeForm):
    """The float form's own layers and formula, for one size.

    The mechanism writes its formula as ``compute(self, x)``, in terms of its submodules, parameters, buffers
    and plain attributes only; this form has all of these under the same names, with some submodules
    replaced by static ones.

    Args:
        source: A mechanism that has ``compute``.
        height: Rows of the map.
        width: Columns of the map.
        form: The form's name.
        parts: What takes the place of direct children. It must have the same state-dict keys.
    """

    def __init__(
        self, source: Mechanism, height: int, width: int, form: str, parts: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(source, height, width, form)
        unknown = set(parts) - set(source._modules)
        if unknown:
            raise ModelError(f"{type(source).__name__} has no children {sorted(unknown)}.")
        for name, value in vars(source).items():
            if not name.startswith("_") and name not in vars(self):
                setattr(self, name, value)
        for name, parameter in source._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in source._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
        for child, module in source._modules.items():
            self.add_module(child, parts.get(child, module))
        self._compute: Any = type(source).compute  # type: ignore[attr-defined]  # see the class docstring

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the source's formula."""
        self.check_size(x)
        y: torch.Tensor = self._compute(self, x)
        return y


class ConvolutionAttention(Mechanism):
    """Base of mechanisms that take the place of a convolution with padding ``dilation * (k // 2)``.

    Args:
        in_channels: Of the map.
        out_channels: Of the result.
        kernel_size: Odd.
        stride: Of the convolution.
        groups: Of the convolution.

    Raises:
        RecipeError: If a value is not valid.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels)
        if out_channels < 1:
            raise RecipeError(f"out_channels must be positive, got {out_channels}.")
        if stride < 1:
            raise RecipeError(f"stride must be positive, got {stride}.")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise RecipeError(
                f"groups must divide the {in_channels} input and {out_channels} output channels, got {groups}."
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.groups = check_kernel_size(kernel_size), stride, groups

    def begin_with(self, weight: torch.Tensor) -> bool:
        """Start from the weight of the convolution that this one replaces, where there is a place for it.

        Args:
            weight: (out_channels, in_channels / groups, kernel_size, kernel_size).

        Returns:
            Whether it was taken.
        """
        return False
