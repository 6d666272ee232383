"""Which of OpenVINO's kernels each convolution of an engine runs in, chosen by timing them.

OpenVINO takes the first of oneDNN's implementations that can run a layer. That is the newest instruction set's, which
is made for large layers: on a processor with AMX, convolutions of an image's three channels, or of a gate's eight,
are faster without it. So every implementation is timed in the network itself, layer by
layer, and the fastest is written into the engine's file as the layer's ``primitives_priority``, an attribute that
OpenVINO's intermediate representation has for this. A processor that lacks the implementation ignores it.

Timing a layer alone would tell little: its weights, and the code that oneDNN writes for every shape, are in the caches
then. A gate's 7 x 1 convolution takes 3 us alone and 13 in a network with Triplet Attention, which has 2 MB of code
(the bare network 0.4 MB; AMD Zen 4, 1 MB of second-level cache).

Kernels sum the same integers in another order, so no number may change; what changes one is not taken.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["KernelChoice", "choose_kernels", "with_priorities"]

_FIRST = ""
_FAMILIES: dict[str, str] = {
    "brgconv": "cpu:brgconv_avx512_1x1,cpu:brgconv_avx512,cpu:brgconv_avx2_1x1,cpu:brgconv_avx2",
    "jit": "cpu:jit_avx512_1x1,cpu:jit_avx512,cpu:jit_avx2_1x1,cpu:jit_avx2",
}
"""Name in reports -> what oneDNN calls its implementations, for one layer the first that exists here."""

_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_INT8_TYPES = ("_I8", "_U8")
_LEAST_CONVOLUTIONS = 8
_LEAST_GAIN = 0.05
_LEAST_GAIN_US = 0.5
_ROUNDS = 4
_ROUND_SECONDS = 0.08
_CHECKS = 3


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """What timing found.

    Attributes:
        layers: Layer's name -> family, for layers that do not run in OpenVINO's first choice.
        text: The model's text that says so.
        gain: How many times as fast the engine got, medians in alternation; 1 if nothing was changed.
        reason: Why nothing was changed, or an empty string.
    """

    layers: Mapping[str, str]
    text: str
    gain: float = 1.0
    reason: str = ""

    def details(self) -> dict[str, Any]:
        """Return what an engine's details say about it."""
        counts: dict[str, Any] = dict(sorted(Counter(self.layers.values()).items()))
        return {**counts, "gain": round(self.gain, 3), "reason": self.reason}


def with_priorities(text: str, layers: Mapping[str, str]) -> str:
    """Return a model's text in which the convolutions of `layers` ask for the family of kernels named there.

    Args:
        text: OpenVINO's intermediate representation, as it was saved here.
        layers: Layer's name -> ``"brgconv"`` or ``"jit"``.
    """
    root = ET.fromstring(text)
    for layer in _convolutions(root):
        family = layers.get(layer.get("name", ""))
        if family is None:
            continue
        info = layer.find("rt_info")
        if info is None:
            # OpenVINO reads a layer's parts in this order: data, rt_info, input, output.
            info = ET.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, info)
        ET.SubElement(info, "attribute", name="primitives_priority", version="0", value=_FAMILIES[family])
    return '<?xml version="1.0"?>\n' + ET.tostring(root, encoding="unicode")


def choose_kernels(text: str, compile_model: Callable[[str], Any]) -> tuple[KernelChoice, Any]:
    """Time every family of kernels in a network and choose the fastest for each convolution.

    Args:
        text: OpenVINO's intermediate representation, as it was saved here.
        compile_model: Compiles such a text for one thread, with performance counters.

    Returns:
        The choice, and the engine compiled with it.
    """
    names = [layer.get("name", "") for layer in _convolutions(ET.fromstring(text))]
    if len(names) < _LEAST_CONVOLUTIONS:
        return KernelChoice({}, text, reason=f"fewer than {_LEAST_CONVOLUTIONS} convolutions"), compile_model(
            text
        )
    texts = {_FIRST: text} | {name: with_priorities(text, dict.fromkeys(names, name)) for name in _FAMILIES}
    with ThreadPoolExecutor(len(texts)) as pool:
        compiling = {name: pool.submit(compile_model, value) for name, value in texts.items()}
    engines = {_FIRST: compiling.pop(_FIRST).result()}
    # A kernel that cannot take a layer after all is no reason to have no engine.
    engines |= {name: future.result() for name, future in compiling.items() if future.exception() is None}
    plain = engines[_FIRST]
    layers = _fastest(_layer_times(engines), names)
    if not layers:
        return KernelChoice({}, text, reason="OpenVINO's first choice is the fastest everywhere"), plain
    del engines
    changed = with_priorities(text, layers)
    chosen = compile_model(changed)
    if not _are_equal(plain, chosen):
        return KernelChoice({}, text, reason="other kernels gave other numbers"), plain
    gain = _gain(plain, chosen)
    if gain <= 1.0:
        return KernelChoice({}, text, reason="no faster as a whole"), plain
    return KernelChoice(layers, changed, gain), chosen


