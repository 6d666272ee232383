"""Write a kit's folder, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgeattn.artifact import follow_links
from edgeattn.errors import ArtifactError, RecipeError
from edgeattn.kit import KitKind, get_kit
from edgeattn.kit.deploy_files import demo_folder
from edgeattn.kit.from_run import KitRequest, build_model
from edgeattn.kit.model_folder import copy_model, load_model, manifest_name
from edgeattn.kit.spec import MANIFEST, KitModel
from edgeattn.progress import Progress, SilentProgress

__all__ = ["MODEL_FOLDER", "write_kit"]

MODEL_FOLDER = "model"


def write_kit(
    kind: KitKind | str,
    run: Path | None,
    out: Path,
    *,
    request: KitRequest | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> KitModel:
    """Make a kit of a run.

    Args:
        kind: Which kind.
        run: Folder of a finished run; None for the demonstration, which needs neither a run nor a runtime.
        out: Folder of the kit: absent, empty, or with `force` an earlier kit, which is replaced as a whole.
        request: Photographs and the like; the profile and the variants are the kind's.
        force: Replace a kit.
        progress: Hears how far it is.

    Returns:
        What the kit's ``model.json`` says.

    Raises:
        RecipeError: If `out` holds something else, or the run cannot be made a kit of.
        ArtifactError: If the run is unfinished, failed or was changed, or the kit cannot be written.
    """
    kind = get_kit(kind) if isinstance(kind, str) else kind
    progress = progress or SilentProgress()
    request = dataclasses.replace(request or KitRequest(), profile=kind.profile, variants=kind.variants)
    out = follow_links(out)
    _check_out(out, force)
    with _staged(out) as folder:
        if run is None:
            manifest = demo_folder() / manifest_name(kind.profile)
            model = copy_model(manifest, folder / MODEL_FOLDER, kind.variants)
        else:
            model = build_model(run, folder / MODEL_FOLDER, request, progress=progress)
        progress.note(f"{len(model.all_files()) + 1} files of the model, each with its hash")
        kind.write_program(folder, model)
    return model


def _check_out(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise RecipeError(f"{out} is a file. Choose a folder for the kit: --out DIR.")
    if not any(out.iterdir()):
        return
    try:
        load_model(out / MODEL_FOLDER / MANIFEST)
    except ArtifactError as exc:
        raise RecipeError(
            f"{out} is not empty and holds no kit, so it is left alone. Choose another --out folder."
        ) from exc
    if not force:
        raise RecipeError(
            f"{out} holds a kit already. --force replaces it, with everything in the folder; "
            "or choose another --out folder."
        )


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`; on success it takes the place of `out`, otherwise it goes."""
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
        yield staging
        staging.chmod(0o755)
        _exchange(staging, out)
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ArtifactError(
            f"Cannot write the kit {out}: {exc.strerror or exc}. "
            + ("Free some space" if full else "Check that its parent folder is writable")
            + ", then run the same command again; nothing was left half-written."
        ) from exc
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _exchange(staging: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        os.replace(staging, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    os.replace(out, old)
    try:
        os.replace(staging, out)
    except OSError:
        os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)
