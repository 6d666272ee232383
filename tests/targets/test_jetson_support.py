"""The table of what is possible on which Jetson, against NVIDIA's pages."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from edgeattn.targets import jetson_support as table
from edgeattn.targets.jetson_support import find_jetson_module, jetpack_of_l4t, jetson_support, parse_version


@pytest.mark.parametrize(
    ("tensorrt", "jetpack", "module", "gpu", "dla_cores"),
    [
        ("8.6.2", "6.0", "agx-orin", False, 0),
        ("10.3.0.30", "6.2", "agx-orin", True, 2),
        ("10.3.0", "6.2", "orin-nano", True, 0),
        ("10.7.0", "6.1", "orin-nx", True, 2),
        ("10.13.3", "6.2", "agx-orin", True, 0),
        ("10.13.3", "7.0", "thor", True, 0),
        ("10.13.3", "7.0", "agx-orin", False, 0),
        ("10.16.1", "7.2", "agx-orin", True, 0),
        ("11.0.0", "6.2", "agx-orin", False, 0),
        ("11.3.0", "7.2", "thor", False, 0),
        ("11.4.0", "7.2.2", "agx-orin", False, 0),
        ("11.4.1", "7.2.1", "agx-orin", False, 0),
        ("11.4.1", "7.2.2", "agx-orin", True, 2),
        ("11.4.1", "7.2.2", "thor", True, 0),
        ("11.4.1", "7.2.2", "orin-nano", False, 0),
        ("11.4.1", "6.2", "agx-orin", False, 0),
    ],
)
def test_the_table_says_what_nvidias_pages_say(
    tensorrt: str, jetpack: str, module: str, gpu: bool, dla_cores: int
) -> None:
    support = jetson_support(tensorrt, jetpack, module)
    assert (support.gpu, support.dla_cores) == (gpu, dla_cores), support.why
    assert support.dla is (dla_cores > 0)
    assert support.why


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", "agx-orin"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "orin-nano"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "thor"),
        ("NVIDIA Orin NX Developer Kit", "orin-nx"),
    ],
)
def test_modules_are_known_by_their_device_trees_model(model: str, name: str) -> None:
    found = find_jetson_module(model)
    assert found is not None
    assert found.name == name


def test_other_machines_are_no_jetson() -> None:
    assert find_jetson_module("Raspberry Pi 5 Model B Rev 1.0") is None


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [((36, 4, 3), "6.2"), ((36, 3, 0), "6.0"), ((35, 4, 1), "5"), ((38, 2), "7.0"), ((41, 0), None)],
)
def test_l4t_releases_name_their_jetpack(l4t: tuple[int, ...], jetpack: str | None) -> None:
    assert jetpack_of_l4t(l4t) == jetpack


def test_what_is_no_version_or_module_is_refused() -> None:
    with pytest.raises(ValueError, match="not a version"):
        parse_version("newest")
    with pytest.raises(ValueError, match="Unknown Jetson module 'tx1'"):
        jetson_support("10.3", "6.2", "tx1")


def test_kits_can_carry_the_file() -> None:
    """It imports the standard library only."""
    tree = ast.parse(Path(table.__file__).read_text(encoding="utf-8"))
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert roots <= set(sys.stdlib_module_names)
