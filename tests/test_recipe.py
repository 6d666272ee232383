"""Recipes are read strictly, and what is wrong is said with its place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import RecipeError
from edgeattn.models import architectures
from edgeattn.recipe import AttentionSpec, Recipe, load_recipe, recipe_schema

RECIPES = Path(__file__).parents[1] / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))

GOOD = """\
name: tiny
data: {kind: digits}
train:
  epochs: 1
calibration: ../calibration/digits.yaml
targets: [ort-cpu]
"""


@pytest.fixture(autouse=True)
def _data_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEATTN_DATA", "/data")
    monkeypatch.setenv("IMAGENET", "/imagenet")


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load_error(folder: Path, text: str | bytes, *overrides: str) -> str:
    path = write(folder, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_recipes_of_the_project_load(path: Path) -> None:
    """Every recipe is valid by the code and by the schema, is named as its file, and has a calibration."""
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    assert recipe.calibration.is_file()
    jsonschema.validate(yaml.safe_load(path.read_text()), dict(recipe_schema()))


def test_schema_is_current() -> None:
    """The schema file is what the code says; `make schema` writes it."""
    assert json.loads((RECIPES / "recipe.schema.json").read_text()) == recipe_schema()


def test_every_architecture_can_be_asked_for() -> None:
    """The schema's list, which editors offer, is the registry's."""
    assert set(recipe_schema()["$defs"]["ModelSpec"]["properties"]["arch"]["enum"]) == set(architectures)


def test_schema_command_prints_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeattn.recipe"], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["title"] == "edgeattn recipe"


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths start from the recipe's folder, wherever the command runs, and keep their spelling in JSON."""
    monkeypatch.chdir("/")
    text = GOOD + "model: {weights: '${EDGEATTN_DATA}/w.safetensors'}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.calibration == tmp_path / "../calibration/digits.yaml"
    assert recipe.model.weights == Path("/data/w.safetensors")
    assert recipe.to_json()["calibration"] == "../calibration/digits.yaml"
    assert recipe.to_json()["model"]["weights"] == "${EDGEATTN_DATA}/w.safetensors"


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    """The same recipe elsewhere is the same; another value, given in either way, is another."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = load_recipe(write(tmp_path / "a", GOOD))
    assert load_recipe(write(tmp_path / "b", "# a comment\n" + GOOD)).fingerprint() == first.fingerprint()
    overridden = load_recipe(tmp_path / "a/recipe.yaml", ["train.epochs=2"])
    edited = load_recipe(write(tmp_path / "b", GOOD.replace("epochs: 1", "epochs: 2")))
    assert overridden.fingerprint() == edited.fingerprint() != first.fingerprint()


def test_recipe_is_frozen(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        recipe.measure.threads = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("train:", "trian:"), "FILE:3: trian: unknown key 'trian'. Did you mean 'train'?"),
        (("  epochs: 1", "  epoch: 1"), "FILE:4: train.epoch: unknown key 'epoch'. Did you mean 'epochs'"),
        (("  epochs: 1", "  epochs: many"), "FILE:4: train.epochs: input should be a valid integer"),
        (
            ("  epochs: 1", "  epochs: -1"),
            "FILE:4: train.epochs: input should be greater than or equal to 0, got -1",
        ),
        (("  epochs: 1", "  epochs: .nan"), "FILE:4: train.epochs: expected a finite number"),
        (
            ("[ort-cpu]", "[ort-cpu, ort-gpu]"),
            "FILE:6: targets.1: unknown target 'ort-gpu'. Did you mean 'ort-cpu'?",
        ),
        (("[ort-cpu]", "[ort-cpu, ort-cpu]"), "targets names one twice"),
        (("[ort-cpu]", "[]"), "FILE:6: targets:"),
        (
            ("targets: [ort-cpu]", "epochs: 3"),
            "epochs: unknown key 'epochs'. It belongs elsewhere: train.epochs",
        ),
        (("targets: [ort-cpu]\n", ""), "targets: this key is required"),
        (("name: tiny", "name: tiny\nname: other"), "FILE:2: name is given twice (first on line 1)"),
        (("name: tiny", "name: ../escape"), "FILE:1: name:"),
        (("name: tiny", "on: tiny"), "FILE:1: a key must be plain text, got 'on'"),
        (("name: tiny", "name: *other"), "FILE:1: not valid here: aliases"),
        (("name: tiny", "name: !!python/name:os.system x"), "FILE:1: not valid here: tags"),
        (("{kind: digits}", "{kind: image_folder}"), "data.root"),
        (
            ("{kind: digits}", "{kind: image_folder, root: '$NOT_SET_ANYWHERE/x'}"),
            "NOT_SET_ANYWHERE, which is not",
        ),
        (("train:\n  epochs: 1", "train: null"), "nothing gives the network weights"),
        (
            ("name: tiny", "name: tiny\nattention: {kind: cord}"),
            "unknown attention 'cord'. Did you mean 'coord' or 'cot' or 'condconv'?",
        ),
        (("name: tiny", "name: tiny\nattention: {kind: eca, edge_form: x}"), "eca has no edge form 'x'"),
        (
            ("name: tiny", "name: tiny\nattention: {options: {reduction: 2}}"),
            "attention.kind none takes no options",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else value[1].replace("\n", " ")[:40],
)
def test_error_says_where_what_and_how(change: tuple[str, str], expected: str, tmp_path: Path) -> None:
    """A message names the file, the line, the key, what was got, and what is close to it."""
    assert change[0] in GOOD
    assert expected in load_error(tmp_path, GOOD.replace(*change))


def test_every_problem_is_listed(tmp_path: Path) -> None:
    """Two typing errors take one attempt, not two."""
    message = load_error(tmp_path, GOOD.replace("epochs", "epoch").replace("digits}", "digit}"))
    assert "FILE:2: data.kind" in message
    assert "FILE:4: train.epoch" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "expected keys and values, got list"),
        ("a: [1, 2", "FILE:1"),
        ("a: b: c", "FILE:1"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("a: \x07", "not valid YAML"),
        (b"#" + b"x" * 1_100_000, "larger than 1 MB"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "9" * 5000, "a value cannot be read"),
        ("a: 2001-99-99", "a value cannot be read"),
        ("a: &x [1]\nb: [*x, *x]", "FILE:2: not valid here: aliases"),
        ("? [a, b]\n: c", "a key must be plain text, got a list or mapping"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_hostile_yaml_is_refused(text: str | bytes, expected: str, tmp_path: Path) -> None:
    assert expected in load_error(tmp_path, text)


@pytest.mark.parametrize("name", ["absent.yaml", ".", "a\0b"])
def test_unreadable_file_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="recipe"):
        load_recipe(tmp_path / name)


def test_override_is_yaml_and_checked(tmp_path: Path) -> None:
    """--set reads YAML, makes missing sections, and the last one wins."""
    path = write(tmp_path, GOOD)
    recipe = load_recipe(
        path, ["targets=[openvino-cpu, ort-cpu]", "measure.quick=true", "train.epochs=2", "train.epochs=3"]
    )
    assert recipe.targets == ("openvino-cpu", "ort-cpu")
    assert recipe.measure.quick is True
    assert recipe.train is not None
    assert recipe.train.epochs == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=3", "--set train.epoch=3: train.epoch: unknown key 'epoch'. Did you mean 'epochs'"),
        ("train.epochs=x", "--set train.epochs=x: train.epochs: input should be a valid integer"),
        ("train.epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("train..epochs=3", "expected key=value"),
        ("name.x=3", "name is 'tiny', not a section"),
        ("train={epochs: [", "--set train={epochs: [: not valid here"),
        ("data.root=$NOT_SET_ANYWHERE", "--set data.root=$NOT_SET_ANYWHERE: data.root"),
        ("targets=[nope]", "--set targets=[nope]: targets.0: unknown target 'nope'"),
    ],
)
def test_override_error_names_the_override(override: str, expected: str, tmp_path: Path) -> None:
    assert expected in load_error(tmp_path, GOOD, override)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_give_a_recipe_or_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """No file, however broken, ends in anything but a RecipeError."""
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError):
        load_recipe(path)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from(sorted(Recipe.model_fields)), _values)
def test_any_value_under_a_key_gives_a_recipe_or_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    """No value under a known key ends in anything but a recipe or a RecipeError."""
    path = tmp_path_factory.getbasetemp() / "random-value.yaml"
    content = {**yaml.safe_load(GOOD), key: value}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        assert isinstance(load_recipe(path), Recipe)
    except RecipeError as exc:
        assert str(path) in str(exc)


def test_what_replaces_convolutions_has_no_place_and_no_identity_start() -> None:
    """It can be named in a recipe; where it goes is where convolutions are."""
    assert AttentionSpec(kind="dcn").replaces_convolutions
    assert not AttentionSpec(kind="se").replaces_convolutions
    for wrong in ({"where": "output"}, {"identity_start": True}):
        with pytest.raises(ValueError, match="takes the place of convolutions"):
            AttentionSpec.model_validate({"kind": "dcn", **wrong})
