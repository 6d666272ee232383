"""The C++ kit, built once, and images of every kind that it reads."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_kit_tools import Classify, build, need
from PIL import Image

from edgeattn.kit.write import write_kit


@pytest.fixture(scope="session")
def cpp_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's kit, built; not to be changed."""
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'edgeattn[openvino]'")
    need("cmake", "c++")
    kit = tmp_path_factory.mktemp("cpp-kit") / "kit"
    write_kit("cpp", None, kit)
    build(kit, "build")
    return kit


@pytest.fixture(scope="session")
def with_codecs(cpp_kit: Path) -> None:
    """Skips where the program was built without libjpeg or libpng."""
    cache = (cpp_kit / "build" / "CMakeCache.txt").read_text()
    if (
        "JPEG_LIBRARY" not in cache
        or "JPEG_LIBRARY-NOTFOUND" in cache
        or "PNG_PNG_INCLUDE_DIR-NOTFOUND" in cache
    ):
        pytest.skip("needs libjpeg-turbo and libpng: apt-get install libjpeg-dev libpng-dev")


@pytest.fixture(scope="session")
def classify(cpp_kit: Path) -> Classify:
    """Runs edgeattn-classify with a cache that the tests share, so that starts are quick."""

    def run(
        *arguments: str | Path, model: Path | None = None, cache: Path | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        command = [
            cpp_kit / "build" / "edgeattn-classify",
            *("--model", model or cpp_kit / "model"),
            *("--cache", cache or cpp_kit / "build" / "cache"),
            *arguments,
        ]
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            **more,
        )
        # Killed by a signal is never an answer.
        assert done.returncode >= 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of every kind that is read: sizes, colours, transparency, orientation, subsampling."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(7)

    def picture(width: int, height: int, channels: int = 3) -> Image.Image:
        # Smooth and noisy parts, and every grey value.
        y, x = np.mgrid[0:height, 0:width]
        base = np.stack([(x * (c + 2) + y * (3 - c)) % 256 for c in range(channels)], axis=-1)
        noise = random.integers(0, 256, base.shape)
        pixels = np.where((x // 16 + y // 16)[..., None] % 2 == 0, base, noise).astype(np.uint8)
        return Image.fromarray(pixels.squeeze())

    made: list[Path] = []

    def save(image: Image.Image, name: str, **options: Any) -> None:
        image.save(folder / name, **options)
        made.append(folder / name)

    sizes = [
        (8, 8),
        (9, 200),
        (224, 224),
        (225, 223),
        (256, 300),
        (301, 224),
        (640, 480),
        (37, 1000),
        (300, 1000),
        (1031, 67),
    ]
    for width, height in sizes:
        save(picture(width, height), f"{width}x{height}.png")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(picture(90, 61), f"exif{orientation}.jpg", exif=exif, quality=90)
        save(picture(40, 31), f"exif{orientation}.png", exif=exif)
    for subsampling in (0, 1, 2):
        save(picture(121, 93), f"sub{subsampling}.jpg", subsampling=subsampling, quality=80)
    save(picture(121, 93), "progressive.jpg", progressive=True)
    save(picture(121, 93, 1), "grey.jpg")
    save(picture(121, 93, 1), "grey.png")
    save(picture(121, 93, 2), "grey_alpha.png")
    save(picture(300, 256, 4), "alpha.png")
    save(picture(121, 93).quantize(200), "palette.png")
    save(picture(121, 93).quantize(16), "palette4.png")
    save(picture(121, 93, 1).point(lambda v: 255 * (v > 99)).convert("1"), "bits.png")
    save(picture(121, 93).quantize(50), "palette_alpha.png", transparency=bytes(range(0, 250, 5)))
    save(picture(121, 93), "colour_key.png", transparency=(255, 0, 0))
    save(picture(60, 41), "plain.ppm")
    return made
