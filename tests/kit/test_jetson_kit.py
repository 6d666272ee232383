"""The Jetson kit: made, carried away, and run as a program of its own."""

from __future__ import annotations

import importlib
import io
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from targets.conftest import write_model
from targets.cuda_stand_in import DoublingContext, StandInDriver

from edgeattn.artifact import sha256_of_bytes, sha256_of_file, write_json
from edgeattn.data.preprocess import normalize_pixels, resize_and_crop
from edgeattn.data.spec import Preprocess
from edgeattn.errors import ArtifactError, TargetUnavailable
from edgeattn.kit import get_kit
from edgeattn.kit.model_folder import add_file, write_manifest
from edgeattn.kit.spec import KitModel, KitTensor, ModelFile, Reference, ReferenceImage
from edgeattn.targets._device_result import parse_result

ort = pytest.importorskip("onnxruntime")

CLASSES = 16
IMAGES = 6
DEPLOY = Path(__file__).parents[2] / "deploy" / "jetson"


def model_folder(folder: Path) -> KitModel:
    """Write a small s8 model with photographs and what ONNX Runtime makes of them here."""
    folder.mkdir(parents=True)
    artifact = write_model(folder / "model.s8.onnx", "s8")
    preprocess = Preprocess(size=8, resize=8)
    session = ort.InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(4)
    images, files = [], {}
    for index in range(IMAGES):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(stream, "PNG")
        named = add_file(folder, f"images/{index:04}.png", stream.getvalue())
        files[named.file] = named
        rgb = np.asarray(Image.open(io.BytesIO(stream.getvalue())))
        pixels = np.ascontiguousarray(resize_and_crop(rgb, preprocess))
        logits = session.run(None, {"input": normalize_pixels(pixels, preprocess)[None]})[0][0]
        images.append(
            ReferenceImage(
                file=named.file,
                sha256=named.sha256,
                pixels_sha256=sha256_of_bytes(pixels.tobytes()),
                label=int(logits.argmax()),
                top1=int(logits.argmax()),
                logits=tuple(map(float, logits)),
            )
        )
    reference = Reference(runtime=f"ort-cpu {ort.__version__}", tolerance=0.1, images=tuple(images))
    model = KitModel(
        name="small",
        model=ModelFile(
            file="model.s8.onnx",
            sha256=artifact.sha256,
            size_bytes=artifact.path.stat().st_size,
            profile="s8",
            opset=17,
            input=KitTensor(name="input", shape=(1, 3, 8, 8)),
            output=KitTensor(name="logits", shape=(1, CLASSES)),
        ),
        preprocess=preprocess,
        classes=tuple(f"class {i}" for i in range(CLASSES)),
        reference=add_file(folder, "reference.json", reference.model_dump_json().encode()),
        files={name: {"sha256": f.sha256, "size_bytes": f.size_bytes} for name, f in files.items()},
    )
    write_manifest(model, folder / "model.json")
    return model


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    get_kit("jetson").write_program(folder, model_folder(folder / "model"))
    edit_job(folder, timing={"warmup_runs": 2, "min_runs": 32, "min_seconds": 5.0})
    return folder


def edit_job(folder: Path, **changes: Any) -> None:
    job = json.loads((folder / "job.json").read_text())
    write_json(folder / "job.json", {**job, **changes})


def run(folder: Path, *options: str, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the kit with nothing of edgeattn on its path."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        [sys.executable, "-s", "run.py", *options],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
    )


def result_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def test_it_builds_checks_and_measures_and_its_result_is_valid(kit: Path) -> None:
    done = run(kit, "--runtime", "ort")
    assert done.returncode == 0, done.stdout + done.stderr
    result = parse_result((kit / "result.json").read_bytes(), "kit")
    assert result.reference is not None
    assert (result.reference.n, result.reference.agreement, result.reference.top1) == (IMAGES, 1.0, 1.0)
    assert result.reference.max_abs_diff is not None
    assert result.reference.max_abs_diff < 1e-3
    assert result.timing is not None
    assert result.timing.runs == len(result.timing.samples_ns) == 32
    assert result.timing.p50_ms <= result.timing.p90_ms <= result.timing.p99_ms
    assert "[3/3]" in done.stdout


def test_a_finished_step_is_not_repeated_and_a_changed_job_is(kit: Path) -> None:
    assert run(kit, "--runtime", "ort").returncode == 0
    first = result_of(kit)
    again = run(kit, "--runtime", "ort")
    assert again.stdout.count("done before") == 2
    assert "the engine was there" in again.stdout
    assert result_of(kit)["timing"] == first["timing"]
    edit_job(kit, timing={"warmup_runs": 2, "min_runs": 33, "min_seconds": 5.0})
    changed = run(kit, "--runtime", "ort")
    assert "done before" not in changed.stdout
    assert "the engine was there" in changed.stdout
    assert result_of(kit)["timing"]["runs"] == 33
    assert "done before" not in run(kit, "--runtime", "ort", "--again").stdout


