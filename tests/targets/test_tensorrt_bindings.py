"""The real Python bindings of TensorRT 10 and 11, as far as they go where neither its libraries nor a GPU are.

NVIDIA's wheels of the bindings come from the package index; the libraries that they bind do not. The bindings ask
these for nine functions, so that libraries with nine functions that return nothing let them be imported: every class,
enumeration and attribute is then the real one, and `Builder` fails as it does without a driver.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

WHEELS = {10: "tensorrt-cu12-bindings==10.16.1.11", 11: "tensorrt-cu13-bindings==11.4.0.106"}
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")

pytestmark = pytest.mark.network


@pytest.fixture(scope="module", params=list(WHEELS))
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Unpack one version's bindings as the package ``tensorrt``, with libraries that do nothing."""
    major, folder = int(request.param), tmp_path_factory.mktemp("bindings")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux: apt-get install gcc")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "-q"]
    try:
        done = subprocess.run(
            [*pip, "--only-binary=:all:", "-d", str(folder), WHEELS[major]],
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"{WHEELS[major]} cannot be had here: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    for library in _LIBRARIES:
        result = folder / f"lib{library}.so.{major}"
        subprocess.run([compiler, "-w", "-shared", "-fPIC", "-o", str(result), str(source)], check=True)
    (folder / "tensorrt").mkdir()
    shim = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    (folder / "tensorrt" / "__init__.py").write_text(shim)
    return major, folder


def in_python(bindings: tuple[int, Path], code: str, *, path: Path | None = None) -> Any:
    """Run code in a process of its own, as it holds native libraries, and return the JSON that it prints last."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(bindings[1]),
        "PYTHONPATH": os.pathsep.join(map(str, (bindings[1], *([path] if path else []), root))),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


USED = {
    "Builder": ["create_network", "create_builder_config", "build_serialized_network"],
    "IBuilderConfig": ["profiling_verbosity", "builder_optimization_level", "clear_flag"],
    "ICudaEngine": ["create_execution_context"],
    "IExecutionContext": ["execute_async_v3", "get_tensor_shape", "profiler", "set_tensor_address"],
    "ILogger": ["log"],
    "IProfiler": ["report_layer_time"],
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
    "BuilderFlag": ["TF32"],
    "OnnxParser": ["parse", "num_errors", "get_error"],
    "ParserError": ["desc", "node_name", "node_operator"],
    "ProfilingVerbosity": ["DETAILED"],
    "Runtime": ["deserialize_cuda_engine"],
}
"""What the target and the kit use of TensorRT."""

REMOVED_IN_11 = {
    "BuilderFlag": ["INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"],
    "IBuilderConfig": ["int8_calibrator"],
}
"""What other tools still use: here it stands for the test's own power to tell versions apart."""


def test_both_versions_have_all_that_is_used_and_11_lacks_what_is_not(bindings: tuple[int, Path]) -> None:
    names = {"used": USED, "removed": REMOVED_IN_11}
    code = (
        "import json, tensorrt as trt\n"
        f"names = {names!r}\n"
        "print(json.dumps({key: [f'{c}.{n}' for c, ns in value.items() for n in ns "
        "if not hasattr(getattr(trt, c, None), n)] for key, value in names.items()}))"
    )
    missing = in_python(bindings, code)
    assert missing["used"] == []
    assert bool(missing["removed"]) == (bindings[0] >= 11)


def test_every_name_of_tensorrt_in_the_sources_is_checked(repository: Path) -> None:
    """A new use of TensorRT that the list above leaves out fails here."""
    import ast

    files = [
        repository / "edgeattn/targets" / name for name in ("_trt.py", "_trt_session.py", "tensorrt_full.py")
    ]
    files.append(repository / "deploy/jetson/runtimes.py")
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("trt", "self._trt"):
                found.add(node.attr)
    assert found - {"__version__"} == set(USED) & found
    assert {"Builder", "OnnxParser", "Runtime", "ILogger"} <= found


def test_the_network_is_strongly_typed_in_both(bindings: tuple[int, Path]) -> None:
    code = (
        "import json, tensorrt as trt\n"
        "from edgeattn.targets.tensorrt_full import TensorRt\n"
        "flag = TensorRt()._network_flags(trt)\n"
        "print(json.dumps([flag == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), "
        "TensorRt()._refuse_gpu(trt, (8, 7)), TensorRt().probe().version]))"
    )
    typed, refused, version = in_python(bindings, code)
    assert typed
    assert refused == ""
    assert version.startswith(f"{bindings[0]}.")


def test_the_target_says_that_nothing_starts_without_a_driver(bindings: tuple[int, Path]) -> None:
    """The real `Builder` returns no object, and the real logger class takes ours."""
    code = (
        "import json\n"
        "from edgeattn.errors import TargetUnavailable\n"
        "from edgeattn.targets._trt import _captured_log\n"
        "from edgeattn.targets.tensorrt_full import TensorRt\n"
        "target = TensorRt()\n"
        "with _captured_log('tensorrt') as (log, records):\n"
        "    try:\n"
        "        target._build_plan(target._load(), log, records, None)\n"
        "    except TargetUnavailable as exc:\n"
        "        print(json.dumps(str(exc)))"
    )
    assert "Target tensorrt does not start: pybind11" in in_python(bindings, code)


def test_the_kit_says_so_too(bindings: tuple[int, Path], repository: Path) -> None:
    code = (
        "import json\n"
        "from pathlib import Path\n"
        "from failures import RuntimeFailed\n"
        "from runtimes import TensorRt\n"
        "class Cuda: compute_capability = '8.7'\n"
        "runtime = TensorRt({'optimization_level': 3, 'tf32': False}, cuda=Cuda())\n"
        "try:\n"
        "    runtime.build_plan(Path('none.onnx'), print)\n"
        "except RuntimeFailed as exc:\n"
        "    print(json.dumps([str(exc), runtime.version, runtime.key]))"
    )
    said, version, key = in_python(bindings, code, path=repository / "deploy" / "jetson")
    assert said.startswith("TensorRT does not start: pybind11")
    assert key == f"tensorrt-{version}-8.7-3-False"
