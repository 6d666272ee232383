"""Put a plan onto a torch module: fake quantization behind each planned operation.

NNCF's function hooks reach an operation by the same name that the exported tensor has, so module and
graph are quantized at the same places by construction. Two kinds of quantizers are hooked in:

* torch's own fake quantization with a profile's exact scales, to check an export against,
* quantizers that learn their ranges, for quantization-aware training.
"""

from __future__ import annotations

import collections
import copy as copying
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeattn.errors import ModelError
from edgeattn.export.canonical import WeightOrigin
from edgeattn.export.float_onnx import INPUT_NAME, FloatExport, shadow
from edgeattn.export.learned_quantizer import LearnedQuantizer
from edgeattn.onnx_graph import Graph, clip_bounds
from edgeattn.quant.apply import apply_plan_constants, weight_integers
from edgeattn.quant.nncf_ptq import quiet_nncf
from edgeattn.quant.placement import Placement, place_quantizers
from edgeattn.quant.plan import (
    WEIGHT_LIMIT,
    ActivationRange,
    Profile,
    QuantParams,
    QuantPlan,
)

__all__ = [
    "FakeQuantized",
    "ObservedQuantizer",
    "attach_fake_quant",
    "attach_trainable",
    "fixed_constants",
    "module_path",
    "read_back",
    "write_constants",
]

_WEIGHT_PORT = 1
_LEAST_LIMIT = 1e-9
_TIE = 1e-3
"""Steps from half-way: far more than float32 rounds, far less than a wrong scale or weight moves most values."""


@dataclasses.dataclass(frozen=True)
class FakeQuantized:
    """A module with quantizers hooked into it.

    Attributes:
        module: Computes with fake quantization; shares the Parameters of the module it was made from.
        activations: Quantizer of each planned tensor that has one of its own.
        weights: Quantizer of each planned weight.
    """

    module: nn.Module
    activations: dict[str, nn.Module]
    weights: dict[str, nn.Module]


