"""The page's own resize is Pillow's, bit for bit, in node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.data.images import load_image
from edgeattn.data.preprocess import normalize_pixels, resize_and_crop
from edgeattn.data.spec import Preprocess

Case = tuple[NDArray[np.uint8], Preprocess]


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("needs node, to run the page's JavaScript")
    return found


def run_page_code(node: str, repository: Path, folder: Path, cases: list[Case]) -> list[tuple[Any, Any]]:
    """Return (pixels, input) that deploy/web/preprocess.js makes of every case."""
    described = []
    for number, (rgb, preprocess) in enumerate(cases):
        (folder / f"{number}.rgb").write_bytes(rgb.tobytes())
        described.append(
            {
                "name": str(number),
                "width": rgb.shape[1],
                "height": rgb.shape[0],
                "preprocess": preprocess.model_dump(mode="json"),
            }
        )
    (folder / "cases.json").write_text(json.dumps(described))
    # node takes a file for a module by its suffix, or by a package.json that says so.
    module = folder / "preprocess.mjs"
    module.write_bytes((repository / "deploy/web/preprocess.js").read_bytes())
    script = repository / "tests/kit/resize_cases.mjs"
    subprocess.run([node, str(script), str(module), str(folder)], check=True, timeout=120)
    results = []
    for number, (_, preprocess) in enumerate(cases):
        size = preprocess.size
        pixels = np.fromfile(folder / f"{number}.pixels", np.uint8).reshape(size, size, 3)
        values = np.fromfile(folder / f"{number}.input", np.float32).reshape(3, size, size)
        results.append((pixels, values))
    return results


def check(node: str, repository: Path, folder: Path, cases: list[Case]) -> None:
    results = run_page_code(node, repository, folder, cases)
    for (rgb, preprocess), (pixels, values) in zip(cases, results, strict=True):
        wanted = resize_and_crop(rgb, preprocess)
        what = f"{rgb.shape} with {preprocess}"
        assert np.array_equal(pixels, wanted), f"{np.count_nonzero(pixels != wanted)} values differ: {what}"
        assert np.array_equal(values, normalize_pixels(wanted, preprocess)), what


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    # Values at both ends make the filters overshoot, so that clipping is seen to be right.
    extremes = random.choice(np.array([0, 255], np.uint8), (height, width, 3))
    plain = random.integers(0, 256, (height, width, 3), np.uint8)
    return np.where(random.random((height, width, 1)) < 0.5, extremes, plain).astype(np.uint8)


def test_random_sizes_are_resized_as_pillow_does(node: str, repository: Path, tmp_path: Path) -> None:
    """Up and down, both filters and nearest, squashed or cropped, odd offsets, no pass, one pass."""
    random = np.random.default_rng(6)
    cases: list[Case] = []
    for number in range(120):
        size = int(random.integers(8, 72))
        resize = [None, size, size + int(random.integers(1, 40))][number % 3]
        interpolation = ("bilinear", "bicubic", "nearest")[int(random.integers(3))]
        side = [int(v) for v in random.integers(8, 160, 2)]
        if number % 10 == 0:
            side[number % 20 // 10] = resize or size  # one side keeps its length
        mean, std = random.uniform(0, 1, 3).tolist(), random.uniform(0.1, 1, 3).tolist()
        preprocess = Preprocess.model_validate(
            {"size": size, "resize": resize, "interpolation": interpolation, "mean": mean, "std": std}
        )
        cases.append((noise(side[0], side[1], number), preprocess))
    exact = Preprocess(size=32)
    cases += [(noise(32, 32, 1), exact), (noise(8, 400, 2), exact), (noise(3, 5, 3), exact)]
    check(node, repository, tmp_path, cases)


def test_photographs_are_resized_as_pillow_does(
    node: str, repository: Path, data_folder: Path, tmp_path: Path
) -> None:
    """Real photographs at the sizes that recipes use."""
    paths = sorted((data_folder / "imagenet-samples").glob("*.jpg"))[::40]
    paths += sorted((data_folder / "sign-digits").glob("*/*.JPG"))[::200]
    specs = (Preprocess(size=224, resize=256), Preprocess(size=96, resize=96, interpolation="bicubic"))
    check(node, repository, tmp_path, [(load_image(path), spec) for path in paths for spec in specs])
