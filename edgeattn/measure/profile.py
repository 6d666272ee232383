"""Time by layer, by module and by kind of work, and how near each is to the machine's roofline.

Plain data in, plain data out: what a runtime reported, what the lowered graph must do, and what the
machine can do.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgeattn.measure.peaks import Peaks
from edgeattn.measure.work import CATEGORIES, Operation, Work
from edgeattn.targets.base import LayerTime
from edgeattn.targets.executed import ExecutedLayer

__all__ = ["GroupTime", "Profile", "ProfiledLayer", "make_profile"]

_CONVERSIONS = frozenset(
    {"cast", "convert", "flatten", "reformat", "reorder", "reshape", "squeeze", "transpose", "unsqueeze"}
    | {"dequantizelinear", "quantizelinear", "reorderinput", "reorderoutput"}
)
# What runtimes append to the name of the node that a layer came from.
_APPENDED = re.compile(r"(_token_\d+|_nchwc|_nhwc|/WithoutBiases.*|/DequantizationMultiply|\.dequantized)$")
_JOINED = re.compile(r"\s*\+\s*|,\s*|\s+|\(|\)|\|\|")
_INT8 = ("int8", "uint8")


@dataclasses.dataclass(frozen=True)
class ProfiledLayer:
    """One executed layer.

    Attributes:
        name: As the runtime spells it.
        kind: As the runtime spells it.
        dtype: Element type that it computes in; empty where the runtime does not tell.
        latency_us: Mean time.
        share: Of the time of all layers.
        module: Path of the module that it came from; empty if it belongs to none.
        group: The block or attention module around that.
        category: One of `edgeattn.measure.work.CATEGORIES`.
        operations: Of the lowered graph, that it executes.
        macs: Multiplications.
        bytes: That it must read and write at least.
        attainable_us: The roofline's time; None without peaks, 0 for what the network does not need.
        roofline: `attainable_us` / `latency_us`. Above 1 where data come from a cache.
    """

    name: str
    kind: str
    dtype: str
    latency_us: float
    share: float
    module: str
    group: str
    category: str
    operations: tuple[str, ...]
    macs: int
    bytes: int
    attainable_us: float | None
    roofline: float | None


@dataclasses.dataclass(frozen=True)
class GroupTime:
    """Layers taken together; fields as in `ProfiledLayer`."""

    name: str
    layers: int
    latency_us: float
    share: float
    macs: int
    bytes: int
    attainable_us: float | None
    roofline: float | None


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where an engine's time goes.

    Attributes:
        layers: In order of execution.
        modules: By block and attention module, in order of execution.
        categories: By kind of work.
        total: All layers.
        peaks: What the roofline is made of, or None.
    """

    layers: tuple[ProfiledLayer, ...]
    modules: tuple[GroupTime, ...]
    categories: tuple[GroupTime, ...]
    total: GroupTime
    peaks: Peaks | None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return dataclasses.asdict(self)


def make_profile(
    times: Sequence[LayerTime],
    executed: Sequence[ExecutedLayer],
    work: Work,
    peaks: Peaks | None = None,
    precision: str = "int8",
) -> Profile:
    """Attribute times to modules and compare them with the roofline.

    Args:
        times: What the runtime's profiler reports.
        executed: The graph that it executes; may be empty, then names alone have to tell.
        work: What the lowered graph must do.
        peaks: What the machine can do, or None.
        precision: The engine's, for layers that do not tell theirs.
    """
    entries = _entries(times, executed)
    _claim(entries, work)
    _place(entries, work)
    whole = sum(time.latency_us for time in times)
    layers = tuple(
        _layer(entry, entry.time, work, whole, peaks, precision)
        for entry in entries
        # A layer shorter than the profiler's clock can tell is missing in its report, and still does its work.
        if entry.time.latency_us > 0 or entry.owned
    )
    groups = _group(layers, lambda layer: layer.group, whole)
    kinds = _group(layers, lambda layer: layer.category, whole)
    kinds.sort(key=lambda group: CATEGORIES.index(group.name))
    return Profile(layers, tuple(groups), tuple(kinds), _sum("total", layers, whole), peaks)


