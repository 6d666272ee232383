"""Networks that nobody wrote: every profile means the float network, every target's graph and engine the profile's.

Each network runs in a process of its own: OpenVINO has ended it more than once.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lowering_graphs import compile_openvino, onnx_runtime_before, open_session

from edgeattn.errors import ModelError
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.from_onnx import load_float_onnx
from edgeattn.export.qdq import emit_qdq
from edgeattn.export.reorder import reorder_channels
from edgeattn.lower import lower_model
from edgeattn.lower.part_resizes import PartResizes
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.pixel_input import pixel_model
from edgeattn.quant.plan import PROFILES
from edgeattn.quant.ptq import make_plan
from edgeattn.targets import get_target

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("openvino", reason="openvino is not installed")

TARGETS = ("ort-cpu", "openvino-cpu", "tensorrt", "ort-portable", "ort-web")
NEAR_DB = 30.0
"""An engine that is so near to its graph computes it, however little the graph's own quantization costs."""
SLACK_DB = 8.0
"""Runtimes leave out or add roundings here and there; a lost clip or bias costs 15 dB and more."""
_LEAST_SHARE = 1e-3
MEAN = np.asarray([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
DEVIATION = np.asarray([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)


def photographs(seed: int, count: int) -> list[Any]:
    """Return pixels as a network reads them: blocks with noise."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        blocks = generator.integers(0, 256, (1, 3, 8, 8)).repeat(4, 2).repeat(4, 3)
        pixels = np.clip(blocks + generator.integers(-20, 21, blocks.shape), 0, 255)
        images.append(((pixels / 255 - MEAN) / DEVIATION).astype(np.float32))
    return images


def signal_of(floats: Any) -> float:
    """Return the power of what differs between images, or of all where that is next to nothing.

    Biases alone would make an error look small.
    """
    power = float(np.square(floats, dtype=np.float64).sum())
    varying = float(np.square(floats - floats.mean(0, keepdims=True), dtype=np.float64).sum())
    return varying if varying > _LEAST_SHARE * power else power


def sqnr_db(wanted: Any, got: Any, signal: float) -> float:
    noise = float(np.square(got.astype(np.float64) - wanted).sum())
    return float("inf") if noise == 0 else 10 * np.log10(signal / noise)


def faults(seed: int, modern: bool, folder: Path) -> list[str]:
    """Return what is wrong with a network, its plan, its graphs and its engines."""
    import torch
    from random_modern_networks import ModernNetwork
    from random_networks import RandomNetwork, export, random_network

    images = photographs(seed, 28)
    calibration, held_out = images[:20], images[20:]
    path = folder / f"{seed}.onnx"
    kind = ModernNetwork if modern else RandomNetwork
    path.write_bytes(export(random_network(seed, torch.from_numpy(np.concatenate(calibration)), kind)))
    canonical = load_float_onnx(path)

    def outputs(model: onnx.ModelProto, *, optimized: bool = False) -> Any:
        session = open_session(model, optimized=optimized)
        return np.concatenate([session.run(None, {"image": image})[0] for image in held_out])

    found = []
    floats = outputs(canonical)
    signal = signal_of(floats)
    if sqnr_db(outputs(onnx.load(str(path))), floats, signal) < 80:
        found.append("the canonical graph")
    in_pixels = pixel_model(canonical, calibration)
    planned = in_pixels or canonical
    config = PtqConfig(tuning_steps=4 if seed % 4 == 0 else 0, exact=bool(seed % 2))
    plan = make_plan(planned, calibration, config, plain=canonical if in_pixels else None)
    for profile in PROFILES:
        in_place = emit_qdq(planned, plan, profile, reorders_channels=False)
        quantized = reorder_channels(in_place, planned, plan, profile, held_out)
        plain = outputs(quantized)
        bound = min(NEAR_DB, sqnr_db(floats, plain, signal)) - SLACK_DB
        for target in TARGETS:
            more = (PartResizes(),) if target == "ort-cpu" and onnx_runtime_before(1, 27) else ()
            lowered, _ = lower_model(quantized, target, more=more)
            made = {"graph": outputs(lowered)}
            if target == "ort-cpu":
                made["engine"] = outputs(lowered, optimized=True)
            if target == "openvino-cpu":
                compiled = compile_openvino(lowered)
                made["engine"] = np.concatenate([compiled({"image": image})[0] for image in held_out])
            found += [
                f"{profile} {target} {what}: {sqnr_db(plain, got, signal):.1f} dB, wanted {bound:.1f}"
                for what, got in made.items()
                if not sqnr_db(plain, got, signal) >= bound
            ]
        if profile == "s8" and modern:
            found += refusals(quantized, folder)
    return found


def refusals(model: onnx.ModelProto, folder: Path) -> list[str]:
    """Return why TensorRT-RTX builds no engine of a graph in profile s8; nothing where it is not installed."""
    target = get_target("tensorrt-rtx")
    if not target.probe().can_build:
        return []
    artifact = save_artifact(model, folder / "model.s8.onnx", "s8")
    try:
        target.build(target.lower(artifact, folder / "lowered"), folder / "engine")
    except ModelError as exc:
        return [f"tensorrt-rtx: {exc}"]
    return []


def _report(seed: int, modern: bool, folder: Path, channel: Any) -> None:
    try:
        channel.send(faults(seed, modern, folder))
    except Exception as exc:
        channel.send([f"{type(exc).__name__}: {exc}"])


def check(seed: int, folder: Path, *, modern: bool = False) -> None:
    mine, its = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_report, args=(seed, modern, folder, its))
    process.start()
    its.close()
    try:
        found = mine.recv()
    except EOFError:
        process.join()
        found = [f"the process ended with {process.exitcode}"]
    process.join()
    assert not found, f"random_networks.random_network({seed}, modern={modern}): {found}"


@pytest.mark.parametrize("modern", [False, True], ids=["classic", "modern"])
@pytest.mark.parametrize("seed", range(6))
def test_every_target_computes_a_random_network(seed: int, modern: bool, tmp_path: Path) -> None:
    check(seed, tmp_path, modern=modern)


@pytest.mark.slow
@pytest.mark.parametrize("modern", [False, True], ids=["classic", "modern"])
@pytest.mark.parametrize("first", range(6, 406, 50))
def test_every_target_computes_many_random_networks(first: int, modern: bool, tmp_path: Path) -> None:
    for seed in range(first, first + 50):
        check(seed, tmp_path, modern=modern)
