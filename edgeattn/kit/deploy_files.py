"""Where the program files of kits lie: in a checkout, or inside an installed package."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeattn.errors import ArtifactError

__all__ = ["copy_program", "demo_folder", "deploy_folder"]

_PACKAGE = Path(__file__).resolve().parents[1]
# What building and testing a kit in place leaves behind is no part of it.
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "build", "build-*", "node_modules")


def deploy_folder() -> Path:
    """Return the folder that holds ``python/``, ``web/``, ``demo/`` and the like.

    A wheel carries it as ``edgeattn/_deploy``; in a checkout it is ``deploy/`` beside the package.

    Raises:
        ArtifactError: If neither is there.
    """
    for folder in (_PACKAGE.parent / "deploy", _PACKAGE / "_deploy"):
        # Another project's deploy/ may lie beside an installed package.
        if (folder / "model.schema.json").is_file():
            return folder
    raise ArtifactError(
        f"The kits' files are neither in {_PACKAGE / '_deploy'} nor in {_PACKAGE.parent / 'deploy'}. "
        "Install edgeattn again: pip install --force-reinstall edgeattn"
    )


def demo_folder() -> Path:
    """Return the folder of the demonstration's model."""
    return deploy_folder() / "demo"


def copy_program(kind: str, folder: Path) -> None:
    """Copy the program files of a kit, ``deploy/<kind>/``, into `folder`.

    Hidden files and what building leaves behind stay away.

    Raises:
        ArtifactError: If they are not there or cannot be written.
    """
    source = deploy_folder() / kind
    if not source.is_dir():
        raise ArtifactError(f"The files of the {kind} kit are missing: {source}. Install edgeattn again.")
    try:
        shutil.copytree(source, folder, ignore=_LEFT_OUT, dirs_exist_ok=True)
    except (OSError, shutil.Error) as exc:
        raise ArtifactError(
            f"Cannot copy {source} to {folder}: {exc}. Check that the folder is writable and the disk not full."
        ) from exc