# -------------------------------------------------------------------------------- attribution


@dataclasses.dataclass
class _Entry:
    """An executed layer while it is being attributed.

    Attributes:
        kind: As the runtime spells it.
        originals: Names it came from.
        producers: Places of the layers it reads.
        time: Its time, 0 where the profiler reports none.
        owned: Operations that it executes.
        stored: What computes the tensors that it converts; empty for what nothing computes.
        module: None while unknown.
    """

    kind: str
    originals: tuple[str, ...]
    producers: tuple[int, ...]
    time: LayerTime
    owned: list[str] = dataclasses.field(default_factory=list)
    stored: list[str] = dataclasses.field(default_factory=list)
    module: str | None = None

    @property
    def idle(self) -> bool:
        return not self.owned and not self.stored


def _entries(times: Sequence[LayerTime], executed: Sequence[ExecutedLayer]) -> list[_Entry]:
    """Join times and executed layers by name; nameless ones by their order among those of their kind."""
    named = {layer.name: place for place, layer in enumerate(executed) if layer.name}
    nameless: dict[str, list[int]] = {}
    for place, layer in enumerate(executed):
        if not layer.name:
            nameless.setdefault(layer.kind, []).append(place)
    entries = [
        _Entry(layer.kind, layer.originals, layer.producers, LayerTime(layer.name, layer.kind, "", 0.0))
        for layer in executed
    ]
    unknown = Counter(time.kind for time in times if time.name not in named)
    counts = {kind: len(places) for kind, places in nameless.items()}
    more: list[_Entry] = []
    for time in times:
        places = nameless.get(time.kind, [])
        if time.name in named:
            entries[named[time.name]].time = time
        # Only if all of the kind are there can their order tell which is which.
        elif places and unknown[time.kind] == counts[time.kind]:
            entries[places.pop(0)].time = time
        else:
            parts = tuple(part for part in _JOINED.split(time.name) if part)
            more.append(_Entry(time.kind, parts, (), time))
    return entries + more


def _claim(entries: Sequence[_Entry], work: Work) -> None:
    """Give every operation to the layer that executes it."""
    owner: dict[str, _Entry] = {}
    writers: dict[str, _Entry] = {}
    for entry in entries:
        for original in entry.originals:
            for spelling in _spellings(original):
                name = work.tensors.get(spelling, spelling)
                if name in work.operations:
                    if name not in owner and entry.kind not in ("Input", "Output"):
                        owner[name] = entry
                        entry.owned.append(name)
                    break
                if name in work.passed:
                    root = work.passed[name]
                    entry.stored.append(root)
                    writers.setdefault(root, entry)
                    break
    # Operations that no name tells of: those before the last of a fused layer, and those that the
    # runtime split into others (HardSwish, say), which end where the result is quantized.
    for name in reversed(work.operations):
        if name in owner:
            continue
        operation = work.operations[name]
        readers = [reader for reader, _ in operation.uses]
        entry_found = writers.get(name)
        if entry_found is not None and not entry_found.owned:
            split = [entries[place] for place in entry_found.producers if entries[place].idle]
            entry_found = split[0] if split else entry_found
        elif entry_found is None and len(readers) == 1 and readers[0] in owner:
            reader = work.operations[readers[0]]
            entry_found = owner[readers[0]] if not reader.macs else None
        if entry_found is not None:
            owner[name] = entry_found
            entry_found.owned.append(name)
    # What is left are activations fused into what they follow. A product is not: a runtime that shows none
    # found it to be computed twice, and does it once.
    for name, operation in work.operations.items():
        if name not in owner and not operation.macs:
            sources = [owner[tensor] for tensor, _ in operation.reads if tensor in owner]
            if sources:
                owner[name] = sources[-1]
                sources[-1].owned.append(name)


def _spellings(name: str) -> Iterable[str]:
    """Yield a name, and what remains of it without each thing that a runtime appends."""
    yield name
    while (shorter := _APPENDED.sub("", name)) != name:
        name = shorter
        yield name


