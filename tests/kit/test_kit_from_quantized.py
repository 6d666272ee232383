"""Kits of a model that somebody brought as an ONNX file: its images, its class names, its softmax."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from own_classifier import NAMES, quantized
from PIL import Image
from quant_networks import SIZE, Builder
from quant_networks import run as run_model

from edgeattn.data.images import load_image
from edgeattn.data.model_input import ImageOptions, model_input
from edgeattn.data.preprocess import normalize_pixels, preprocess_image
from edgeattn.errors import ArtifactError, DataError, RecipeError
from edgeattn.kit.from_quantized import kit_name, read_class_names
from edgeattn.kit.from_run import KitRequest
from edgeattn.kit.model_folder import check_model, load_reference
from edgeattn.kit.plain_input import plain_preprocess, take_plain_images
from edgeattn.kit.write import write_kit
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_images import recorded_images

Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(NAMES) + "\n\n", encoding="utf-8")
    return path


def test_a_kit_describes_the_model_and_passes_its_own_test(
    own_model: Path, names: Path, tmp_path: Path, run_kit: Runner
) -> None:
    kit = tmp_path / "kit"
    model = write_kit("python", own_model, kit, request=KitRequest(images=12, classes=names))
    assert (model.name, model.classes) == ("my-net-v2", NAMES)
    assert (model.preprocess.size, model.preprocess.resize) == (SIZE, round(SIZE / 0.875))
    assert (model.preprocess.mean, model.preprocess.std) == ((0.5,) * 3, (0.5,) * 3)
    assert check_model(kit / "model") == model
    tested = run_kit(kit, "--self-test")
    assert tested.returncode == 0, tested.stderr
    (answered,) = json.loads(run_kit(kit, "--json", "model/images/0001.png").stdout)
    assert set(NAMES) >= {item["class"] for item in answered["top"]}


def test_a_kit_answers_with_logits_and_is_as_sure_as_the_model(
    own_model: Path, tmp_path: Path, run_kit: Runner
) -> None:
    """Taken twice, a softmax would leave every answer unsure."""
    ort = pytest.importorskip("onnxruntime")
    kit = tmp_path / "kit"
    model = write_kit("python", own_model, kit, request=KitRequest(images=12))
    session = ort.InferenceSession(str(own_model / "model.fp32.onnx"), providers=["CPUExecutionProvider"])
    surest = 0.0
    for image in load_reference(kit / "model", model).images:
        assert image.label is None
        given = preprocess_image(load_image(kit / "model" / image.file), model.preprocess)
        (wanted,) = session.run(None, {"input": given[None]})[0]
        logits = np.asarray(image.logits)
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose(probabilities, wanted, atol=0.1)
        surest = max(surest, float(probabilities.max()))
    assert surest > 0.6
    (answered,) = json.loads(run_kit(kit, "--json", "model/images/0001.png").stdout)
    assert {item["class"] for item in answered["top"]} <= set("0123")


def test_a_model_without_a_softmax_stays_as_it_is(tmp_path: Path) -> None:
    model = write_kit(
        "python", quantized(tmp_path, softmax=False), tmp_path / "kit", request=KitRequest(images=4)
    )
    made = onnx.load(str(tmp_path / "kit" / "model" / model.model.file))
    assert made.graph.output[0].name == "scores"


@pytest.mark.parametrize(
    ("gray", "channels_last", "options"),
    [
        (False, False, ImageOptions(bgr=True, normalization="0.2,0.4,0.6/0.3,0.4,0.5")),
        (False, True, ImageOptions(normalization="symmetric")),
        (False, True, ImageOptions(normalization="pixels", bgr=True, fit="stretch")),
        (True, False, ImageOptions(normalization="0.4/0.3")),
        (True, True, ImageOptions(normalization="pixels")),
    ],
    ids=["blue first", "channels last", "both", "gray", "gray and channels last"],
)
def test_models_of_other_images_take_those_that_kits_prepare(
    gray: bool, channels_last: bool, options: ImageOptions, tmp_path: Path, run_kit: Runner
) -> None:
    ort = pytest.importorskip("onnxruntime")
    folder = quantized(tmp_path, options=options, gray=gray, channels_last=channels_last)
    kit = tmp_path / "kit"
    model = write_kit("python", folder, kit, request=KitRequest(images=12))
    assert model.model.input.shape == (1, 3, SIZE, SIZE)
    takes = recorded_images(folder)
    assert takes is not None and (takes.channels, takes.layout) != ("rgb", "nchw")
    session = ort.InferenceSession(str(folder / "model.u8.onnx"), providers=["CPUExecutionProvider"])
    for image in load_reference(kit / "model", model).images:
        (wanted,) = session.run(
            None, {"input": preprocess_image(load_image(kit / "model" / image.file), takes)[None]}
        )[0]
        logits = np.asarray(image.logits)
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    tested = run_kit(kit, "--self-test")
    assert tested.returncode == 0, tested.stderr


def test_gray_is_the_one_that_images_are_read_with() -> None:
    """Every one of the 8-bit levels, of colours that lie on the border between two as well."""
    takes = model_input((1, 1, 512, 512), ImageOptions(normalization="pixels"))
    colours = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    b = Builder(0)
    graph = Graph(b.model(b.node("Identity", ["input"], "same"), (1, 1, SIZE, SIZE), 1))
    assert take_plain_images(graph, takes)
    given = normalize_pixels(colours, plain_preprocess(takes))
    got = run_model(graph.to_model(), given[None])
    np.testing.assert_array_equal(
        np.rint(got[0][0]),
        np.rint(normalize_pixels(np.array(Image.fromarray(colours).convert("L"))[..., None], takes)),
    )


@pytest.mark.parametrize(
    ("options", "targets", "profile", "match"),
    [
        (
            ImageOptions(fit="letterbox"),
            ("ort-cpu",),
            "u8",
            "square images of up to 1024 pixels.*this model takes",
        ),
        (None, ("ort-cpu", "tensorrt-rtx"), "s8", "TensorRT take colour images"),
    ],
)
def test_images_that_kits_do_not_prepare_are_refused(
    options: ImageOptions | None,
    targets: tuple[str, ...],
    profile: Literal["u8", "s8"],
    match: str,
    tmp_path: Path,
) -> None:
    folder = quantized(tmp_path, options=options, gray=profile == "s8", targets=targets)
    with pytest.raises(RecipeError, match=match):
        write_kit(
            "jetson" if profile == "s8" else "python",
            folder,
            tmp_path / "kit",
            request=KitRequest(profile=profile),
        )
    assert not (tmp_path / "kit").exists()


def test_photographs_that_are_gone_are_asked_for(own_model: Path, tmp_path: Path) -> None:
    report = json.loads((own_model / "report.json").read_text())
    report["recipe"]["calibration"] = "elsewhere/photographs"
    copy = tmp_path / "out"
    copy.mkdir()
    for path in own_model.glob("*.onnx"):
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "report.json").write_text(json.dumps(report))
    with pytest.raises(RecipeError, match=r"'elsewhere/photographs', which is no folder.*--data DIR"):
        write_kit("python", copy, tmp_path / "kit")
    with pytest.raises(DataError, match="There is no folder"):
        write_kit("python", copy, tmp_path / "kit", request=KitRequest(data=tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        write_kit("python", copy, tmp_path / "kit", request=KitRequest(data=tmp_path / "empty"))


def test_another_profile_is_asked_for_by_its_target(own_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no model in profile s8.*tensorrt-rtx.*--target"):
        write_kit("jetson", own_model, tmp_path / "kit")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"a\nb\nc\n", "holds 3 class names, but the model has 4"),
        (b"a\n\nc\nd\n", "Line 2 of .* is no class name"),
        (b"a\nb\nc\n" + b"d" * 201, "Line 4 of .* is no class name"),
        (b"a\nb\nc\n\xff\n", "cannot be read"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(text: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(text)
    with pytest.raises(DataError, match=match):
        read_class_names(tmp_path / "labels.txt", 4)


def test_class_names_that_exporters_keep_are_found(tmp_path: Path) -> None:
    folder = quantized(tmp_path)
    path = folder / "model.fp32.onnx"
    for key, text, expected in (
        ("names", "{0: 'a', 1: 'b', 2: 'c', 3: 'd'}", ("a", "b", "c", "d")),
        ("names", "{0: 'a', 1: 'b'}", tuple("0123")),
        ("names", "__import__('os').getcwd()", tuple("0123")),
        ("character", "a\nb\nc\nd", ("a", "b", "c", "d")),
        ("character", "a\nb\nc", tuple("0123")),
    ):
        model = onnx.load(str(path))
        del model.metadata_props[:]
        model.metadata_props.add(key=key, value=text)
        onnx.save(model, str(path))
        kit = tmp_path / f"kit-{expected[0]}-{len(text)}"
        assert write_kit("python", folder, kit, request=KitRequest(images=4)).classes == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("my net (v2)", "my-net-v2"), ("..", "model"), ("ä" * 3, "model"), ("a" * 99, "a" * 80)],
)
def test_any_stem_becomes_a_name(text: str, expected: str) -> None:
    assert kit_name(text) == expected
