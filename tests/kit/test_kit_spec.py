"""model.json says everything a kit needs, and nothing that contradicts itself or leaves its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from edgeattn.data.spec import Preprocess
from edgeattn.kit.deploy_files import demo_folder, deploy_folder
from edgeattn.kit.model_folder import load_model
from edgeattn.kit.spec import KitModel, model_schema


@pytest.fixture
def manifest() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((demo_folder() / "model.json").read_text())
    return value


def test_schema_file_is_current() -> None:
    """deploy/model.schema.json is what the models say: `make schema` writes it."""
    written = json.loads((deploy_folder() / "model.schema.json").read_text())
    assert written == model_schema()


@pytest.mark.parametrize("name", ["model.json", "model.s8.json"])
def test_demo_follows_the_schema(name: str) -> None:
    """Programs that validate by the JSON schema accept the demonstration, reference included."""
    schema = model_schema()
    value = json.loads((demo_folder() / name).read_text())
    jsonschema.validate(value, schema)
    reference = json.loads((demo_folder() / value["reference"]["file"]).read_text())
    jsonschema.validate(reference, {**schema["$defs"]["Reference"], "$defs": schema["$defs"]})


def test_preprocessing_is_trainings_own(manifest: dict[str, Any]) -> None:
    """The kit carries the recipe's preprocessing, key by key."""
    assert Preprocess.model_validate(manifest["preprocess"]) == KitModel.model_validate(manifest).preprocess
    assert set(manifest["preprocess"]) == set(Preprocess.model_fields)


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "a/../../b", ".hidden", "a\\b", "C:x", "a//b", "", "a/.b", "a\n"]
)
def test_path_out_of_the_folder_is_refused(manifest: dict[str, Any], name: str) -> None:
    """No file name can lead anywhere else, on any system."""
    manifest["model"]["file"] = name
    with pytest.raises(ValidationError, match="file"):
        KitModel.model_validate(manifest)
    if "\n" not in name:  # Python's own `$` also matches before a last line break, the schema's does not
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(manifest, model_schema())


def test_contradictions_are_refused(manifest: dict[str, Any]) -> None:
    """Sizes, classes and file names fit together."""
    with pytest.raises(ValidationError, match="classes"):
        KitModel.model_validate({**manifest, "classes": manifest["classes"][:-1]})
    with pytest.raises(ValidationError, match="pixels"):
        KitModel.model_validate({**manifest, "preprocess": {**manifest["preprocess"], "size": 96}})
    twice = {**manifest["files"], manifest["model"]["file"]: manifest["files"]["LICENSE"]}
    with pytest.raises(ValidationError, match="twice"):
        KitModel.model_validate({**manifest, "files": twice})


def test_demo_is_small_enough() -> None:
    """The INT8 model of the demonstration has at most 3 MB."""
    model = load_model(demo_folder())
    assert model.model.size_bytes == (demo_folder() / model.model.file).stat().st_size <= 3_000_000


def test_demo_carries_its_licence(tmp_path: Path) -> None:
    """Wherever the photographs go, their notice goes too."""
    assert {"LICENSE", "NOTICE.md"} <= set(load_model(demo_folder()).files)
