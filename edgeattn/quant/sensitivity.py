"""Which layers and which gates cost the answers most, each measured by itself.

Two questions of every layer, with its weights and what it writes:

* alone in INT8: how far do the logits move when nothing else is quantized? Errors that others would hide show.
* alone in float: how much nearer are the logits of the INT8 network when only this one is not quantized? That is
  what a user gains by leaving it out.

A gate, all of an attention module, counts as one layer: it is what a policy decides about.

Each run begins at the layer in question, from values that are kept of all before it, so that the whole costs about as
much as running the network once for every layer.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgeattn.onnx_graph import Graph
from edgeattn.quant.placement import FUSED_ACTIVATIONS, GateRegion, Placement
from edgeattn.quant.plan import Profile, QuantPlan
from edgeattn.quant.simulation import adjusted_graph, batches_of, simulated, sqnr_of
from edgeattn.quant.torch_graph import Quantizer, TorchGraph, quantizers_of

__all__ = ["LayerSensitivity", "measure_gate_noise", "measure_sensitivity"]

Tensor = torch.Tensor
_SILENCE = 1e-30


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """What the quantization of one layer or gate does to the logits.

    Attributes:
        name: The tensor that the layer writes, or the prefix of the gate's tensors.
        is_gate: Whether it is an attention module.
        tensors: Quantized activations in it.
        alone_sqnr_db: Of the logits with only this one in INT8.
        gain_db: SQNR of the INT8 network's logits with this one in float, less that with all in INT8.
    """

    name: str
    is_gate: bool
    tensors: int
    alone_sqnr_db: float
    gain_db: float


@dataclasses.dataclass
class _Unit:
    name: str
    is_gate: bool
    first: int
    tensors: list[str]
    weights: list[str]


def measure_sensitivity(
    graph: Graph,
    plan: QuantPlan,
    profile: Profile,
    place: Placement,
    images: Sequence[NDArray[np.float32]],
    gates: Sequence[GateRegion] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[LayerSensitivity]:
    """Return the sensitivity of every layer and gate that `profile` quantizes, in graph order.

    Args:
        graph: Canonical fp32 graph.
        plan: Complete plan.
        profile: Which spelling.
        place: Axes of the weights.
        images: Arrays (1, C, H, W); 8 to 16 are enough to tell layers apart.
        gates: Attention modules, each of which is one unit.
        progress: Called with (done, total) units.
    """
    # Biases that were tuned to the errors of all layers together would be errors of their own here.
    unshifted = plan.model_copy(update={"bias_shift": {}})
    adjusted = adjusted_graph(graph, unshifted.model_copy(update={"roundings": {}}), profile)
    plain, alone = TorchGraph(adjusted), simulated(graph, unshifted, profile, place.weights)
    whole, relieved = (simulated(graph, plan, profile, place.weights) for _ in range(2))
    quantizers = quantizers_of(plan, profile)
    units = _units(plain.graph, plan, profile, gates)
    signal = 0.0
    noise = {"all": 0.0} | {f"{kind} {unit.name}": 0.0 for unit in units for kind in ("alone", "without")}
    batches = batches_of(plain, images)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            float_values, int8_values = _values(plain, batch, {}), _values(whole, batch, quantizers)
            wanted = plain.answer(float_values)
            signal += _power(wanted)
            noise["all"] += _power(plain.answer(int8_values) - wanted)
            for place_of, unit in enumerate(units):
                own = {name: quantizers[name] for name in unit.tensors}
                others = {name: item for name, item in quantizers.items() if name not in own}
                network = _with_weights(plain, alone, unit)
                noise[f"alone {unit.name}"] += _power(_rest(network, unit, float_values, own, batch) - wanted)
                network = _with_weights(relieved, plain, unit)
                noise[f"without {unit.name}"] += _power(
                    _rest(network, unit, int8_values, others, batch) - wanted
                )
                if progress:
                    progress(number * len(units) + place_of + 1, len(batches) * len(units))
    whole_db = sqnr_of(signal, noise["all"])
    return [
        LayerSensitivity(
            name=unit.name,
            is_gate=unit.is_gate,
            tensors=len(unit.tensors),
            alone_sqnr_db=sqnr_of(signal, noise[f"alone {unit.name}"]),
            gain_db=sqnr_of(signal, noise[f"without {unit.name}"]) - whole_db,
        )
        for unit in units
    ]


def measure_gate_noise(
    graph: Graph,
    plan: QuantPlan,
    profile: Profile,
    place: Placement,
    images: Sequence[NDArray[np.float32]],
    gates: Sequence[GateRegion],
) -> dict[str, float]:
    """Return by gate's prefix what it alone, quantized as planned, does to the float network's logits.

    Args:
        graph: Canonical fp32 graph.
        plan: Complete plan, made with the gates' policies.
        profile: Which spelling.
        place: Axes of the weights.
        images: Arrays (1, C, H, W).
        gates: Attention modules.

    Returns:
        Power of the logits' error over the power of the logits; 0 for a gate in which nothing is quantized.
    """
    unshifted = plan.model_copy(update={"bias_shift": {}})
    adjusted = adjusted_graph(graph, unshifted, profile)
    plain, rounded = TorchGraph(adjusted), simulated(graph, unshifted, profile, place.weights)
    quantizers = quantizers_of(plan, profile)
    units = [unit for unit in _units(plain.graph, plan, profile, gates) if unit.is_gate]
    signal, noise = 0.0, {gate.prefix: 0.0 for gate in gates}
    with torch.no_grad():
        for batch in batches_of(plain, images):
            values = _values(plain, batch, {})
            wanted = plain.answer(values)
            signal += _power(wanted)
            for unit in units:
                own = {name: quantizers[name] for name in unit.tensors}
                found = _rest(_with_weights(plain, rounded, unit), unit, values, own, batch)
                noise[unit.name] += _power(found - wanted)
    return {name: power / max(signal, _SILENCE) for name, power in noise.items()}


def _units(graph: Graph, plan: QuantPlan, profile: Profile, gates: Sequence[GateRegion]) -> list[_Unit]:
    quantized = {name for name, item in plan.activations.items() if item.is_quantized(profile)}
    units: dict[str, _Unit] = {}
    for name in graph.input_names:
        if name in quantized:
            units[name] = _Unit(name, False, 0, [name], [])
    for index, node in enumerate(graph.nodes):
        result = node.output[0]
        weights = [name for name in node.input[1:2] if name in plan.weights]
        gate = next((gate.prefix for gate in gates if gate.holds(result)), None)
        if not weights and result not in quantized:
            continue
        key = gate or _written(graph, result, quantized)
        unit = units.setdefault(key, _Unit(key, gate is not None, index, [], []))
        unit.weights += weights
        unit.tensors += [result] if result in quantized else []
    return list(units.values())


def _written(graph: Graph, name: str, quantized: set[str]) -> str:
    """Return what the layer writes once activations that kernels take in have passed."""
    while name not in quantized:
        user = graph.only_consumer(name)
        if user is None or user.op_type not in FUSED_ACTIVATIONS:
            break
        name = user.output[0]
    return name


def _values(network: TorchGraph, batch: Tensor, quantizers: Mapping[str, Quantizer]) -> dict[str, Tensor]:
    values = {network.input_name: batch}
    everything = frozenset(
        [network.input_name, *(name for node in network.graph.nodes for name in node.output)]
    )
    network.run(values, range(len(network.graph.nodes)), quantizers, everything)
    return values


def _with_weights(network: TorchGraph, source: TorchGraph, unit: _Unit) -> TorchGraph:
    changed = copy.copy(network)
    changed.constants = {**network.constants, **{name: source.constants[name] for name in unit.weights}}
    return changed


def _rest(
    network: TorchGraph,
    unit: _Unit,
    before: Mapping[str, Tensor],
    quantizers: Mapping[str, Quantizer],
    batch: Tensor,
) -> Tensor:
    """Return the logits, from the unit's first operation on."""
    values = dict(before)
    if network.input_name in unit.tensors:
        values[network.input_name] = batch
    network.run(values, range(unit.first, len(network.graph.nodes)), quantizers, network.output_names)
    return network.answer(values)


def _power(value: Tensor) -> float:
    return float(value.double().square().sum())
