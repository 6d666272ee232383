"""A kit is written whole or not at all, from a run that may be used, and overwrites nothing of the user's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from edgeattn.cli import app
from edgeattn.data import load_image, preprocess_image, resize_and_crop
from edgeattn.errors import ArtifactError, DataError, EdgeAttnError, RecipeError
from edgeattn.kit import KitKind, get_kit, kit_names
from edgeattn.kit.deploy_files import demo_folder
from edgeattn.kit.from_run import KitRequest
from edgeattn.kit.model_folder import check_model, load_model, load_reference
from edgeattn.kit.spec import KitModel
from edgeattn.kit.write import write_kit


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's photographs as a data set: a folder for each class, train and val."""
    root = tmp_path_factory.mktemp("photographs")
    demo = load_model(demo_folder())
    for image in load_reference(demo_folder(), demo).images:
        for split in ("train", "val"):
            folder = root / split / demo.classes[image.label or 0]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(demo_folder() / image.file, folder)
    return root


@pytest.fixture
def run_folder(tmp_path: Path, photographs: Path) -> Path:
    """What a finished run leaves, with the demonstration's networks."""
    run = tmp_path / "run"
    run.mkdir()
    for profile in ("u8", "s8"):
        shutil.copy(demo_folder() / f"model.{profile}.onnx", run)
    demo = load_model(demo_folder())
    recipe = {
        "name": "a-run",
        "description": "what it is",
        "data": {
            "kind": "image_folder",
            "root": str(photographs),
            "preprocess": demo.preprocess.model_dump(mode="json"),
        },
    }
    report = {"recipe": recipe, "fingerprint": "0" * 64, "verdict": "pass", "fp32": {"n": 0}}
    (run / "report.json").write_text(json.dumps(report))
    return run


