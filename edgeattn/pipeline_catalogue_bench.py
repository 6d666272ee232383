"""What the rows of the catalogue share: networks, their INT8 graphs, and engines."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import EdgeAttnError, ModelError
from edgeattn.measure import compare_latency
from edgeattn.targets import Engine, Feeds, Session, Target, TimingPlan
from edgeattn.targets._common import one_line
from edgeattn.targets.apart import build_apart

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from edgeattn.attention import AttentionInfo
    from edgeattn.measure.latency import LatencyComparison
    from edgeattn.pipeline_catalogue import CatalogueSettings
    from edgeattn.quant.plan import Profile

__all__ = ["Bench", "Quantized", "build", "networks_with_and_without", "quantize", "trained_like"]

_GATE_BOUND_DB = 25.0
_SLOW_SECONDS = 0.2
_POLICIES = ("int8", "float")
_CLASSES = 10


@dataclasses.dataclass
class Quantized:
    """A network's float graph, and its INT8 graph in each profile; at how many places the mechanism is in it."""

    floating: ModelProto
    graphs: dict[str, ModelProto]
    sqnr_db: dict[str, float]
    policy: str
    places: int = 1


class Bench:
    """What rows share: targets, inputs, and the bare network's engines.

    Args:
        settings: Of the catalogue.
    """

    def __init__(self, settings: CatalogueSettings) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="edgeattn-catalogue-"))
        self._bare: dict[str, Session] = {}
        self._bare_graphs: Quantized | None = None
        self._open = contextlib.ExitStack()

    def close(self) -> None:
        """Close the sessions and remove the files."""
        self._open.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def inputs(self, shape: Sequence[int], seed: int) -> list[NDArray[np.float32]]:
        """Return random inputs of a shape with batch 1."""
        from edgeattn.models.example import draw_maps

        drawn = draw_maps((self.settings.images, *shape[1:]), seed=self.settings.seed + seed).numpy()
        return list(drawn[:, None])

    def compare(self, sessions: Mapping[str, Session], feeds: Feeds) -> LatencyComparison:
        """Time engines in turns: as long as the settings say, less where one inference takes long."""
        settings = self.settings
        plan, rounds = TimingPlan(16, settings.timed_runs, 3.0, settings.threads), settings.rounds
        started = time.perf_counter()
        for session in sessions.values():
            session.infer(feeds)
        if time.perf_counter() - started > _SLOW_SECONDS:
            # Attention over thousands of positions: its time is anything but noise.
            plan, rounds = dataclasses.replace(plan, warmup_runs=1), min(rounds, 4)
        return compare_latency(sessions, feeds, plan, rounds=rounds)

    def bare_session(self, target: Target) -> Session:
        """Return an open engine of the network without attention, the same for all mechanisms."""
        if target.name not in self._bare:
            if self._bare_graphs is None:
                shape = (1, 3, self.settings.network_size, self.settings.network_size)
                self._bare_graphs = quantize(_small_network(self, None), shape, self, timed_with="int8")
            engine = build(self, target, self._bare_graphs, "bare")
            session = self._open.enter_context(target.open(engine, threads=self.settings.threads))
            self._bare[target.name] = session
        return self._bare[target.name]


