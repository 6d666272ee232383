"""ARM64 by emulation: what is said without it, and the same answers with it as the graph's own arithmetic."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from target_shapes import SHAPE

from edgeattn.artifact import IoSpec, OnnxArtifact
from edgeattn.errors import ArtifactError, ModelError, RecipeError, TargetUnavailable
from edgeattn.targets import TimingPlan, _worker, get_target, is_emulated
from edgeattn.targets._worker import Worker
from edgeattn.targets.arm64_setup import find_environment, setup_arm64, why_not_set_up
from edgeattn.targets.base import Session

N = 64
# A rounding that falls the other way moves one of 64 pooled positions by a step of 0.05.
FEW_STEPS = 4 * 0.05 / 64


@pytest.fixture(scope="module")
def photos() -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=(N, *SHAPE)).astype(np.float32)


def needs_emulation() -> None:
    reason, install = why_not_set_up()
    if reason:
        pytest.skip(f"{reason}. {install}")


def simulated(artifact: OnnxArtifact, photos: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run the Q/DQ graph node by node in float32: no fused kernel, so no CPU's own arithmetic."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"input": photo})[0] for photo in photos])


@pytest.fixture(
    scope="module", params=["ort-u8", "ort-s8", pytest.param("openvino-u8", marks=pytest.mark.slow)]
)
def answers(
    request: pytest.FixtureRequest,
    artifacts: dict[str, OnnxArtifact],
    photos: NDArray[np.float32],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Session, NDArray[np.float32]]]:
    needs_emulation()
    runtime, profile = request.param.split("-")
    target = get_target("arm64", runtime=runtime, profile=profile)
    folder = tmp_path_factory.mktemp("arm64")
    engine = target.build(target.lower(artifacts[profile], folder), folder / "engine")
    with target.open(engine) as session:
        logits = np.concatenate([session.infer({"input": photo})["logits"] for photo in photos])
        yield profile, session, logits


def test_arm64_computes_what_the_graph_says(
    answers: tuple[str, Session, NDArray[np.float32]],
    artifacts: dict[str, OnnxArtifact],
    photos: NDArray[np.float32],
) -> None:
    """64 images; and the other profile's numbers, which are wrong here, would be noticed."""
    profile, session, logits = answers
    wanted = simulated(artifacts[profile], photos)
    assert session.properties["machine"] == "aarch64"  # type: ignore[attr-defined]
    assert np.mean(logits.argmax(axis=1) == wanted.argmax(axis=1)) >= 0.98
    # One value that rounds the other way early on moves several later ones.
    differences = np.abs(logits - wanted)
    assert np.mean(differences <= FEW_STEPS) >= 0.995
    assert differences.max() <= 2 * FEW_STEPS
    other = simulated(artifacts["s8" if profile == "u8" else "u8"], photos)
    assert np.abs(logits - other).max() > 2 * FEW_STEPS


def test_its_time_is_never_given(
    answers: tuple[str, Session, NDArray[np.float32]], photos: NDArray[np.float32]
) -> None:
    _, session, _ = answers
    with pytest.raises(TargetUnavailable, match="emulated"):
        session.time({"input": photos[0]}, TimingPlan())
    assert session.layer_times({"input": photos[0]}) == []


def test_feeds_are_checked_before_they_are_sent(answers: tuple[str, Session, NDArray[np.float32]]) -> None:
    _, session, _ = answers
    with pytest.raises(ModelError, match="shape"):
        session.infer({"input": np.zeros((1, 3, 9, 8), np.float32)})


