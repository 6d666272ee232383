"""The Jetson kit: a folder that needs JetPack's Python, TensorRT and NumPy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.artifact import sha256_of_bytes, write_bytes, write_json
from edgeattn.data.images import load_image
from edgeattn.data.preprocess import resize_and_crop
from edgeattn.errors import ArtifactError
from edgeattn.kit import KitKind
from edgeattn.kit.deploy_files import copy_program
from edgeattn.kit.model_folder import load_reference
from edgeattn.kit.spec import KitModel
from edgeattn.targets import jetson_support

__all__ = ["KIND"]


def _write_program(folder: Path, model: KitModel) -> None:
    copy_program("jetson", folder)
    write_bytes(folder / "jetson_support.py", Path(jetson_support.__file__).read_bytes())
    pixels = _pixels(folder / "model", model)
    write_bytes(folder / "pixels.npy", pixels)
    write_json(folder / "job.json", _job(model, sha256_of_bytes(pixels)))


def _pixels(folder: Path, model: KitModel) -> bytes:
    """Return the reference images as the network sees them before normalization: (N, S, S, 3) uint8 in .npy.

    A Jetson has NumPy, but nothing that resizes exactly as Pillow does.
    """
    pictures = []
    for image in load_reference(folder, model).images:
        pixels = np.ascontiguousarray(resize_and_crop(load_image(folder / image.file), model.preprocess))
        if sha256_of_bytes(pixels.tobytes()) != image.pixels_sha256:
            raise ArtifactError(
                f"{folder / image.file} gives other pixels here than where its expected outputs were computed. "
                "Use the Pillow version of constraints.txt."
            )
        pictures.append(pixels)
    stream = io.BytesIO()
    np.save(stream, np.stack(pictures), allow_pickle=False)
    return stream.getvalue()


def _job(model: KitModel, pixels_sha256: str) -> dict[str, Any]:
    tensors = {name: getattr(model.model, name).model_dump(mode="json") for name in ("input", "output")}
    return {
        "schema_version": 1,
        "id": "kit",
        "runtime": "auto",
        "model": {"file": f"model/{model.model.file}", "sha256": model.model.sha256, **tensors},
        "options": {"optimization_level": None, "tf32": True, "threads": 1},
        "reference": {
            "pixels": {"file": "pixels.npy", "sha256": pixels_sha256},
            "expected": {"file": f"model/{model.reference.file}", "sha256": model.reference.sha256},
            "mean": list(model.preprocess.mean),
            "std": list(model.preprocess.std),
        },
        "timing": {"warmup_runs": 50, "min_runs": 1024, "min_seconds": 10.0},
    }


KIND = KitKind(
    name="jetson",
    summary="builds a TensorRT engine on the device, checks it and measures it",
    write_program=_write_program,
    next_steps=(
        "scp -r . jetson:jetson-kit        # to your device; then there, in jetson-kit:",
        "python3 run.py --check",
        "python3 run.py",
        "python3 run.py --runtime ort      # on any machine with ONNX Runtime",
    ),
    profile="s8",
)
