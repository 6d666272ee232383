"""What is particular to the two CPU targets."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import ArtifactError, RecipeError
from edgeattn.measure import compare_latency, run_session
from edgeattn.targets import Engine, TimingPlan, get_target
from edgeattn.targets.base import session_properties
from edgeattn.targets.engine_files import save_engine
from edgeattn.targets.openvino_cpu import OpenVinoCpu
from edgeattn.targets.ort_cpu import OrtCpu

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

Build = Callable[..., Engine]


def test_both_cpu_runtimes_agree_to_one_quantization_step(build: Build, images: NDArray[np.float32]) -> None:
    logits = []
    for name in ("ort-cpu", "openvino-cpu"):
        with get_target(name).open(build(name)) as session:
            logits.append(session.infer({"input": images})["logits"])
    # The mean of 64 values with a step of 0.05, of which few may round the other way.
    np.testing.assert_allclose(logits[0], logits[1], atol=0.05 / 8)


def test_engines_of_two_runtimes_are_compared_in_one_process(
    build: Build, images: NDArray[np.float32]
) -> None:
    ort, openvino = get_target("ort-cpu"), get_target("openvino-cpu")
    plan = TimingPlan(warmup_runs=2, min_runs=8, min_seconds=5.0)
    with ort.open(build("ort-cpu")) as a, openvino.open(build("openvino-cpu")) as b:
        comparison = compare_latency({"ort": a, "openvino": b}, {"input": images}, plan, rounds=2)
        logits = run_session(a, np.concatenate([images, -images]), "input", "logits")
    assert comparison.latencies["openvino"].runs == 8
    assert comparison.latencies["ort"].properties["runtime"].startswith("onnxruntime")
    assert comparison.ratios["openvino"].ratio > 0
    assert logits.shape == (2, 16)


def test_openvino_records_the_precision_that_it_used(build: Build, images: NDArray[np.float32]) -> None:
    engine = build("openvino-cpu")
    with OpenVinoCpu(cpu_pinning=False).open(engine, threads=2) as session:
        properties = session_properties(session)
    assert properties["inference_precision"] == "f32"
    assert properties["pinning"] == "none"
    assert properties["threads"] == 2
    assert properties["performance_hint"] == "LATENCY"


_SHOW_INSTRUCTION_SET = """
import sys
from pathlib import Path
from edgeattn.targets import get_target
from edgeattn.targets.base import session_properties
from edgeattn.targets.engine_files import load_engine

with get_target("openvino-cpu").open(load_engine(Path(sys.argv[1]))) as session:
    print(session_properties(session)["instruction_set"])
"""


def test_openvino_records_the_instruction_set_that_it_was_held_to(build: Build) -> None:
    """OpenVINO reads the variable once in a process, so each answer takes one."""
    engine = build("openvino-cpu")
    save_engine(engine)
    command = [sys.executable, "-c", _SHOW_INSTRUCTION_SET, str(engine.path)]
    shown = []
    for limit in ({}, {"ONEDNN_MAX_CPU_ISA": "SSE41"}):
        environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"} | limit
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        shown.append(result.stdout.strip())
    assert shown[1] == "Intel SSE4.1"
    assert shown[0] not in ("", "None", shown[1])


def test_openvino_layer_types_come_from_the_kernels(build: Build, images: NDArray[np.float32]) -> None:
    with get_target("openvino-cpu").open(build("openvino-cpu")) as session:
        layers = session.layer_times({"input": images}, runs=5)
    assert {layer.dtype for layer in layers if layer.kind == "Convolution"} == {"int8"}


def test_openvino_runs_without_low_precision_on_arm(
    artifacts: dict[str, OnnxArtifact],
    build: Build,
    images: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The option is a real one, here too: no kernel is INT8 then, and the numbers are the graph's."""
    with monkeypatch.context() as patch:
        patch.setattr("edgeattn.targets.openvino_cpu.platform.machine", lambda: "aarch64")
        target = OpenVinoCpu()
    engine = target.build(artifacts["u8"], tmp_path)
    assert engine.details["low_precision"] is False
    assert (engine.details["int8_convolutions"], engine.details["float_convolutions"]) == (0, 2)
    assert build("openvino-cpu").details["low_precision"] is True
    with target.open(engine) as session:
        assert session_properties(session)["low_precision"] is False
        simulated = session.infer({"input": images})["logits"]
    with get_target("openvino-cpu").open(build("openvino-cpu")) as session:
        np.testing.assert_allclose(session.infer({"input": images})["logits"], simulated, atol=0.05 / 8)


def test_openvino_refuses_an_unknown_precision() -> None:
    with pytest.raises(RecipeError, match="fp8"):
        OpenVinoCpu(inference_precision="fp8")
    with pytest.raises(RecipeError, match="options"):
        get_target("openvino-cpu", no_such_option=1)


def test_openvino_refuses_an_engine_whose_weights_are_not_hashed(build: Build) -> None:
    engine = build("openvino-cpu")
    details = {key: value for key, value in engine.details.items() if key != "side_files"}
    with (
        pytest.raises(ArtifactError, match="no recorded hash"),
        OpenVinoCpu().open(dataclasses.replace(engine, details=details)),
    ):
        pass


def test_ort_layer_times_average_over_the_counted_runs(build: Build, images: NDArray[np.float32]) -> None:
    with get_target("ort-cpu").open(build("ort-cpu")) as session:
        layers = session.layer_times({"input": images}, runs=3)
    kinds = [layer.kind for layer in layers]
    assert kinds.count("QLinearConv") == 2
    assert {layer.dtype for layer in layers if layer.kind == "QLinearConv"} == {"uint8"}


def test_ort_keeps_signed_activations_but_says_what_was_fed(
    artifacts: dict[str, OnnxArtifact], tmp_path: Path
) -> None:
    """S8 is slow on x86, not wrong, so measuring it is allowed."""
    engine = OrtCpu(allow_spinning=False).build(artifacts["s8"], tmp_path)
    assert engine.details["profile"] == "s8"
    assert engine.precision == "int8"
    with OrtCpu(allow_spinning=False).open(engine, threads=2) as session:
        assert session_properties(session)["allow_spinning"] is False
        assert session_properties(session)["threads"] == 2


_INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from edgeattn.targets import get_target, load_engine

signal.signal(signal.SIGINT, signal.default_int_handler)  # A job in the background is started with SIGINT ignored.
engine = load_engine(Path(sys.argv[1]))
target = get_target(sys.argv[2])
opened = [target.open(engine) for _ in range(2)]
for session in opened:
    session.__enter__()
for session in opened:
    session.__exit__(None, None, None)
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("name", ["ort-cpu", "openvino-cpu"])
def test_sessions_that_close_in_any_order_leave_a_process_that_can_be_interrupted(
    name: str, build: Build
) -> None:
    """With an `openvino.Core` for each session, Ctrl-C ended the process with SIGSEGV."""
    manifest = save_engine(build(name))
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(manifest), name], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