def test_an_engine_that_was_damaged_is_built_again(kit: Path) -> None:
    assert run(kit, "--runtime", "ort").returncode == 0
    (engine,) = (kit / "engines").glob("*.onnx")
    data = engine.read_bytes()
    engine.write_bytes(data[:-1] + b"x")
    assert "the engine is built" in run(kit, "--runtime", "ort").stdout
    assert engine.read_bytes() == data


def test_wrong_outputs_end_with_4(kit: Path) -> None:
    """The planted fault: what is expected of two of six images is another class."""
    reference = json.loads((kit / "model" / "reference.json").read_text())
    for image in reference["images"][:2]:
        image["top1"] = (image["top1"] + 1) % CLASSES
    write_json(kit / "model" / "reference.json", reference)
    job = json.loads((kit / "job.json").read_text())
    job["reference"]["expected"]["sha256"] = sha256_of_file(kit / "model" / "reference.json")
    write_json(kit / "job.json", job)
    done = run(kit, "--runtime", "ort")
    assert done.returncode == 4
    assert result_of(kit)["error"]["kind"] == "mismatch"
    assert "66.7%" in done.stdout


@pytest.mark.parametrize("name", ["model/model.s8.onnx", "pixels.npy", "model/reference.json"])
def test_a_file_that_was_changed_or_is_missing_is_named(kit: Path, name: str) -> None:
    path = kit / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x00")
    done = run(kit, "--runtime", "ort")
    assert (done.returncode, name in done.stdout) == (2, True), done.stdout
    path.unlink()
    assert "is missing" in run(kit, "--runtime", "ort").stdout


def test_a_path_out_of_the_kit_is_refused(kit: Path) -> None:
    job = json.loads((kit / "job.json").read_text())
    edit_job(kit, model={**job["model"], "file": "../../etc/passwd"})
    done = run(kit, "--runtime", "ort")
    assert done.returncode == 2
    assert "no plain path" in done.stdout


def test_what_is_lacking_is_said_with_the_command_that_helps(kit: Path) -> None:
    done = run(kit, "--runtime", "trtexec")
    assert done.returncode == 3
    assert "libnvinfer-bin" in done.stdout
    assert result_of(kit)["error"]["kind"] == "lacking"
    checked = run(kit, "--check")
    assert checked.returncode == 0
    assert f"ort: yes, {ort.__version__}" in checked.stdout


def test_a_full_disk_leaves_nothing_half_written(kit: Path) -> None:
    """Files may not grow beyond less than the engine's size, as on a disk that is full."""
    size = (kit / "model" / "model.s8.onnx").stat().st_size
    done = run(kit, "--runtime", "ort", limit_bytes=size - 1)
    assert done.returncode == 1
    assert "disk is full" in done.stdout
    assert list((kit / "engines").iterdir()) == []
    assert run(kit, "--runtime", "ort").returncode == 0


def test_a_background_run_is_followed_to_its_exit_code(kit: Path) -> None:
    started = run(kit, "--runtime", "ort", "--detach", "--follow")
    assert started.returncode == 0, started.stdout
    assert started.stdout.startswith("@started\n")
    assert "p50" in started.stdout
    assert run(kit, "--detach").stdout == "@finished\n"
    log = (kit / "log").read_bytes()
    assert run(kit, "--follow", "--offset", str(len(log) - 5)).stdout == log[-5:].decode()


def test_other_pixels_than_the_expected_outputs_were_computed_from_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    model = model_folder(folder / "model")
    other = model.model_copy(update={"preprocess": Preprocess(size=8, resize=9)})
    with pytest.raises(ArtifactError, match="other pixels"):
        get_kit("jetson").write_program(folder, other)


