"""Kernels chosen by timing: what is written, what is taken, and what is not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import ModelError
from edgeattn.export.artifacts import save_artifact
from edgeattn.targets import Engine, _openvino_kernels, get_target
from edgeattn.targets._openvino_kernels import choose_kernels, with_priorities
from edgeattn.targets.openvino_cpu import OpenVinoCpu

openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="kernels are chosen on x86 only"
)

SIZE = 64


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """Return a quantized MobileNetV2 with Coordinate Attention, lowered for OpenVINO."""
    pytest.importorskip("torch")
    from network_builds import whole_network

    folder = tmp_path_factory.mktemp("network")
    artifact = save_artifact(
        whole_network("mobilenet_v2", "coord", None, SIZE).model, folder / "net.onnx", "s8"
    )
    return get_target("openvino-cpu").lower(artifact, folder)


@pytest.fixture(scope="module")
def plain(network: OnnxArtifact, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return its engine with OpenVINO's first choice of kernels."""
    return OpenVinoCpu(timed_kernels=False).build(network, tmp_path_factory.mktemp("plain"))


def _compiled(text: str, weights: Path, **more: str) -> Any:
    core = openvino.Core()
    model = core.read_model(model=text, weights=openvino.Tensor(np.fromfile(weights, dtype=np.uint8)))
    return core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", **more})


def _kernels(compiled: Any) -> dict[str, str]:
    """Return the implementation of every convolution by name."""
    found = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in ("Convolution", "GroupConvolution"):
            found[node.get_friendly_name()] = info["primitiveType"].astype(str)
    return found


def _image(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)


def test_a_layer_runs_in_the_family_that_its_priority_names(plain: Engine) -> None:
    text, weights = plain.path.read_text(encoding="utf-8"), plain.path.with_suffix(".bin")
    before = _kernels(_compiled(text, weights))
    layer = next(name for name, kernel in before.items() if kernel.startswith("brgconv") and "1x1" in kernel)
    after = _kernels(_compiled(with_priorities(text, {layer: "jit"}), weights))
    assert after[layer].startswith("jit")
    assert {name: kernel for name, kernel in after.items() if name != layer} == {
        name: kernel for name, kernel in before.items() if name != layer
    }


def test_an_engine_with_chosen_kernels_answers_bit_for_bit_like_the_first_choice(
    network: OnnxArtifact, plain: Engine, tmp_path: Path
) -> None:
    target = get_target("openvino-cpu")
    engine = target.build(network, tmp_path)
    found = dict(engine.details["timed_kernels"])
    # Which kernels are the fastest is this machine's affair; that the file says so is not.
    text = engine.path.read_text(encoding="utf-8")
    assert text.count("primitives_priority") == found.get("brgconv", 0) + found.get("jit", 0)
    assert (found["gain"] > 1.0) == ("primitives_priority" in text) == (found["reason"] == "")
    with target.open(engine) as chosen, target.open(plain) as first:
        for seed in range(4):
            feeds = {"input": _image(seed)}
            np.testing.assert_array_equal(chosen.infer(feeds)["logits"], first.infer(feeds)["logits"])


def test_layers_in_float_are_not_timed(build_small: dict[str, Engine]) -> None:
    """Their sums depend on the kernel: one of them would make all others stay where they are."""
    found = {}
    for profile, engine in build_small.items():
        text, weights = engine.path.read_text(encoding="utf-8"), engine.path.with_suffix(".bin")
        compiled = _compiled(text, weights, PERF_COUNT="YES", INFERENCE_PRECISION_HINT="f32")
        assert len(_kernels(compiled)) == 2
        found[profile] = set(_kernels(compiled)) & set(_openvino_kernels._layer_times({"": compiled})[""])
    assert found["fp32"] == set()
    assert len(found["u8"]) == 2


def _pretend_jit_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(engines: dict[str, Any]) -> dict[str, dict[str, float]]:
        names = _kernels(engines[""])
        return {family: dict.fromkeys(names, 1.0 if family == "jit" else 9.0) for family in engines}

    monkeypatch.setattr(_openvino_kernels, "_layer_times", times)


