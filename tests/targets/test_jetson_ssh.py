"""The target jetson-ssh with a real ssh server, a wire that is cut, killed jobs, a full disk and wrong keys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ssh_device import SshDevice
from target_shapes import SHAPE

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import ArtifactError, ModelError, RecipeError, TargetUnavailable
from edgeattn.measure import run_session
from edgeattn.targets import Engine, TimingPlan, get_target, load_engine, save_engine
from edgeattn.targets._device_jobs import DeviceJobs, kit_program
from edgeattn.targets._processes import LinkDropped
from edgeattn.targets._transport import SshTransport
from edgeattn.targets.base import session_properties

pytest.importorskip("onnxruntime", reason="the device of these tests runs ONNX Runtime")


class Hearing:
    """Keeps what it is told, and does something once when a text comes by."""

    def __init__(self, text: str = "", do: Any = None) -> None:
        self.notes: list[str] = []
        self._text, self._do = text, do

    def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
        """Nothing to keep."""

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self._do is not None and self._text in text:
            do, self._do = self._do, None
            do()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshDevice]:
    device = SshDevice(tmp_path_factory.mktemp("ssh"))
    yield device
    device.close()


@pytest.fixture
def device(server: SshDevice) -> Iterator[SshDevice]:
    yield server
    server.wire.budget = None
    server.wire.mend()
    server.write_known_hosts("host")
    server.write_config("user")


def options(device: SshDevice, **more: Any) -> dict[str, Any]:
    return {
        "host": "device",
        "config": device.config,
        "python": sys.executable,
        "folder": str(device.home),
        "patience_seconds": 20.0,
        **more,
    }


@pytest.fixture(scope="module")
def engine(
    server: SshDevice, artifacts: dict[str, OnnxArtifact], tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    folder = tmp_path_factory.mktemp("built")
    target = get_target("jetson-ssh", **options(server))
    return target.build(target.lower(artifacts["s8"], folder), folder / "engine")


@pytest.fixture
def photos() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(5, *SHAPE[1:])).astype(np.float32)


def here(model: Path, photos: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"input": photo[None]})[0] for photo in photos])


def test_it_answers_over_ssh_as_the_same_runtime_does_here(
    device: SshDevice,
    engine: Engine,
    photos: NDArray[np.float32],
) -> None:
    target = get_target("jetson-ssh", **options(device))
    assert target.probe().can_run, target.probe().reason
    save_engine(engine)
    assert load_engine(engine.path) == engine
    with target.open(engine) as session:
        logits = run_session(session, photos, "input", "logits")
        np.testing.assert_array_equal(logits, here(engine.path.with_suffix(".onnx"), photos))
        samples = session.time({"input": photos[:1]}, TimingPlan(warmup_runs=1, min_runs=16, min_seconds=5.0))
        assert len(samples) == 16
        assert min(samples) > 0
        assert session_properties(session)["clock"] == "perf_counter_ns around run"
        json.dumps(session_properties(session), allow_nan=False)
        with pytest.raises(ModelError, match="shape"):
            session.infer({"input": np.zeros((1, 3, 9, 8), np.float32)})
    with pytest.raises(ModelError, match="is closed"):
        session.infer({"input": photos[:1]})
    # What a job held there is gone; kit, model and engine stay for the next one.
    assert not list(device.home.glob("*/jobs/*"))
    assert engine.details["runtime"].startswith("ort ")


def test_a_cut_wire_does_not_end_the_job(
    device: SshDevice, engine: Engine, photos: NDArray[np.float32]
) -> None:
    """Every connection ends in mid-run; the job there goes on, and its one result comes back."""

    def cut() -> None:
        device.wire.cut()
        time.sleep(0.5)
        device.wire.mend()

    heard = Hearing("measuring", cut)
    cuts = device.wire.cuts
    with get_target("jetson-ssh", **options(device, progress=heard)).open(engine) as session:
        plan = TimingPlan(warmup_runs=1, min_runs=1_000_000, min_seconds=2.0)
        assert session.time({"input": photos[:1]}, plan)
    assert device.wire.cuts == cuts + 1
    assert any("Trying again" in note for note in heard.notes), heard.notes
    assert heard.notes.count("measuring") == 1
    assert not any("starting it again" in note for note in heard.notes)


def test_a_killed_job_goes_on_behind_its_last_step(
    device: SshDevice, engine: Engine, photos: NDArray[np.float32]
) -> None:
    """As after a restart of the device: its process is gone, and no result was written."""

    def kill() -> None:
        (file,) = device.home.glob("*/jobs/*/process.json")
        os.kill(json.loads(file.read_text())["pid"], signal.SIGKILL)

    heard = Hearing("measuring", kill)
    with get_target("jetson-ssh", **options(device, progress=heard)).open(engine) as session:
        plan = TimingPlan(warmup_runs=1, min_runs=1_000_000, min_seconds=1.5)
        assert session.time({"input": photos[:1]}, plan)
    assert any("starting it again" in note for note in heard.notes), heard.notes
    assert heard.notes.count("measuring") == 2
    assert "the engine was there" in heard.notes


def test_another_boot_makes_an_old_process_number_mean_nothing(tmp_path: Path) -> None:
    """A restarted device may give the number to another process."""
    for name, file in kit_program().items():
        shutil.copy(file, tmp_path / name)
    run = tmp_path / "run.py"
    own = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (tmp_path / "job.json").write_text("{}")
    for described, code in ((boot, None), ("another", 75)):
        process = {"pid": os.getpid(), "started": own, "boot": described}
        (tmp_path / "process.json").write_text(json.dumps(process))
        command = [sys.executable, str(run), "--job", str(tmp_path / "job.json"), "--follow"]
        if code is None:
            with pytest.raises(subprocess.TimeoutExpired):
                subprocess.run(command, timeout=1.5, check=False)
        else:
            assert subprocess.run(command, timeout=20, check=False).returncode == code


def test_a_transfer_that_was_cut_is_gone_on_with(device: SshDevice, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(6 << 20)
    (tmp_path / "big file 'x'.bin").write_bytes(data)
    files = {"big.bin": tmp_path / "big file 'x'.bin"}
    transport = SshTransport("device", config=device.config)
    device.wire.budget = 4 << 20
    folder = str(device.home / "transfer")
    with pytest.raises(LinkDropped):
        transport.put(files, folder)
    (part,) = (device.home / "transfer").iterdir()
    begun = part.stat().st_size
    assert 0 < begun < len(data)
    time.sleep(0.6)
    # Less than the whole file fits through the wire now, so it has to go on where it stood.
    device.wire.budget = len(data) - begun + (1 << 20)
    transport.put(files, folder)
    assert [path.name for path in (device.home / "transfer").iterdir()] == ["big.bin"]
    assert (device.home / "transfer" / "big.bin").read_bytes() == data
    assert transport.get(f"{folder}/big.bin", len(data)) == data
    with pytest.raises(TargetUnavailable, match="larger than"):
        transport.get(f"{folder}/big.bin", len(data) - 1)


@pytest.mark.parametrize(
    "ending",
    ["kill -PIPE $$", "exit 1", 'echo "remote delete /x/big.bin: No such file or directory"; kill -PIPE $$'],
)
def test_an_sftp_that_ends_without_a_reason_has_lost_its_link(
    device: SshDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Which of these happens when the wire is cut is up to the scheduler, so each is played."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sftp").write_text(f"#!/bin/sh\necho 'sftp> put x y.part'\n{ending}\n")
    (programs / "sftp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(LinkDropped):
        SshTransport("device", config=device.config).put(
            {"file": tmp_path / "file"}, str(device.home / "lost")
        )


def test_a_full_disk_is_named_and_nothing_is_left_half_written(device: SshDevice, tmp_path: Path) -> None:
    small = device.home / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: needs root")
    try:
        (tmp_path / "big.bin").write_bytes(bytes(2 << 20))
        transport = SshTransport("device", config=device.config)
        with pytest.raises(TargetUnavailable, match=r"disk of device is full.*2097152 bytes"):
            transport.put({"big.bin": tmp_path / "big.bin"}, str(small / "kit"))
        assert list((small / "kit").iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
        small.rmdir()


def test_a_swapped_host_key_is_refused(device: SshDevice) -> None:
    device.start("other")
    try:
        available = get_target("jetson-ssh", **options(device)).probe()
        assert not available.can_run
        assert "host key of device is not the one that is known" in available.reason
        assert "ssh-keygen -R device" in available.reason
    finally:
        device.start("host")


def test_an_unknown_host_key_is_refused(device: SshDevice) -> None:
    device.write_known_hosts(None)
    reason = get_target("jetson-ssh", **options(device)).probe().reason
    assert "is not known here" in reason
    assert "compare the fingerprint" in reason


def test_a_key_that_is_not_accepted_ends_it_without_a_question(device: SshDevice) -> None:
    device.write_config("stranger")
    started = time.monotonic()
    reason = get_target("jetson-ssh", **options(device)).probe().reason
    assert "none of your keys" in reason
    assert time.monotonic() - started < 10


def test_a_device_that_lacks_something_says_so(
    device: SshDevice, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    target = get_target("jetson-ssh", **options(device, runtime="tensorrt"))
    with pytest.raises(TargetUnavailable, match="TensorRT's Python bindings"):
        target.build(artifacts["s8"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    missing = get_target("jetson-ssh", **options(device, python="/nowhere/python3")).probe()
    assert "has no /nowhere/python3" in missing.reason


def test_unsigned_graphs_never_leave(
    device: SshDevice, artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="profile='s8'"):
        get_target("jetson-ssh", **options(device)).build(artifacts["u8"], tmp_path)


def test_an_engine_that_changed_is_not_opened(device: SshDevice, engine: Engine, tmp_path: Path) -> None:
    import dataclasses

    changed = dataclasses.replace(engine, sha256="0" * 64)
    with (
        pytest.raises(ArtifactError, match="was changed"),
        get_target("jetson-ssh", **options(device)).open(changed),
    ):
        pass


def test_an_engine_that_is_gone_from_the_device_is_missed(
    device: SshDevice, engine: Engine, photos: NDArray[np.float32]
) -> None:
    (built,) = device.home.glob("*/engines/*.onnx")
    kept = built.read_bytes()
    built.write_bytes(b"another engine")
    try:
        with (
            get_target("jetson-ssh", **options(device)).open(engine) as session,
            pytest.raises(TargetUnavailable, match="no longer on this device: build it again"),
        ):
            session.infer({"input": photos[:1]})
    finally:
        built.write_bytes(kept)


def test_without_a_host_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEATTN_JETSON_HOST", raising=False)
    available = get_target("jetson-ssh").probe()
    assert (available.can_build, available.can_run) == (False, False)
    assert "EDGEATTN_JETSON_HOST" in available.install


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "a b", "a;b", "", "$(id)"])
def test_hosts_that_are_options_or_commands_are_refused(host: str) -> None:
    with pytest.raises(RecipeError, match="no host"):
        SshTransport(host)


@pytest.mark.parametrize("word", ["a b", "$HOME", "a;b", "`id`", "~root", "", "a'b", "a\nb"])
def test_words_that_a_shell_would_read_never_leave(word: str, device: SshDevice) -> None:
    with pytest.raises(RecipeError, match="cannot be used on a device"):
        SshTransport("device", config=device.config).run(["echo", word])


def test_a_host_that_is_not_there_is_given_up_in_time(tmp_path: Path, device: SshDevice) -> None:
    device.wire.cut()
    target = get_target("jetson-ssh", **options(device))
    assert "failed" in target.probe().reason
    started = time.monotonic()
    with pytest.raises(LinkDropped):
        DeviceJobs(SshTransport("device", config=device.config), patience_seconds=1.0).run({}, {})
    assert time.monotonic() - started < 20