def test_a_broken_model_is_refused_with_the_runtimes_words(
    artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    needs_emulation()
    from edgeattn.artifact import sha256_of_file

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    artifact = dataclasses.replace(artifacts["u8"], path=broken, sha256=sha256_of_file(broken))
    with pytest.raises(ModelError, match=r"broken\.onnx.*failed"):
        get_target("arm64").build(artifact, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_its_set_up_it_says_which_command_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: dict[str, OnnxArtifact]
) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgeattn.targets.arm64_setup.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("edgeattn.targets.arm64_setup.platform.machine", lambda: "x86_64")
    target = get_target("arm64")
    available = target.probe()
    assert (available.can_build, available.can_run) == (False, False)
    assert available.install == "edgeattn setup arm64"
    with pytest.raises(TargetUnavailable, match="edgeattn setup arm64"):
        target.build(artifacts["u8"], tmp_path)
    assert is_emulated(target)


def test_without_an_emulator_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.targets.arm64_setup.platform.machine", lambda: "x86_64")
    monkeypatch.setattr(
        "edgeattn.targets.arm64_setup.shutil.which", lambda name: None if "qemu" in name else f"/bin/{name}"
    )
    assert get_target("arm64").probe().install == "apt-get install qemu-user-static"
    with pytest.raises(TargetUnavailable, match="qemu-user-static"):
        setup_arm64()


def test_a_damaged_set_up_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path))
    monkeypatch.setattr("edgeattn.targets.arm64_setup.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("edgeattn.targets.arm64_setup.platform.machine", lambda: "x86_64")
    from edgeattn.targets.arm64_setup import _environment_folder

    _environment_folder().mkdir(parents=True)
    description = _environment_folder() / "environment.json"
    description.write_text(json.dumps({"python": "3.11; rm", "versions": {}}))
    with pytest.raises(ArtifactError, match="--again"):
        find_environment()
    assert get_target("arm64").probe().install == "edgeattn setup arm64 --again"


def test_a_folder_that_search_paths_cannot_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "a:b"))
    monkeypatch.setattr("edgeattn.targets.arm64_setup.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("edgeattn.targets.arm64_setup.platform.machine", lambda: "x86_64")
    with pytest.raises(ArtifactError, match="EDGEATTN_CACHE"):
        setup_arm64()
    assert not list(tmp_path.iterdir())


def test_a_failed_download_says_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With programs that fail as apt does without a network; nothing that looks finished is left."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "dpkg-deb", "qemu-aarch64-static"):
        (tools / name).write_text("#!/bin/sh\necho 'E: Temporary failure resolving'\nexit 100\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgeattn.targets.arm64_setup.platform.machine", lambda: "x86_64")
    with pytest.raises(TargetUnavailable, match=r"exit code 100.*Temporary failure resolving"):
        setup_arm64()
    assert get_target("arm64").probe().install == "edgeattn setup arm64"


@pytest.mark.parametrize("options", [{"runtime": "tflite"}, {"profile": "s4"}, {"cpu": "-L /"}])
def test_unknown_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        get_target("arm64", **options)


# --------------------------------------------------------------------- what the other process may answer

HELLO = "import sys, struct, json, time\no = sys.stdout.buffer\n"
SAY = (
    "def say(h, d=b''):\n t = json.dumps(h).encode(); o.write(struct.pack('<Q', len(t)) + t + d); o.flush()\n"
)
OUTPUTS = (IoSpec("logits", (1, 2)),)
FEEDS = {"input": np.zeros((1, 2), np.float32)}


def process(body: str) -> Worker:
    return Worker([sys.executable, "-c", HELLO + SAY + body], "model.onnx")


def test_an_honest_answer_comes_back() -> None:
    worker = process("say({'runtime': 'r'})\nsay({'outputs': {'logits': [1, 2]}}, struct.pack('<2f', 3, 4))")
    np.testing.assert_array_equal(worker.infer(FEEDS, OUTPUTS)["logits"], [[3, 4]])
    worker.close()


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ("say({'outputs': {'logits': [1, 3]}}, bytes(12))", ModelError, "expected"),
        ("say({'outputs': {'other': [1, 2]}}, bytes(8))", ModelError, "expected"),
        ("say({'outputs': [1]})", ModelError, "answered with"),
        ("o.write(struct.pack('<Q', 1 << 40)); o.flush()", ModelError, "header of 1099511627776 bytes"),
        ("o.write(struct.pack('<Q', 3) + b'{x}'); o.flush()", ModelError, "not JSON"),
        ("say({'error': 'bad node'})", ModelError, "bad node"),
        ("sys.exit('out of memory')", TargetUnavailable, "out of memory"),
        ("say({'outputs': {'logits': [1, 2]}}, bytes(4))", TargetUnavailable, "ended"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answer: str, error: type[Exception], message: str) -> None:
    worker = process(f"say({{'runtime': 'r'}})\n{answer}")
    with pytest.raises(error, match=message):
        worker.infer(FEEDS, OUTPUTS)
    worker.close()


def test_a_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = process("say({'runtime': 'r'})\ntime.sleep(60)")
    monkeypatch.setattr(_worker, "_ANSWER_SECONDS", 0.2)
    with pytest.raises(TargetUnavailable, match="in time"):
        worker.infer(FEEDS, OUTPUTS)
    worker.close()
