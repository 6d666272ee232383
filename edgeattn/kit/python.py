"""The Python kit: one file that needs NumPy, Pillow, and ONNX Runtime or OpenVINO."""

from __future__ import annotations

from pathlib import Path

from edgeattn.kit import KitKind
from edgeattn.kit.deploy_files import copy_program
from edgeattn.kit.spec import KitModel

__all__ = ["KIND"]


def _write_program(folder: Path, model: KitModel) -> None:
    copy_program("python", folder)


KIND = KitKind(
    name="python",
    summary="a class, a command and an HTTP service in one file",
    write_program=_write_program,
    next_steps=(
        "pip install -r requirements.txt",
        "python edgeattn_classify.py --self-test",
        "python edgeattn_classify.py model/images/0001.jpg",
        "python edgeattn_classify.py --serve",
    ),
    variants=("openvino",),
)
