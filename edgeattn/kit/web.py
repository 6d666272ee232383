"""The web kit: a static page that runs the model with ONNX Runtime Web, also without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeattn.artifact import read_json, sha256_of_bytes, write_bytes, write_json
from edgeattn.errors import ArtifactError
from edgeattn.kit import KitKind
from edgeattn.kit.deploy_files import copy_program
from edgeattn.kit.spec import MANIFEST, WEB_VARIANT, KitModel
from edgeattn.kit.web_runtime import RUNTIME_NAME, RUNTIME_VERSION, read_runtime

__all__ = ["KIND", "web_kit"]

_HEAT_FILE = "heat.onnxpart"
# The service worker's own files are the browser's business; people read the others outside the page.
_NOT_KEPT = frozenset({"sw.js", "precache.js", "README.md", "screenshot.webp", "model/NOTICE.md"})


def web_kit(runtime: Path | None = None, *, webgpu: bool = False) -> KitKind:
    """Return the web kit with chosen sources.

    Args:
        runtime: The npm package onnxruntime-web, unpacked; None has npm fetch it, once.
        webgpu: Also ship the build for graphics processors, 27 MB more.
    """

    def write_program(folder: Path, model: KitModel) -> None:
        files = read_runtime(runtime, webgpu=webgpu)
        copy_program("web", folder)
        builds: dict[str, dict[str, str]] = {}
        for item, data in files.items():
            write_bytes(folder / item.kit_name, data)
            builds.setdefault(item.build, {})[item.role] = item.kit_name
        heat = _write_heat(folder, model)
        _name_app(folder, model)
        _write_manifest(folder, model, builds, heat)

    return KitKind(
        name="web",
        summary="a page that classifies from camera, image or video, also offline",
        write_program=write_program,
        next_steps=("python -m http.server", "open http://localhost:8000/"),
        variants=(WEB_VARIANT,),
    )


KIND = web_kit()


def _write_heat(folder: Path, model: KitModel) -> dict[str, Any] | None:
    import onnx

    from edgeattn.kit.heat import make_heat_part

    part = make_heat_part(onnx.load(str(folder / "model" / model.model.file)))
    if part is None:
        return None
    write_bytes(folder / _HEAT_FILE, part.data)
    kinds = [kind for kind, there in (("evidence", part.evidence), ("attention", part.attention)) if there]
    outputs = {"evidence": part.evidence, "attention": list(part.attention)}
    model_file = f"model/{model.model.file}"
    return {"file": _HEAT_FILE, "model": model_file, "kinds": kinds, "outputs": outputs}


def _name_app(folder: Path, model: KitModel) -> None:
    """Give the installed page the model's name."""
    path = folder / "manifest.webmanifest"
    app = read_json(path)
    name = model.name.replace("_", " ").replace("-", " ")
    app |= {"name": name[:1].upper() + name[1:], "short_name": name[:12].strip()}
    if model.description:
        app["description"] = model.description
    write_json(path, app)


def _write_manifest(
    folder: Path, model: KitModel, builds: dict[str, dict[str, str]], heat: dict[str, Any] | None
) -> None:
    """Write ``web.json``, which the page reads, and ``precache.js``, the same for its service worker."""
    optional = {name for build, files in builds.items() if build != "wasm" for name in files.values()}
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _NOT_KEPT:
            files[name] = _entry(path) | ({"optional": True} if name in optional else {})
    if f"model/{MANIFEST}" not in files:
        raise ArtifactError(f"{folder} holds no model/{MANIFEST}; the model is written before the page.")
    version = sha256_of_bytes(json.dumps(files, sort_keys=True).encode())[:16]
    manifest = {
        "schema_version": 1,
        "name": model.name,
        "version": version,
        "runtime": {"name": RUNTIME_NAME, "version": RUNTIME_VERSION, "builds": builds},
        # An optimized graph has no Q/DQ pairs left, so heat maps and graphics processors take the other file.
        "models": {
            "wasm": f"model/{model.variants[WEB_VARIANT].file}",
            "webgpu": f"model/{model.model.file}",
        },
        "heat": heat,
        "files": files,
    }
    path = write_json(folder / "web.json", manifest)
    kept = manifest | {"files": files | {"web.json": _entry(path)}}
    script = f'"use strict";\nself.KIT = {json.dumps(kept, indent=1)};\n'
    write_bytes(folder / "precache.js", script.encode())


def _entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": sha256_of_bytes(data), "size_bytes": len(data)}