def _convolutions(root: ET.Element) -> list[ET.Element]:
    return [layer for layer in root.iterfind("layers/layer") if layer.get("type") in _CONVOLUTIONS]


def _fastest(times_us: Mapping[str, Mapping[str, float]], names: list[str]) -> dict[str, str]:
    """Return the family of every layer in which another than the first choice is faster beyond doubt."""
    first = times_us[_FIRST]
    layers = {}
    for name in names:
        if name not in first:
            continue  # It became part of another layer, or was renamed.
        others = {
            family: times[name] for family, times in times_us.items() if family != _FIRST and name in times
        }
        if not others:
            continue
        family = min(others, key=others.__getitem__)
        gain_us = first[name] - others[family]
        if gain_us >= max(_LEAST_GAIN_US, _LEAST_GAIN * first[name]):
            layers[name] = family
    return layers


def _layer_times(compiled: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the time of every layer that is computed in INT8, in us, by variant; measured in alternation.

    Sums of floats depend on their order, and thus on the kernel: float layers stay where they are.
    """
    requests = {family: _request(model) for family, model in compiled.items()}
    samples: dict[str, dict[str, list[float]]] = {family: {} for family in requests}
    for round_index in range(_ROUNDS):
        order = list(requests) if round_index % 2 == 0 else list(requests)[::-1]
        for family in order:
            request = requests[family]
            request.infer()  # Brings code and weights into the caches.
            for _ in _for_seconds(_ROUND_SECONDS):
                request.infer()
                for info in request.get_profiling_info():
                    if info.status.name == "EXECUTED" and info.exec_type.endswith(_INT8_TYPES):
                        microseconds = info.real_time.total_seconds() * 1e6
                        samples[family].setdefault(info.node_name, []).append(microseconds)
    return {
        family: {name: statistics.fmean(_middle(values)) for name, values in layers.items()}
        for family, layers in samples.items()
    }


def _middle(values: list[float]) -> list[float]:
    # The counters are in whole microseconds, which a median cannot resolve: the mean of the middle half can.
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return ordered[quarter : len(ordered) - quarter]


def _for_seconds(seconds: float, at_least: int = 4, at_most: int = 64) -> Iterator[int]:
    begin = time.perf_counter()
    for count in range(at_most):
        if count >= at_least and time.perf_counter() - begin > seconds:
            return
        yield count


def _gain(plain: Any, chosen: Any) -> float:
    """Return the median of the ratios of both engines' latencies, measured in alternation."""
    requests = {"plain": _request(plain), "chosen": _request(chosen)}
    ratios = []
    for round_index in range(2 * _ROUNDS):
        order = list(requests) if round_index % 2 == 0 else list(requests)[::-1]
        medians = {name: _median_seconds(requests[name]) for name in order}
        ratios.append(medians["plain"] / medians["chosen"])
    return statistics.median(ratios)


def _median_seconds(request: Any) -> float:
    request.infer()
    runs = []
    for _ in _for_seconds(_ROUND_SECONDS / 2):
        begin = time.perf_counter()
        request.infer()
        runs.append(time.perf_counter() - begin)
    return statistics.median(runs)


def _are_equal(plain: Any, chosen: Any) -> bool:
    """Whether two engines write the same numbers, bit for bit, for inputs of several sizes."""
    for seed in range(_CHECKS):
        feeds = _feeds(plain, seed)
        wanted, got = plain(feeds), chosen(feeds)
        for index in range(len(plain.outputs)):
            if not np.array_equal(wanted[index], got[index], equal_nan=True):
                return False
    return True


def _request(model: Any) -> Any:
    request = model.create_infer_request()
    for index, values in enumerate(_feeds(model, 0)):
        request.get_input_tensor(index).data[:] = values
    return request


def _feeds(model: Any, seed: int) -> list[NDArray[Any]]:
    generator = np.random.default_rng(seed)
    feeds = []
    for port in model.inputs:
        dtype = np.dtype(port.element_type.to_dtype())
        values = generator.standard_normal(tuple(port.shape)) * (0.5 + seed)
        # Whole numbers may be places in a table, of which the first exists.
        feeds.append(values.astype(dtype) if dtype.kind == "f" else np.zeros(values.shape, dtype))
    return feeds
