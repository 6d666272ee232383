"""Where ONNX Runtime Web comes from, what is refused, and how the kit's own files fit together."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeattn.artifact import sha256_of_file
from edgeattn.errors import EdgeAttnError, MissingExtraError, RecipeError
from edgeattn.kit.web import web_kit
from edgeattn.kit.web_runtime import read_runtime, runtime_cache
from edgeattn.kit.write import write_kit


@pytest.fixture
def _nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))


@pytest.mark.usefixtures("_nothing_there")
def test_without_npm_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="--runtime DIR"):
        write_kit("web", None, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()


@pytest.mark.usefixtures("_nothing_there")
def test_a_damaged_cache_is_not_used(tmp_path: Path) -> None:
    """It is fetched again; here it cannot be."""
    runtime_cache().mkdir(parents=True)
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (runtime_cache() / name).write_bytes(b"damaged")
    with pytest.raises(MissingExtraError, match="npm is not installed"):
        read_runtime()


def test_a_folder_that_is_not_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no dist/ort\.wasm"):
        read_runtime(tmp_path)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/ort.wasm.bundle.min.mjs").write_text("another version")
    with pytest.raises(RecipeError, match="is not the one of onnxruntime-web"):
        read_runtime(tmp_path)


def test_npm_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program called npm that fails as npm does without a network."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(EdgeAttnError, match=r"ENOTFOUND.*--runtime DIR"):
        read_runtime()


def test_an_archive_with_another_hash_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = '#!/bin/sh\nfor last; do :; done\necho something-else > "$last/onnxruntime-web.tgz"\n'
    (programs / "npm").write_text(script)
    (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(EdgeAttnError, match="another onnxruntime-web"):
        read_runtime()
    assert not runtime_cache().exists()


def test_the_manifest_vouches_for_every_file_that_the_page_loads(tmp_path: Path) -> None:
    """Hashes are the files' own; the worker's list is the page's; another model is another version."""
    try:
        read_runtime()
    except EdgeAttnError as exc:
        pytest.skip(f"needs ONNX Runtime Web: {exc}")
    folder = tmp_path / "kit"
    write_kit(web_kit(), None, folder)
    manifest = json.loads((folder / "web.json").read_text())
    for name, entry in manifest["files"].items():
        assert sha256_of_file(folder / name) == entry["sha256"], name
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    missing = there - set(manifest["files"])
    assert missing == {"web.json", "sw.js", "precache.js", "README.md", "screenshot.webp", "model/NOTICE.md"}
    script = (folder / "precache.js").read_text()
    kept = json.loads(script[script.index("{") : script.rindex("}") + 1])
    assert kept["files"].pop("web.json")["sha256"] == sha256_of_file(folder / "web.json")
    assert kept == manifest
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20_000_000


def test_the_scripts_own_sha256_is_sha256(repository: Path, tmp_path: Path) -> None:
    """Pages over plain HTTP have no crypto.subtle; every padding length around a block's end is tried."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, to run the page's JavaScript")
    module = tmp_path / "integrity.mjs"
    module.write_bytes((repository / "deploy/web/integrity.js").read_bytes())
    program = (
        f"import {{ sha256InScript }} from {str(module)!r};"
        "const bytes = (n) => Uint8Array.from({ length: n }, (_, i) => (i * 7 + n) % 256);"
        "const hex = (n) => Buffer.from(sha256InScript(bytes(n))).toString('hex');"
        "console.log(JSON.stringify([...Array(200).keys(), 100003].map(hex)));"
    )
    done = subprocess.run(
        [node, "--input-type=module", "-e", program], capture_output=True, text=True, check=True, timeout=60
    )
    sizes = [*range(200), 100003]
    expected = [hashlib.sha256(bytes((i * 7 + n) % 256 for i in range(n))).hexdigest() for n in sizes]
    assert json.loads(done.stdout) == expected
