"""The C++ kit: a library with a C interface, and a command, on OpenVINO."""

from __future__ import annotations

from pathlib import Path

from edgeattn.kit import KitKind
from edgeattn.kit.deploy_files import copy_program
from edgeattn.kit.spec import KitModel

__all__ = ["KIND"]


def _write_program(folder: Path, model: KitModel) -> None:
    copy_program("cpp", folder)


KIND = KitKind(
    name="cpp",
    summary="a C++ library with a C interface, and a command",
    write_program=_write_program,
    next_steps=(
        'cmake -S . -B build -DOpenVINO_DIR="$(python3 cmake/find_openvino.py)"',
        "cmake --build build",
        "ctest --test-dir build --output-on-failure",
        "build/edgeattn-classify model/images/0001.jpg",
    ),
    variants=("openvino",),
)