def test_kernels_that_change_a_number_are_not_taken(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_jit_is_faster(monkeypatch)
    monkeypatch.setattr(_openvino_kernels, "_gain", lambda *_: 2.0)
    text, weights = plain.path.read_text(encoding="utf-8"), plain.path.with_suffix(".bin")

    def wrong(variant: str) -> Any:
        """Kernels that read some weights one step off."""
        if "primitives_priority" not in variant:
            return _compiled(variant, weights)
        values = np.fromfile(weights, dtype=np.uint8)
        values[-8000:-4000] ^= 1
        core = openvino.Core()
        return core.compile_model(core.read_model(model=variant, weights=openvino.Tensor(values)), "CPU")

    choice, _ = choose_kernels(text, lambda variant: _compiled(variant, weights))
    assert set(choice.layers.values()) == {"jit"}
    choice, compiled = choose_kernels(text, wrong)
    assert choice.layers == {}
    assert choice.reason == "other kernels gave other numbers"
    image = _image(5)
    np.testing.assert_array_equal(compiled([image])[0], _compiled(text, weights)([image])[0])


def test_a_family_that_cannot_be_compiled_is_left_out(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_jit_is_faster(monkeypatch)
    text, weights = plain.path.read_text(encoding="utf-8"), plain.path.with_suffix(".bin")

    def without_jit(variant: str) -> Any:
        if "jit" in variant:
            raise ModelError("OpenVINO cannot compile this.")
        return _compiled(variant, weights)

    choice, compiled = choose_kernels(text, without_jit)
    assert choice.layers == {}
    assert choice.reason == "OpenVINO's first choice is the fastest everywhere"
    assert np.isfinite(compiled([_image(0)])[0]).all()


def test_an_engine_that_got_no_faster_as_a_whole_keeps_the_first_choice(
    plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_jit_is_faster(monkeypatch)
    monkeypatch.setattr(_openvino_kernels, "_gain", lambda *_: 0.99)
    text, weights = plain.path.read_text(encoding="utf-8"), plain.path.with_suffix(".bin")
    choice, _ = choose_kernels(text, lambda variant: _compiled(variant, weights))
    assert (choice.layers, choice.gain) == ({}, 1.0)
    assert choice.reason == "no faster as a whole"


@pytest.mark.parametrize(
    ("first", "brgconv", "jit", "wanted"),
    [
        (20.0, 12.0, 10.0, "jit"),
        (20.0, 10.0, 12.0, "brgconv"),
        (20.0, 21.0, 19.5, None),  # Less than a twentieth.
        (1.0, 1.0, 0.6, None),  # Less than half a microsecond.
        (20.0, None, None, None),  # It is called otherwise there.
    ],
)
def test_a_layer_changes_only_for_a_gain_beyond_doubt(
    first: float, brgconv: float | None, jit: float | None, wanted: str | None
) -> None:
    times = {"": {"conv": first}, "brgconv": {}, "jit": {}}
    times["brgconv"] |= {} if brgconv is None else {"conv": brgconv}
    times["jit"] |= {} if jit is None else {"conv": jit}
    expected = {} if wanted is None else {"conv": wanted}
    assert _openvino_kernels._fastest(times, ["conv", "fused away"]) == expected


def test_float_engines_and_short_networks_are_not_timed(build_small: dict[str, Engine]) -> None:
    assert "timed_kernels" not in build_small["fp32"].details
    assert build_small["u8"].details["timed_kernels"]["reason"] == "fewer than 8 convolutions"


@pytest.fixture
def build_small(artifacts: dict[str, OnnxArtifact], tmp_path: Path) -> dict[str, Engine]:
    """Return engines of the two-layer network."""
    target = get_target("openvino-cpu")
    return {profile: target.build(artifacts[profile], tmp_path) for profile in ("fp32", "u8")}


_SUMS_IN_EVERY_FAMILY = """
import sys
import numpy as np
import openvino
from edgeattn.targets._openvino_kernels import with_priorities

core = openvino.Core()
model = core.read_model(sys.argv[1])
openvino.serialize(model, sys.argv[2], sys.argv[2][:-4] + ".bin")
text = open(sys.argv[2], encoding="utf-8").read()
weights = openvino.Tensor(np.fromfile(sys.argv[2][:-4] + ".bin", dtype=np.uint8))
names = [node.get_friendly_name() for node in core.read_model(sys.argv[2]).get_ops() if node.get_type_name() == "Convolution"]
for family in ("", "brgconv", "jit"):
    variant = with_priorities(text, dict.fromkeys(names, family)) if family else text
    model = core.read_model(model=variant, weights=weights)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    print(float(compiled([np.ones((1, 32, 8, 8), np.float32)])[0].max()))
"""


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("instruction_set", ["AVX2", "AVX2_VNNI", "AVX512_CORE", "DEFAULT"])
def test_no_family_saturates_where_the_first_choice_does_not(
    kernel: int, instruction_set: str, tmp_path: Path
) -> None:
    """Sums of two products are the largest that there are: 255 times 127, twice. OpenVINO reads the variable once."""
    path = save_artifact(_largest_sums(kernel), tmp_path / "sums.onnx", "u8").path
    done = subprocess.run(
        [sys.executable, "-c", _SUMS_IN_EVERY_FAMILY, str(path), str(tmp_path / "sums.xml")],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instruction_set},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert len(set(done.stdout.split())) == 1
    if instruction_set == "AVX2_VNNI" and "avx_vnni" in Path("/proc/cpuinfo").read_text():
        assert float(done.stdout.split()[0]) == 32 * kernel**2


def _largest_sums(kernel: int) -> onnx.ModelProto:
    constants = {
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "weight": np.full((32, 32, kernel, kernel), 127, np.int8),
        "weight_scale": np.full(32, 1 / 127, np.float32),
        "weight_zero": np.zeros(32, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["weights"], axis=0),
        helper.make_node("Conv", ["values", "weights"], ["sums"], kernel_shape=[kernel, kernel]),
    ]
    shape = [1, 32, 8, 8]
    size = 9 - kernel
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, [1, 32, size, size])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