class ObservedQuantizer(nn.Module):
    """Fake quantization with fixed parameters that keeps the integers of its last call.

    Attributes:
        params: Scale and zero point.
        integers: What the last call rounded to, as the integers of an engine; None before it.
    """

    def __init__(self, params: QuantParams) -> None:
        super().__init__()
        self.params = params
        self.integers: NDArray[np.generic] | None = None

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize `value`, any shape."""
        p = self.params
        result = torch.fake_quantize_per_tensor_affine(value, p.scale, p.zero_point, p.quant_min, p.quant_max)
        integers = torch.round(result / p.scale) + p.zero_point
        self.integers = integers.detach().cpu().numpy().astype(p.dtype)
        return result


class _ChannelWeights(nn.Module):
    """Fake quantization of a weight (channels first).

    The graph's weight has its batch norm's factor in it, so a value half-way between two steps may round the other way
    there. One step of a depthwise weight can move a result by several steps, which says nothing of the export: such
    values, and only such, take the graph's integer.
    """

    scales: torch.Tensor
    zeros: torch.Tensor
    integers: torch.Tensor

    def __init__(self, scales: NDArray[np.float64], integers: NDArray[np.int8]) -> None:
        super().__init__()
        self.register_buffer("scales", torch.from_numpy(scales.astype(np.float32)), persistent=False)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int32), persistent=False)
        self.register_buffer("integers", torch.from_numpy(integers.astype(np.float32)), persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        own = torch.fake_quantize_per_channel_affine(
            weight,
            self.scales,
            self.zeros,
            0,
            -WEIGHT_LIMIT,
            WEIGHT_LIMIT,
        )
        scales = self.scales.reshape((-1,) + (1,) * (weight.ndim - 1))
        steps = weight / scales
        is_tie = (steps - steps.floor() - 0.5).abs() < _TIE
        return torch.where(is_tie, self.integers * scales, own)


def attach_fake_quant(
    module: nn.Module, export: FloatExport, plan: QuantPlan, profile: Profile
) -> FakeQuantized:
    """Return a copy of `module` in evaluation mode that computes with a profile's exact scales.

    The module must compute the graph that the plan is applied to: see `write_constants`.
    """
    activations: dict[str, nn.Module] = {
        name: ObservedQuantizer(wanted.params(profile))
        for name, wanted in plan.activations.items()
        if wanted.is_quantized(profile)
    }
    adjusted = Graph(export.model)
    apply_plan_constants(adjusted, plan, profile)
    axes = place_quantizers(export.model).weights
    integers = weight_integers(adjusted, plan, axes)
    weights: dict[str, nn.Module] = {}
    for name, origin in export.weights.items():
        if name in plan.weights:
            steps = np.moveaxis(integers[name], axes[name], 0)
            signs = np.where(origin.ratio < 0, -1, 1).reshape((-1,) + (1,) * (steps.ndim - 1))
            scales = _raw_scales(plan.weights[name], origin)
            weights[name] = _ChannelWeights(scales, (steps * signs).astype(np.int8))
    result = _hooked(module, export, activations, weights)
    result.module.eval()
    return result


def attach_trainable(
    module: nn.Module, export: FloatExport, plan: QuantPlan, placement: Placement
) -> FakeQuantized:
    """Return a copy of `module`, sharing its Parameters, with quantizers that learn their ranges.

    Activations train on the coarser of the two profiles' grids, so that the result serves both: signed
    and symmetric, but unsigned where profile s8 folds the zero point away and so has all 256 levels. Every
    bound is learned but those that `placement` fixes.
    """
    activations: dict[str, nn.Module] = {}
    for name, wanted in plan.activations.items():
        if name not in placement.same_range:
            unsigned = _trains_unsigned(wanted)
            limit = np.asarray([wanted.high if unsigned else wanted.limit])
            quantizer = LearnedQuantizer(limit, *((0, 255) if unsigned else (-128, 127)))
            quantizer.limit.requires_grad_(name not in placement.fixed)
            activations[name] = quantizer
    weights: dict[str, nn.Module] = {}
    shapes = {item.name: tuple(item.dims) for item in export.model.graph.initializer}
    for name, origin in export.weights.items():
        if name in plan.weights:
            limit = _raw_scales(plan.weights[name], origin) * WEIGHT_LIMIT
            weights[name] = LearnedQuantizer(limit, -WEIGHT_LIMIT, WEIGHT_LIMIT, rank=len(shapes[name]))
    return _hooked(module, export, activations, weights)


def read_back(
    trained: FakeQuantized, export: FloatExport, plan: QuantPlan, placement: Placement
) -> QuantPlan:
    """Return the plan that a trained copy stands for.

    Args:
        trained: What `attach_trainable` returned, after training.
        export: A fresh export of the float module with the trained Parameters.
        plan: The plan that training began with.
        placement: Where that plan quantizes.
    """
    graph = Graph(export.model)
    activations: dict[str, ActivationRange] = {}
    for name, before in plan.activations.items():
        quantizer = trained.activations[placement.same_range.get(name, name)]
        limit = max(float(_limits(quantizer)[0]), _LEAST_LIMIT)
        # What a clip cuts off needs no levels, and a clip inside the range could not be absorbed.
        limit = min(limit, _upper_clip(graph, name))
        # The same grid in both profiles: 128 added to values and zero point changes nothing.
        low = 0.0 if before.low == 0.0 else -limit * 128 / 127
        activations[name] = ActivationRange(
            low=low,
            high=limit,
            limit=limit,
            addend=before.addend,
            folds_zero_point=_trains_unsigned(before),
        )
    weights = {
        name: np.maximum(
            _limits(trained.weights[name]) / WEIGHT_LIMIT * np.abs(origin.ratio), _LEAST_LIMIT
        ).tolist()
        for name, origin in export.weights.items()
        if name in plan.weights
    }
    return QuantPlan(
        method="qat",
        activations=activations,
        weights=weights,
        float_regions=plan.float_regions,
        ladder=plan.ladder,
        extents=plan.extents,
        provenance=plan.provenance,
    )


def write_constants(module: nn.Module, export: FloatExport, adjusted: Graph) -> nn.Module:
    """Return a copy of `module` that computes `adjusted`, a graph with other weights and biases.

    Args:
        module: The module that `export` came from.
        export: Canonical graph and origins.
        adjusted: The same graph after equalization or bias correction.

    Raises:
        ModelError: If a constant changed that is not a plain parameter of the module.
    """
    result = copying.deepcopy(module)
    original = Graph(export.model)
    for name, origin in export.weights.items():
        changed = not np.array_equal(original.constants[name], adjusted.constants[name])
        shifted = bool(origin.bias) and not np.array_equal(
            original.constants[origin.bias], adjusted.constants[origin.bias]
        )
        if not changed and not shifted:
            continue
        layer = dict(result.named_modules()).get(module_path(origin.operation))
        norm = dict(result.named_modules()).get(module_path(origin.norm)) if origin.norm else None
        own = _holds_weight(layer)
        if not own and (changed or norm is None):
            raise ModelError(f"The weight of {origin.operation} is computed; it cannot be adjusted.")
        with torch.no_grad():
            if changed and layer is not None:
                _write_weight(layer, adjusted.constants[name], origin.ratio)
            if origin.bias:
                _write_bias(layer, norm, adjusted.constants[origin.bias], origin.ratio)
    return result


def fixed_constants(module: nn.Module, export: FloatExport) -> frozenset[str]:
    """Return the constants of the graph that nothing may change: see `write_constants`.

    Weights that a form computes or that several uses share, and biases that no layer holds or that one layer holds
    several of.
    """
    known = dict(module.named_modules())
    layers = {name: known.get(module_path(origin.operation)) for name, origin in export.weights.items()}
    computed = {name for name, layer in layers.items() if not _holds_weight(layer)}
    users = collections.Counter(id(layer) for layer in layers.values())
    shared = {name for name, layer in layers.items() if users[id(layer)] > 1}
    owners = {
        origin.bias: module_path(origin.norm or origin.operation)
        for origin in export.weights.values()
        if origin.bias
    }
    uses = collections.Counter(owners.values())
    biases = {bias for bias, owner in owners.items() if owner not in known or uses[owner] > 1}
    # Without a batch norm behind it, a computed weight has a computed bias.
    biases |= {export.weights[name].bias for name in computed if not export.weights[name].norm} - {""}
    return frozenset(biases | computed | shared)


def _holds_weight(layer: nn.Module | None) -> bool:
    # None where a form calls the convolution as a function, on a weight that it computes.
    return layer is not None and isinstance(getattr(layer, "weight", None), nn.Parameter)


def _write_weight(layer: nn.Module, weight: NDArray[np.float32], ratio: NDArray[np.float64]) -> None:
    usable = np.where(ratio == 0, 1.0, ratio).reshape((-1,) + (1,) * (weight.ndim - 1))
    parameter = layer.weight
    value = torch.from_numpy((weight / usable).astype(np.float32))
    keep = torch.from_numpy(ratio == 0).reshape((-1,) + (1,) * (weight.ndim - 1))
    parameter.copy_(torch.where(keep, parameter, value))  # type: ignore[operator, arg-type]


def _write_bias(
    layer: nn.Module | None, norm: nn.Module | None, bias: NDArray[np.float32], ratio: NDArray[np.float64]
) -> None:
    kept = getattr(layer, "bias", None)
    own = kept.detach().double().numpy() if isinstance(kept, nn.Parameter) else 0.0
    if norm is None and layer is not None:
        layer.bias.copy_(torch.tensor(bias))  # type: ignore[operator]
        return
    if norm is None:
        return
    mean = norm.running_mean.double().numpy()  # type: ignore[operator]
    norm.bias.copy_(torch.from_numpy((bias - (own - mean) * ratio).astype(np.float32)))  # type: ignore[operator]


def _hooked(
    module: nn.Module,
    export: FloatExport,
    activations: Mapping[str, nn.Module],
    weights: Mapping[str, nn.Module],
) -> FakeQuantized:
    from nncf.torch.function_hook import (
        register_post_function_hook,
        register_pre_function_hook,
        wrap_model,
    )

    from edgeattn.export.replayed_hooks import replay_hooks

    with quiet_nncf():
        copy = wrap_model(shadow(module))
        for name, quantizer in weights.items():
            register_pre_function_hook(copy, export.weights[name].operation, _WEIGHT_PORT, quantizer)
        for name, quantizer in activations.items():
            operation = export.input_operation if name == INPUT_NAME else name
            register_post_function_hook(copy, operation, 0, quantizer)
        replay_hooks(copy)
    return FakeQuantized(copy, dict(activations), dict(weights))


def _upper_clip(graph: Graph, name: str) -> float:
    """Return the upper bound of the clip that writes a tensor, or infinity."""
    bounds = clip_bounds(graph, graph.producer.get(name))
    return bounds[1] if bounds is not None and bounds[1] > 0 else math.inf


def _trains_unsigned(wanted: ActivationRange) -> bool:
    return wanted.low == 0.0 and wanted.folds_zero_point


def _limits(quantizer: nn.Module) -> NDArray[np.float64]:
    value: NDArray[np.float64] = quantizer.limit.detach().abs().cpu().double().reshape(-1).numpy()  # type: ignore[operator]
    return value


def _raw_scales(scales: Sequence[float], origin: WeightOrigin) -> NDArray[np.float64]:
    """Scales of the module's weight, before the batch norm multiplied it."""
    ratio = np.where(origin.ratio == 0, 1.0, np.abs(origin.ratio))
    result: NDArray[np.float64] = np.asarray(scales, np.float64) / ratio
    return result


def module_path(operation: str) -> str:
    """Return the path of the module that runs an operation."""
    return ".".join(operation.split("/")[:-2])
