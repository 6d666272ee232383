"""Make the demonstration's folder, ``deploy/demo/``, from a run of ``recipes/sign_digits_demo.yaml``.

``python -m edgeattn.kit.demo RUN`` does it in a checkout. It holds two manifests that share the photographs:
``model.json`` for CPUs and browsers, and ``model.s8.json`` for TensorRT.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from edgeattn.artifact import sha256_of_bytes
from edgeattn.errors import ArtifactError, EdgeAttnError
from edgeattn.kit.deploy_files import demo_folder
from edgeattn.kit.from_run import KitRequest, build_model
from edgeattn.kit.model_folder import add_file, manifest_name, write_manifest
from edgeattn.kit.spec import MANIFEST, WEB_VARIANT, KitFile, KitModel
from edgeattn.progress import LineProgress

__all__ = ["LARGEST_DEMO_BYTES", "NOTICES", "build_demo"]

LARGEST_DEMO_BYTES = 3_000_000
"""Of the INT8 model: it is part of the project."""

NOTICES = ("LICENSE", "NOTICE.md")
"""Where the photographs come from and their licence; kept by hand, and part of every kit."""

_IMAGES = 50


def build_demo(run: Path, folder: Path) -> KitModel:
    """Replace everything but the notices in the demonstration's folder.

    Args:
        run: A finished run with both profiles.
        folder: Holds the notices already.

    Raises:
        ArtifactError: If the run cannot be used, the model is too large, or a notice is missing.
    """
    notices: dict[str, bytes] = {}
    for name in NOTICES:
        try:
            notices[name] = (folder / name).read_bytes()
        except OSError as exc:
            raise ArtifactError(f"Cannot read {folder / name}: {exc.strerror}. Write it first.") from exc
    entries = {
        name: KitFile(sha256=sha256_of_bytes(data), size_bytes=len(data)) for name, data in notices.items()
    }
    with tempfile.TemporaryDirectory(prefix="edgeattn-demo-") as scratch:
        made = Path(scratch) / "demo"
        progress = LineProgress()
        model = build_model(
            run, made, KitRequest("u8", ("openvino", WEB_VARIANT), _IMAGES), progress=progress
        )
        if model.model.size_bytes > LARGEST_DEMO_BYTES:
            raise ArtifactError(
                f"The model has {model.model.size_bytes} bytes; at most {LARGEST_DEMO_BYTES} may be part of "
                "the project. Train a narrower network."
            )
        model = model.model_copy(update={"files": {**model.files, **entries}})
        write_manifest(model, made / MANIFEST)
        _add_s8(run, made, Path(scratch) / "s8", entries)
        for name, data in notices.items():
            add_file(made, name, data)
        shutil.rmtree(folder)
        shutil.copytree(made, folder)
    return model


def _add_s8(run: Path, made: Path, other: Path, entries: dict[str, KitFile]) -> None:
    model = build_model(run, other, KitRequest("s8", (), _IMAGES))
    shutil.copy(other / model.model.file, made / model.model.file)
    reference = add_file(made, "reference.s8.json", (other / model.reference.file).read_bytes())
    files = {**model.files, **entries}
    write_manifest(
        model.model_copy(update={"files": files, "reference": reference}), made / manifest_name("s8")
    )


if __name__ == "__main__":
    try:
        sys.stdout.write(
            build_demo(Path(sys.argv[1]), demo_folder()).model_dump_json(indent=1, exclude={"files"}) + "\n"
        )
    except (EdgeAttnError, IndexError) as exc:
        sys.exit(f"error: {exc} (usage: python -m edgeattn.kit.demo RUN)")