def change_report(run: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    report = json.loads((run / "report.json").read_text())
    change(report)
    (run / "report.json").write_text(json.dumps(report))


def test_kit_of_a_run_describes_it(run_folder: Path, tmp_path: Path) -> None:
    """Name, classes and preprocessing are the run's; every file has its hash; expected outputs are real."""
    pytest.importorskip("onnxruntime")
    model = write_kit("python", run_folder, tmp_path / "kit", request=KitRequest(images=20))
    assert (model.name, model.description) == ("a-run", "what it is")
    assert model.classes == tuple("0123456789")
    assert check_model(tmp_path / "kit" / "model") == model
    assert (tmp_path / "kit" / "edgeattn_classify.py").is_file()
    reference = load_reference(tmp_path / "kit" / "model", model)
    assert [image.label for image in reference.images[:10]] == list(range(10))
    demo = {i.sha256: i for i in load_reference(demo_folder(), load_model(demo_folder())).images}
    for image in reference.images:
        assert image.pixels_sha256 == demo[image.sha256].pixels_sha256
        assert np.allclose(image.logits, demo[image.sha256].logits, atol=reference.tolerance)


def test_a_variant_of_a_run_is_made_with_its_kit(run_folder: Path, tmp_path: Path) -> None:
    """The browsers' graph is the one that the demonstration ships; an unknown variant is refused."""
    pytest.importorskip("onnxruntime")
    kind = KitKind("x", "x", lambda folder, model: None, (), variants=("web",))
    model = write_kit(kind, run_folder, tmp_path / "kit", request=KitRequest(images=10))
    assert check_model(tmp_path / "kit" / "model") == model
    made = len(onnx.load(tmp_path / "kit/model" / model.variants["web"].file).graph.node)
    shipped = load_model(demo_folder()).variants["web"].file
    assert made == len(onnx.load(demo_folder() / shipped).graph.node)
    operators = {node.op_type for node in onnx.load(tmp_path / "kit/model" / model.model.file).graph.node}
    assert "Pad" not in operators, "graphics processors in browsers pad no integers"
    kind = KitKind("x", "x", lambda folder, model: None, (), variants=("abacus",))
    with pytest.raises(RecipeError, match="Unknown variant 'abacus'; there is: openvino, web"):
        write_kit(kind, run_folder, tmp_path / "other", request=KitRequest(images=10))


def test_jetson_gets_the_signed_spelling(run_folder: Path, tmp_path: Path) -> None:
    """A kind of kit names its profile."""
    pytest.importorskip("onnxruntime")
    kind = KitKind("x", "x", lambda folder, model: None, (), profile="s8")
    for run in (run_folder, None):
        out = tmp_path / f"kit-{run is None}"
        model = write_kit(kind, run, out, request=KitRequest(images=10))
        assert (model.model.profile, model.model.file) == ("s8", "model.s8.onnx")
        assert model.reference.file == "reference.json"
        assert check_model(out / "model") == model


def test_other_formats_become_png(run_folder: Path, tmp_path: Path, photographs: Path) -> None:
    """What not every kit can decode alike is stored as the pixels that training saw."""
    pytest.importorskip("onnxruntime")
    data = tmp_path / "data"
    shutil.copytree(photographs, data)
    for path in (data / "val" / "0").iterdir():
        with Image.open(path) as image:
            image.rotate(90).save(path.with_suffix(".bmp"))
        path.unlink()
    model = write_kit("python", run_folder, tmp_path / "kit", request=KitRequest(images=10, data=data))
    reference = load_reference(tmp_path / "kit" / "model", model)
    assert [Path(image.file).suffix for image in reference.images] == [".png", *[".jpg"] * 9]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda report: report.update(verdict="fail"), "failed its own bounds"),
        (lambda report: report["recipe"].pop("data"), "does not say how images become inputs"),
        (lambda report: report["recipe"]["data"].update(root="../data"), "--data DIR"),
        (lambda report: report["recipe"]["data"].update(root="/nowhere/at/all"), "does not exist"),
        (lambda report: report["recipe"]["data"].update(kind="no"), "no valid data section"),
    ],
)
def test_run_that_cannot_be_used(
    run_folder: Path,
    tmp_path: Path,
    change: Callable[[dict], None],  # type: ignore[type-arg]
    match: str,
) -> None:
    """It is refused with the reason, and nothing is left behind."""
    change_report(run_folder, change)
    with pytest.raises((ArtifactError, RecipeError, DataError), match=match):
        write_kit("python", run_folder, tmp_path / "kit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_run_without_the_profile(run_folder: Path, tmp_path: Path) -> None:
    """The message names the models that there are."""
    (run_folder / "model.u8.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"no model in profile u8.*model\.s8\.onnx"):
        write_kit("python", run_folder, tmp_path / "kit")


def test_run_whose_model_was_exchanged(run_folder: Path, tmp_path: Path) -> None:
    """A kit must not carry another model than the one whose accuracy the report states."""
    (run_folder / "engine.onnx").write_bytes(b"what was measured")
    digest = "ec7ba26b6a5a4bb6e0f5b3c4a6b8b7c8d1c1ad2ba0a1f1f9a5f1f5f9b2ad6e0a"

    def add_engine(report: dict) -> None:  # type: ignore[type-arg]
        engine = {"path": "engine.onnx", "sha256": digest, "size_bytes": 17}
        report["targets"] = {"ort-cpu": {"status": "ok", "engine": engine}}

    change_report(run_folder, add_engine)
    with pytest.raises(ArtifactError, match="changed after it was written"):
        write_kit("python", run_folder, tmp_path / "kit")
    from edgeattn.artifact import sha256_of_file

    digest = sha256_of_file(run_folder / "engine.onnx")
    change_report(run_folder, add_engine)
    with pytest.raises(ArtifactError, match="does not give the engine"):
        write_kit("python", run_folder, tmp_path / "kit")


def test_folder_of_the_user_is_left_alone(tmp_path: Path) -> None:
    """Not even --force replaces what is no kit."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(RecipeError, match="holds no kit"):
            write_kit("python", None, tmp_path / "mine", force=force)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(RecipeError, match="is a file"):
        write_kit("python", None, tmp_path / "mine" / "thesis.txt", force=True)


def test_kit_is_replaced_only_with_force(tmp_path: Path) -> None:
    """And then as a whole."""
    out = tmp_path / "kit"
    out.mkdir()  # an empty folder is fine
    write_kit("python", None, out)
    (out / "old.txt").touch()
    with pytest.raises(RecipeError, match="--force"):
        write_kit("python", None, out)
    assert (out / "old.txt").exists()
    write_kit("python", None, out, force=True)
    assert not (out / "old.txt").exists()
    assert (out.stat().st_mode & 0o777) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


def test_failure_half_way_leaves_the_old_kit(tmp_path: Path) -> None:
    """Whatever goes wrong while files are written."""

    def fail(folder: Path, model: KitModel) -> None:
        raise OSError(28, "No space left on device")

    write_kit("python", None, tmp_path / "kit")
    with pytest.raises(ArtifactError, match="Free some space"):
        write_kit(KitKind("x", "x", fail, ()), None, tmp_path / "kit", force=True)
    check_model(tmp_path / "kit" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


def test_changed_model_folder_is_noticed(tmp_path: Path) -> None:
    """A flipped bit, a missing file, and a link that leads out."""
    write_kit("python", None, tmp_path / "kit")
    model = tmp_path / "kit" / "model"
    victim = model / "images" / "0001.jpg"
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"0001\.jpg is not the file"):
        check_model(model)
    victim.unlink()
    with pytest.raises(ArtifactError, match=r"Cannot read .*0001\.jpg"):
        check_model(model)
    (tmp_path / "outside.jpg").write_bytes(good)
    victim.symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(ArtifactError, match="leads out"):
        check_model(model)
    victim.unlink()
    victim.symlink_to(victim)
    with pytest.raises(ArtifactError, match=r"Cannot read .*0001\.jpg"):
        check_model(model)


def test_a_kit_is_not_written_to_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "kit").symlink_to("kit")
    with pytest.raises(EdgeAttnError):
        write_kit("python", None, tmp_path / "kit")
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


def test_kinds_are_known_by_name() -> None:
    """A typing error gets the close match."""
    assert "python" in kit_names()
    assert all(get_kit(name).name == name for name in kit_names())
    with pytest.raises(RecipeError, match="Did you mean 'python'"):
        get_kit("pyhton")


def test_command_line(tmp_path: Path) -> None:
    """`edgeattn kit python --demo --out DIR`, for people and for programs."""
    runner = CliRunner()
    done = runner.invoke(app, ["kit", "python", "--demo", "--out", str(tmp_path / "a"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"]["file"] == "model.u8.onnx"
    done = runner.invoke(app, ["kit", "python", "--demo", "--out", str(tmp_path / "b")])
    assert "edgeattn_classify.py --self-test" in done.stdout
    for wrong in (["kit", "python", "--demo"], ["kit", "python", "--out", "x"], ["kit", "p", "--demo"]):
        assert runner.invoke(app, wrong).exit_code == 2


def test_kit_preprocessing_is_bit_equal_to_trainings(demo_kit: Path) -> None:
    """The reference hashes are those of training's own functions."""
    model = load_model(demo_kit / "model")
    from edgeattn.artifact import sha256_of_bytes

    for image in load_reference(demo_kit / "model", model).images:
        rgb = load_image(demo_kit / "model" / image.file)
        assert sha256_of_bytes(resize_and_crop(rgb, model.preprocess).tobytes()) == image.pixels_sha256
        assert preprocess_image(rgb, model.preprocess).shape == model.model.input.shape[1:]


def test_program_files_are_found_in_a_wheel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the package in a checkout, inside it once installed; somebody else's deploy/ is not taken."""
    from edgeattn.kit import deploy_files

    package = tmp_path / "site-packages" / "edgeattn"
    (package.parent / "deploy" / "python").mkdir(parents=True)
    monkeypatch.setattr(deploy_files, "_PACKAGE", package)
    with pytest.raises(ArtifactError, match="Install edgeattn again"):
        deploy_files.deploy_folder()
    shutil.copytree(Path(__file__).parents[2] / "deploy", package / "_deploy")
    assert deploy_files.deploy_folder() == package / "_deploy"
    write_kit("python", None, tmp_path / "kit")
    check_model(tmp_path / "kit" / "model")
