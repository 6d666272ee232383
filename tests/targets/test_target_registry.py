"""Finding targets by name: this package's, plugins', broken plugins', and reserved names."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from edgeattn.errors import RecipeError, TargetUnavailable
from edgeattn.targets import (
    ENTRY_POINT_GROUP,
    Availability,
    TimingPlan,
    get_target,
    list_targets,
    reload_plugins,
    target_names,
    targets,
)


class PluginTarget:
    name = "toaster"
    profile = "u8"

    def probe(self) -> Availability:
        return Availability(True, True, version="1")


class FaultyTarget(PluginTarget):
    name = "faulty"

    def probe(self) -> Availability:
        raise RuntimeError("promises broken")


class StandInEntryPoint:
    dist = None

    def __init__(self, name: str, loaded: Any) -> None:
        self.name = name
        self.value = f"package:{name}"
        self._loaded = loaded

    def load(self) -> Any:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StandInEntryPoint]]:
    entries: list[StandInEntryPoint] = []
    installed = importlib.metadata.entry_points

    def entry_points(*, group: str) -> Any:
        # Others ask as well: pydantic for its own plugins, when the first model is made.
        return entries if group == ENTRY_POINT_GROUP else installed(group=group)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    reload_plugins()
    yield entries
    monkeypatch.undo()
    reload_plugins()


def test_this_packages_targets() -> None:
    assert targets.names() == (
        "reference",
        "ort-cpu",
        "openvino-cpu",
        "tensorrt-rtx",
        "tensorrt",
        "jetson-ssh",
        "arm64",
    )
    for status in list_targets():
        json.dumps(status.to_json(), allow_nan=False)


def test_a_plugin_is_found(plugins: list[StandInEntryPoint]) -> None:
    plugins.append(StandInEntryPoint("toaster", PluginTarget))
    assert isinstance(get_target("toaster"), PluginTarget)
    assert target_names()[-1] == "toaster"
    assert list_targets()[-1].availability.can_run


def test_a_broken_plugin_warns_once_and_is_listed(plugins: list[StandInEntryPoint]) -> None:
    plugins += [
        StandInEntryPoint("rusty", ImportError("no module named rust")),
        StandInEntryPoint("toaster", PluginTarget),
    ]
    with pytest.warns(UserWarning, match=r"'rusty' is skipped.*no module named rust"):
        listed = {status.name: status for status in list_targets()}
    assert "no module named rust" in listed["rusty"].availability.reason
    assert not listed["rusty"].availability.can_build
    assert listed["toaster"].availability.can_build
    with pytest.raises(TargetUnavailable, match="rust"):
        get_target("rusty")


@pytest.mark.parametrize("name", ["ort-cpu", "reference", "ort-web"])
def test_a_plugin_cannot_take_a_name(name: str, plugins: list[StandInEntryPoint]) -> None:
    plugins.append(StandInEntryPoint(name, PluginTarget))
    with pytest.warns(UserWarning, match="is taken"):
        assert name not in target_names() or not isinstance(get_target(name), PluginTarget)


def test_a_plugin_that_breaks_when_asked_is_listed(plugins: list[StandInEntryPoint]) -> None:
    plugins.append(StandInEntryPoint("faulty", FaultyTarget))
    assert "promises broken" in list_targets()[-1].availability.reason


def test_unknown_and_reserved_names() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'openvino-cpu'"):
        get_target("openvino")
    with pytest.raises(TargetUnavailable, match="reserved"):
        get_target("ort-web")


@pytest.mark.parametrize("change", [{"min_runs": 0}, {"warmup_runs": -1}, {"threads": 0}, {"min_seconds": 0}])
def test_a_timing_plan_is_checked(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        TimingPlan(**change)
    assert TimingPlan.quick(threads=2) == TimingPlan(8, 64, 10.0, 2)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    script = """
import importlib, pkgutil, sys
import edgeattn.measure, edgeattn.targets
for package in (edgeattn.measure, edgeattn.targets):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
edgeattn.targets.get_target("ort-cpu"), edgeattn.targets.get_target("tensorrt")
heavy = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