# ------------------------------------------------------------------------- parts, imported as the kit does


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, kit: Path) -> Iterator[Any]:
    """Import the kit's modules by their own names, and forget them afterwards."""
    names = ("failures", "files", "gpu", "job", "jetson_support", "machine", "runtimes", "trtexec")
    monkeypatch.syspath_prepend(str(kit))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_jetsons_files_are_read(parts: Any, tmp_path: Path) -> None:
    machine = parts("machine")
    root = tmp_path / "root"
    hwmon = "sys/class/hwmon/hwmon1"
    put(
        root,
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64",
            "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2201600\n",
            "sys/class/thermal/thermal_zone0/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "47250\n",
            "sys/class/thermal/thermal_zone1/type": "broken\n",
            "sys/class/thermal/thermal_zone1/temp": "-256000\n",
            f"{hwmon}/name": "ina3221\n",
            f"{hwmon}/in1_label": "VDD_GPU_SOC\n",
            f"{hwmon}/in1_input": "19800\n",
            f"{hwmon}/curr1_input": "500\n",
            "var/lib/nvpmodel/status": "pmode:0002",
        },
    )
    described = machine.describe_machine(root)
    assert (described["module"], described["l4t"], described["jetpack"]) == ("agx-orin", "36.4.3", "6.2")
    assert machine.support(described, "10.3.0")["dla_cores"] == 2
    assert machine.support(described, "11.2.0")["gpu"] is False
    state = machine.read_state(root)
    assert state["power_mode"] == "mode 2"
    assert state["gpu_hz"] == {"cur": 1_300_500_000, "max": 1_300_500_000}
    assert state["cpu_hz"] == [2_201_600_000]
    assert state["temperature_c"] == {"gpu-thermal": 47.25}
    assert state["power_w"] == {"VDD_GPU_SOC": pytest.approx(9.9)}


def test_trtexec_is_told_to_build_and_measure_the_same_in_10_and_11(parts: Any) -> None:
    trtexec = parts("trtexec")
    options = {"optimization_level": 3, "tf32": False}
    plan = {"warmup_runs": 1, "min_runs": 64, "min_seconds": 1.0}
    assert "--stronglyTyped" in trtexec.trtexec_build_flags((10, 3, 0), options)
    assert "--stronglyTyped" not in trtexec.trtexec_build_flags((11, 4, 1), options)
    old, new = (trtexec.trtexec_time_flags(version, plan) for version in ((10, 3, 0), (11, 4, 1)))
    assert set(old) - set(new) == {"--noDataTransfers", "--useSpinWait"}
    assert set(new) - set(old) == {"--noCudaGraph"}
    for version in ((10, 3, 0), (11, 4, 1)):
        flags = trtexec.trtexec_build_flags(version, options) + trtexec.trtexec_time_flags(version, plan)
        # What TensorRT 11 removed, and what would make it another engine.
        assert not {"--int8", "--fp16", "--best", "--calib"} & {flag.split("=")[0] for flag in flags}


STAND_IN = """#!/usr/bin/env python3
import json, sys
arguments = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v%s]" % "{version}")
open("{log}", "a").write(" ".join(sys.argv[1:]) + "\\n")
if "saveEngine" in arguments:
    open(arguments["saveEngine"], "wb").write(b"plan")
if "exportTimes" in arguments:
    json.dump([{{"computeMs": 0.5 + i / 1000}} for i in range(int(arguments["iterations"]))], open(arguments["exportTimes"], "w"))
if "exportOutput" in arguments:
    json.dump([{{"name": "logits", "dimensions": "1x16", "values": [0.0] * 16}}], open(arguments["exportOutput"], "w"))
"""