def _place(entries: Sequence[_Entry], work: Work) -> None:
    """Find every layer's module; layers of no module belong to what they serve, then to what they read."""
    consumers: dict[int, list[_Entry]] = {}
    for entry in entries:
        for place in entry.producers:
            consumers.setdefault(place, []).append(entry)
        names = [_main(entry, work)] if entry.owned else [name for name in entry.stored if name]
        modules = [work.operations[name].module for name in names]
        entry.module = next((module for module in modules if module), None)
    changed = True
    while changed:
        changed = False
        for direction in (consumers, {i: [entries[p] for p in e.producers] for i, e in enumerate(entries)}):
            for place in reversed(range(len(entries))):
                entry = entries[place]
                near = next((other.module for other in direction.get(place, ()) if other.module), None)
                if entry.module is None and near is not None:
                    entry.module = near
                    changed = True


def _main(entry: _Entry, work: Work) -> str:
    """Return the operation that a layer is named for here: most multiplications, then the first."""
    order = {name: place for place, name in enumerate(work.operations)}
    return max(entry.owned, key=lambda name: (work.operations[name].macs, -order[name]))


def _category(entry: _Entry, work: Work) -> str:
    if entry.module is not None and work.attention_of(entry.module):
        return "attention"
    if entry.owned:
        return work.operations[_main(entry, work)].category
    if entry.kind.lower() in _CONVERSIONS or entry.stored:
        return "conversion" if entry.module is not None else "unattributed"
    return "other" if entry.module is not None else "unattributed"


# ----------------------------------------------------------------------------------- roofline


def _layer(
    entry: _Entry, time: LayerTime, work: Work, whole: float, peaks: Peaks | None, precision: str
) -> ProfiledLayer:
    operations = [work.operations[name] for name in entry.owned]
    macs = sum(operation.macs for operation in operations)
    size = _least_bytes(operations)
    attainable = None
    if peaks is not None:
        int8 = time.dtype in _INT8 if time.dtype else precision == "int8"
        attainable = peaks.attainable_us(macs, size, "int8" if int8 else "float")
    category = _category(entry, work)
    module = entry.module or ""
    outside = category if category == "unattributed" else "no module"
    return ProfiledLayer(
        name=time.name,
        kind=time.kind,
        dtype=time.dtype,
        latency_us=time.latency_us,
        share=time.latency_us / whole if whole > 0 else 0.0,
        module=module,
        group=work.group_of(module) if module else outside,
        category=category,
        operations=tuple(entry.owned),
        macs=macs,
        bytes=size,
        attainable_us=attainable,
        roofline=_quotient(attainable, time.latency_us),
    )


def _least_bytes(operations: Sequence[Operation]) -> int:
    """Return what passes the border of a layer: between its own operations nothing needs to be stored."""
    inside = {operation.name for operation in operations}
    reads: dict[str, int] = {}
    writes = weights = 0
    for operation in operations:
        weights += operation.weight_bytes
        writes += max((size for reader, size in operation.uses if reader not in inside), default=0)
        for tensor, size in operation.reads:
            if tensor not in inside:
                reads[tensor] = max(reads.get(tensor, 0), size)
    return weights + writes + sum(reads.values())


def _group(
    layers: Sequence[ProfiledLayer], key: Callable[[ProfiledLayer], str], whole: float
) -> list[GroupTime]:
    members: dict[str, list[ProfiledLayer]] = {}
    for layer in layers:
        members.setdefault(key(layer), []).append(layer)
    return [_sum(name, found, whole) for name, found in members.items()]


def _sum(name: str, layers: Sequence[ProfiledLayer], whole: float) -> GroupTime:
    latency = sum(layer.latency_us for layer in layers)
    known = [layer.attainable_us for layer in layers if layer.attainable_us is not None]
    attainable = sum(known) if known and len(known) == len(layers) else None
    return GroupTime(
        name=name,
        layers=len(layers),
        latency_us=latency,
        share=latency / whole if whole > 0 else 0.0,
        macs=sum(layer.macs for layer in layers),
        bytes=sum(layer.bytes for layer in layers),
        attainable_us=attainable,
        roofline=_quotient(attainable, latency),
    )


def _quotient(attainable: float | None, latency: float) -> float | None:
    return attainable / latency if attainable is not None and latency > 0 else None
