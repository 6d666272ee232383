"""A report with something in every field, for the tests of what reads one."""

from __future__ import annotations

import math
from typing import Any

from edgeattn.report import Report


def _latency(p50_ms: float) -> dict[str, Any]:
    return {
        "p50_ms": p50_ms,
        "p90_ms": p50_ms * 1.1,
        "p99_ms": p50_ms * 1.4,
        "mean_ms": p50_ms * 1.05,
        "runs": 1024,
        "threads": 1,
        "batch": 1,
        "warmup_runs": 20,
        "properties": {"pinned": False},
    }


def _target(name: str, int8_ms: float, fp32_ms: float, count: int = 24) -> dict[str, Any]:
    layers = [f"features.{index}.conv.{index % 3}" for index in range(count)]
    return {
        "status": "ok",
        "profile": "u8",
        "engine": {"path": f"{name}/int8.engine", "sha256": "ab" * 32, "size_bytes": 1234567},
        "build": {"runtime": name, "int8_convolutions": 52, "operators": {"Conv": 52}},
        "n": 360,
        "top1": 0.9833,
        "top1_interval": [0.9641, 0.9923],
        "top1_delta": -0.0028,
        "top1_delta_interval": [-0.0103, 0.0047],
        "agreement": 0.9917,
        "agreement_interval": [0.9759, 0.9972],
        "sqnr_db": 24.7,
        "kl": 0.0021,
        "mcnemar_p": 1.0,
        "latency": {"int8": _latency(int8_ms), "fp32": _latency(fp32_ms)},
        "speedup": fp32_ms / int8_ms,
        "speedup_interval": [fp32_ms / int8_ms - 0.1, fp32_ms / int8_ms + 0.1],
        "layers": [
            {"name": layer, "module": layer, "sqnr_db": 34 - 0.4 * index + 3 * math.sin(index)}
            for index, layer in enumerate(layers)
        ],
        "layer_times": [
            {"name": layer, "kind": "Conv", "dtype": "u8", "latency_us": 40 / (1 + index), "module": layer}
            for index, layer in enumerate(layers)
        ],
    }


def make_report(**changes: Any) -> Report:
    """Return a complete report, with top-level fields replaced by `changes`."""
    value: dict[str, Any] = {
        "recipe": {
            "name": "sample",
            "description": "MobileNetV2 0.35 with Coordinate Attention on handwritten digits.",
            "targets": ["ort-cpu", "openvino-cpu", "tensorrt-rtx"],
        },
        "fingerprint": "0123456789abcdef" * 4,
        "environment": {
            "cpu": {
                "model": "A CPU",
                "usable_cores": 2,
                "instruction_sets": ["avx2", "avx512_vnni", "amx_int8"],
            },
            "packages": {"numpy": "2.0"},
        },
        "verdict": "fail",
        "reasons": [
            {
                "bound": "float_top1_min",
                "target": None,
                "wanted": 0.97,
                "got": 0.9861,
                "passed": True,
                "certain": None,
                "text": "top-1 98.61 % over 360 images, meets at least 97.00 %",
            },
            {
                "bound": "speedup_min",
                "target": "ort-cpu",
                "wanted": 2.5,
                "got": 2.1,
                "passed": False,
                "certain": True,
                "text": "speedup 2.10x over 12 rounds, misses at least 2.50x (95 % interval 2.00x to 2.20x)",
            },
        ],
        "fp32": {"top1": 0.9861, "n": 360, "top1_interval": [0.9678, 0.9941]},
        "stages": [
            {"name": "train", "seconds": 61.5},
            {"name": "quantize", "seconds": 12.0, "resumed": True},
        ],
        "training": [
            {
                "stage": "float" if epoch < 8 else "qat",
                "epoch": epoch + 1 if epoch < 8 else epoch - 7,
                "loss": 2.2 * 0.6**epoch,
                "top1": 1 - 0.85 * 0.5**epoch - 0.014,
                "learning_rate": 1e-3,
                "seconds": 6.1,
            }
            for epoch in range(10)
        ],
        "quant": {"mode": "qat", "gate_policy": "int8", "tensors": 85},
        "sensitivity": {
            "u8": [
                {
                    "name": f"features/{index}/conv/0/0",
                    "module": f"features.{index}.conv",
                    "is_gate": index % 4 == 3,
                    "alone_sqnr_db": 40.0 - index,
                    "gain_db": 0.1 * index - 0.2,
                }
                for index in range(16)
            ],
            "s8": [],
        },
        "domain": {
            "distance": 0.2,
            "p_value": 0.002,
            "calibration_images": 48,
            "evaluation_images": 40,
            "is_unlike": True,
            "tensors": ["features/3/conv/3/batch_norm/0"],
        },
        "targets": {
            "ort-cpu": _target("ort-cpu", 0.21, 0.44),
            "openvino-cpu": _target("openvino-cpu", 0.17, 0.40),
            "tensorrt-rtx": {
                "status": "built",
                "reason": "No NVIDIA driver is installed here.",
                "profile": "s8",
                "checked_by": "ONNX Runtime on the CPU",
                "top1": 0.98,
                "agreement": 0.985,
                "sqnr_db": 22.4,
                "engine": {"path": "tensorrt-rtx/int8.engine", "sha256": "cd" * 32, "size_bytes": 999},
            },
        },
    }
    return Report.model_validate({**value, **changes})