@pytest.mark.parametrize(("banner", "version"), [("100300", "10.3.0"), ("110401", "11.4.1")])
def test_a_run_with_trtexec_reads_its_times(kit: Path, tmp_path: Path, banner: str, version: str) -> None:
    """A stand-in for the program: what is checked here is what it is told, and how its files are read."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "trtexec").write_text(STAND_IN.format(version=banner, log=tools / "log"))
    (tools / "trtexec").chmod(0o755)
    edit_job(kit, reference=None)
    done = subprocess.run(
        [sys.executable, "run.py", "--runtime", "trtexec"],
        cwd=kit,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = parse_result((kit / "result.json").read_bytes(), "kit")
    assert result.runtime is not None
    assert result.runtime.version == version
    assert result.timing is not None
    assert result.timing.p50_ms == pytest.approx(0.5155)
    assert ("--noCudaGraph" in (tools / "log").read_text()) is version.startswith("11")


def test_tensorrts_own_bindings_parse_and_build_the_kits_model(parts: Any, kit: Path) -> None:
    """The kit's build with the real parser and builder of TensorRT-RTX, which needs no GPU for it."""
    trt = pytest.importorskip("tensorrt_rtx")
    runtimes = parts("runtimes")

    class Rtx(runtimes.TensorRt):  # type: ignore[name-defined, misc]
        def _configure(self, config: Any) -> None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM86, 0)

    class Named:
        """Its version counts on its own: RTX 1.x is as new as TensorRT 10 and 11."""

        __version__ = "11.4.1"

        def __getattr__(self, name: str) -> Any:
            return getattr(trt, name)

    cuda = SimpleNamespace(compute_capability="SM86", close=lambda: None)
    options = {"optimization_level": None, "tf32": False, "threads": 1}
    runtime = Rtx(options, trt=Named(), cuda=cuda)
    said: list[str] = []
    plan = runtime.build_plan(kit / "model" / "model.s8.onnx", said.append)
    assert len(plan) > 1000
    assert runtime.key == "tensorrt-11.4.1-SM86-None-False"
    assert not [text for severity, text in runtime._messages if severity.endswith("ERROR")]
    unsigned = write_model(kit / "u8.onnx", "u8").path
    with pytest.raises(runtimes.RuntimeFailed, match=r"saturate|parse|build"):
        runtime.build_plan(unsigned, said.append)
    (kit / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(runtimes.RuntimeFailed, match="cannot parse"):
        runtime.build_plan(kit / "broken.onnx", said.append)


def test_a_tensorrt_engine_runs_is_timed_and_gives_everything_back(parts: Any, tmp_path: Path) -> None:
    """With a stand-in for the driver, whose memory is this process's, and for TensorRT."""
    runtimes, gpu = parts("runtimes"), parts("gpu")
    driver, context = StandInDriver(), DoublingContext((1, 3))

    class TensorRt:
        __version__ = "10.3.0"

        class ILogger:
            pass

        class IProfiler:
            pass

        @staticmethod
        def Runtime(log: Any) -> Any:  # noqa: N802 - TensorRT's name
            loaded = SimpleNamespace(create_execution_context=lambda: context)
            return SimpleNamespace(deserialize_cuda_engine=lambda data: loaded if data == b"plan" else None)

    options = {"optimization_level": 3, "tf32": True, "threads": 1}
    runtime = runtimes.TensorRt(options, trt=TensorRt(), cuda=gpu.Cuda(driver))
    assert runtime.key == "tensorrt-10.3.0-SM86-3-True"
    (tmp_path / "e.plan").write_bytes(b"plan")
    (tmp_path / "other.plan").write_bytes(b"another version's")
    with pytest.raises(runtimes.RuntimeFailed, match="cannot open other"):
        runtime.open(tmp_path / "other.plan", {"input": (1, 3)}, {"logits": (1, 3)})
    with pytest.raises(runtimes.RuntimeFailed, match=r"is not \(1, 4\)"):
        runtime.open(tmp_path / "e.plan", {"input": (1, 4)}, {"logits": (1, 3)})
    runtime.open(tmp_path / "e.plan", {"input": (1, 3)}, {"logits": (1, 3)})
    feeds = {"input": np.array([[1, 2, 3]], np.float32)}
    np.testing.assert_array_equal(runtime.infer(feeds)["logits"], [[2, 4, 6]])
    plan = {"warmup_runs": 1, "min_runs": 3, "min_seconds": 5.0}
    assert runtime.time(feeds, plan) == [250_000] * 3
    assert runtime.layers(feeds, 2) == [{"name": "double", "latency_us": 500.0}]
    context.works = False
    with pytest.raises(runtimes.RuntimeFailed, match="failed to run"):
        runtime.infer(feeds)
    runtime.close()
    assert not driver.live
    assert not driver.buffers
    with pytest.raises(gpu.CudaError, match="cuInit failed with CUDA error 700"):
        gpu.Cuda(StandInDriver(failing="cuInit"))


def test_tensorrt_before_10_is_refused(parts: Any) -> None:
    runtimes = parts("runtimes")
    old = ModuleType("tensorrt")
    old.__version__ = "8.6.2"  # type: ignore[attr-defined]
    with pytest.raises(runtimes.Lacking, match="strongly typed"):
        runtimes.TensorRt({"optimization_level": None, "tf32": True, "threads": 1}, trt=old, cuda=object())


# ------------------------------------------------------------------------------------- hostile results


@pytest.mark.parametrize(
    "change",
    [
        {"id": "another"},
        {"status": "fine"},
        {"surprise": 1},
        {"schema_version": 2},
        {"machine": {str(i): i for i in range(65)}},
        {"engine": {"file": "../../x", "resumed": True, "sha256": "0" * 64, "size_bytes": 1, "seconds": 0.1}},
        {
            "engine": {
                "file": f"engines/{'0' * 24}.plan",
                "resumed": True,
                "sha256": "0" * 64,
                "size_bytes": 1 << 40,
                "seconds": 0.1,
            }
        },
        {"outputs": {"file": "/etc/passwd", "sha256": "0" * 64, "shape": [1, 2]}},
        {"outputs": {"file": "outputs.npy", "sha256": "0" * 64, "shape": [1, -2]}},
        {"layers": [{"name": "x" * 501, "latency_us": 1.0}]},
    ],
)
def test_results_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    good = {"schema_version": 1, "id": "job", "status": "ok", "error": None, "machine": {}}
    assert parse_result(json.dumps(good).encode(), "job").status == "ok"
    with pytest.raises(TargetUnavailable):
        parse_result(json.dumps({**good, **change}).encode(), "job")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (17 << 20)])
def test_results_that_are_no_json_are_refused(data: bytes) -> None:
    with pytest.raises(TargetUnavailable):
        parse_result(data, "job")