def trained_like(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Give parameters that start at zero a value, and batch norms statistics of noise."""
    import torch
    from torch import nn

    from edgeattn.models.example import draw_maps, wake

    wake(network)
    norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(draw_maps((16, *shape[1:]), seed=1))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def _small_network(bench: Bench, info: AttentionInfo | None) -> nn.Module:
    import torch

    from edgeattn.models import create_model, insert_attention, replace_convolutions

    settings = bench.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = create_model("mobilenet_v2", num_classes=_CLASSES, width=settings.network_width)
        if info is not None and info.contract == "map":
            model = insert_attention(model, info.name, identity=False)
        elif info is not None:
            model = replace_convolutions(model, info.name)
    return trained_like(model, (1, 3, settings.network_size, settings.network_size))


def networks_with_and_without(
    info: AttentionInfo, policy: str, form: str | None, bench: Bench
) -> tuple[tuple[Quantized, Quantized | None] | None, str]:
    """Return a network with the mechanism and one without (None: the common one), or why there is none."""
    from edgeattn.models.example import make_example

    size = bench.settings.network_size
    try:
        if info.contract in ("map", "convolution"):
            network = _small_network(bench, info)
            shape = (1, 3, size, size)
            quantized = quantize(network, shape, bench, form=form, timed_with=policy)
            quantized.places = sum(getattr(m, "kind", None) == info.name for m in network.modules())
            return (quantized, None), ""
        example = make_example(info.name, seed=bench.settings.seed)
        if example.bare is None:
            return None, f"there is no network without it to compare with: it is a {info.contract}"
        both = [
            quantize(
                trained_like(network, example.input_shape),
                example.input_shape,
                bench,
                form=form,
                timed_with=policy,
            )
            for network in (example.network, example.bare)
        ]
        return (both[0], both[1]), ""
    except (EdgeAttnError, RuntimeError, ValueError, KeyError) as exc:
        return None, one_line(exc)


def quantize(
    network: nn.Module,
    shape: Sequence[int],
    bench: Bench,
    *,
    form: str | None = None,
    timed_with: str | None = None,
) -> Quantized:
    """Export and quantize a network in both profiles.

    The gate stays in float only where that is what brings it above the bound.

    Args:
        network: In float form and evaluation mode.
        shape: Of its input.
        bench: Settings.
        form: The mechanism's exact form; None: its default.
        timed_with: A gate policy. The result is only for timing on CPUs: calibrated on two inputs, without room
            for sums of 16 bits, in u8 alone. None: both policies are tried where the first is not enough.
    """
    from edgeattn.export.float_onnx import export_float
    from edgeattn.export.qdq import emit_qdq
    from edgeattn.models import to_edge_form
    from edgeattn.onnx_graph import Graph
    from edgeattn.quant.config import PtqConfig
    from edgeattn.quant.gates import gate_regions
    from edgeattn.quant.placement import place_quantizers
    from edgeattn.quant.ptq import make_plan
    from edgeattn.quant.simulation import PlanMeter

    edge = to_edge_form(network, shape[2], shape[3], form=form, materialize=True)
    floating = export_float(edge, shape).model
    quick = timed_with is not None
    images = bench.inputs(shape, 1)[: 2 if quick else None]
    found: Quantized | None = None
    for policy in _POLICIES if timed_with is None else (timed_with,):
        regions = gate_regions(edge, policy)  # type: ignore[arg-type]  # the names are those of the type
        config = PtqConfig(
            nncf=False,
            equalization=False,
            importance=False,
            padded_grids=False,
            tuning_steps=0,
            range_estimator="minmax" if quick else "mse",
            headroom="none" if quick else "measured",
            rounding=False,
        )
        plan = make_plan(floating, images, config, gates=regions)
        profiles: tuple[Profile, ...] = ("u8",) if quick else ("u8", "s8")
        graphs: dict[str, ModelProto] = {profile: emit_qdq(floating, plan, profile) for profile in profiles}
        sqnr = {"u8": 0.0, "s8": 0.0}
        if not quick:
            # On inputs that the ranges never saw.
            meter = PlanMeter(Graph(floating), place_quantizers(floating, regions), bench.inputs(shape, 2))
            step = meter.step("held out", plan, 0.0)
            sqnr = {"u8": step.sqnr_db_u8, "s8": step.sqnr_db_s8}
        if found is None or sqnr["u8"] > found.sqnr_db["u8"]:
            found = Quantized(floating, graphs, sqnr, policy)
        if found.sqnr_db["u8"] >= _GATE_BOUND_DB or not regions:
            break
    if found is None:
        raise RuntimeError("there is no gate policy")
    return found


def build(bench: Bench, target: Target, quantized: Quantized, name: str, *, floating: bool = False) -> Engine:
    """Lower and build one graph for a target, in a process of its own.

    A runtime that crashes over a graph ends that process, and not the catalogue.

    Raises:
        ModelError: If the runtime refuses the graph, or crashes over it; in one line.
    """
    from edgeattn.export.artifacts import save_artifact

    profile = "fp32" if floating else target.profile
    model = quantized.floating if floating else quantized.graphs[target.profile]
    folder = bench.folder / target.name / f"{name}-{profile}"
    folder.mkdir(parents=True, exist_ok=True)
    artifact = save_artifact(model, folder / f"{name}.{profile}.onnx", profile)
    lowered = target.lower(artifact, folder / "lowered")
    try:
        return build_apart(target, lowered, folder / "engine")
    except EdgeAttnError as exc:
        raise ModelError(one_line(exc)) from exc
