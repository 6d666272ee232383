"""Any bytes become 8-bit RGB of known meaning, or a DataError that names the file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeattn.data.images import check_image, load_image
from edgeattn.errors import DataError


def gradient(height: int = 12, width: int = 20) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 20, columns * 12, rows + columns], axis=-1).astype(np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    pixels = load_image(save(tmp_path / "a.png", gradient()))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, gradient())


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_every_8_bit_mode_becomes_what_pillow_shows(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", gradient(), mode)
    np.testing.assert_array_equal(load_image(path), np.asarray(Image.open(path).convert("RGB")))


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    pixels = load_image(save(tmp_path / "a.jpg", flat, "CMYK", quality=95))
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - flat).max() <= 6


def test_16_bit_grey_keeps_the_high_byte(tmp_path: Path) -> None:
    """Clipping, as some Pillow releases convert, would make nearly everything white."""
    grey = (np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).astype(np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(grey).save(path)
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    np.testing.assert_array_equal(load_image(path), expected)


def test_16_bit_rgb_keeps_the_high_byte(tmp_path: Path) -> None:
    """Written by hand: Pillow cannot write 16-bit RGB."""
    row = b"\0" + struct.pack(">3H", 0x1234, 0xABCD, 0xFFFF) * 8
    path = tmp_path / "a.png"
    path.write_bytes(png(8, 8, row * 8, depth=16, colour=2))
    assert load_image(path)[3, 3].tolist() == [0x12, 0xAB, 0xFF]


def png(width: int, height: int, rows: bytes, *, depth: int, colour: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.dstack([gradient(), np.full((12, 20), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    rgba[4:6, :, 3] = 128
    pixels = load_image(save(tmp_path / "a.png", rgba))
    assert (pixels[:4] == 255).all()
    np.testing.assert_array_equal(pixels[6:], gradient()[6:])
    blended = gradient()[4:6] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(pixels[4:6] - blended).max() <= 1


def test_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (0, 0, 16, 8))
    path = tmp_path / "a.png"
    image.save(path, transparency=0)
    pixels = load_image(path)
    assert pixels[0, 0].tolist() == [40, 50, 60]
    assert pixels[15, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Storing the picture turned, with the tag that says so, changes nothing that is read."""
    upright = gradient()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(load_image(path), upright)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", gradient(), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert load_image(path).shape == (12, 20, 3)


def test_large_jpeg_is_decoded_at_full_size(tmp_path: Path) -> None:
    Image.new("RGB", (3024, 2016), (9, 99, 199)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").shape == (2016, 3024, 3)


def test_fifty_megapixels_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (7100, 7100)).save(path)
    with pytest.raises(DataError, match=r"a\.png is too large: 7100 x 7100 = 50\.4 megapixels.*limit is 40"):
        load_image(path)
    with pytest.raises(DataError, match="too large"):
        check_image(path)


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    """A header may promise more than Pillow's own limit; neither its warning nor its error gets out."""
    for side in (12_000, 60_000):
        path = tmp_path / f"{side}.png"
        path.write_bytes(png(side, side, b"\0" * 100, depth=8, colour=2))
        with pytest.raises(DataError, match="too large"):
            load_image(path)


@pytest.mark.parametrize(
    ("size", "ok"), [((1, 1), False), ((7, 100), False), ((100, 7), False), ((8, 8), True)]
)
def test_tiny_images_are_refused(tmp_path: Path, size: tuple[int, int], ok: bool) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", size).save(path)
    if ok:
        assert load_image(path).shape == (8, 8, 3)
    else:
        with pytest.raises(DataError, match=r"a\.png is \d+ x \d+ pixels; each side must be at least 8"):
            load_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.\w+ "):
        load_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_flipped_bytes_raise_nothing_but_data_errors(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(1)
    whole = save(tmp_path / f"a.{suffix}", gradient(32, 32)).read_bytes()
    path = tmp_path / f"b.{suffix}"
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 6):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert load_image(path).shape[2] == 3
        except DataError as exc:
            assert str(path) in str(exc)


def test_other_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("not an image")
    with pytest.raises(DataError, match="not an image that can be read here"):
        load_image(path)


def test_postscript_is_never_interpreted(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="not an image that can be read here"):
        load_image(path)


def test_empty_missing_folder_and_fifo_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="is empty"):
        load_image(tmp_path / "empty.jpg")
    with pytest.raises(DataError, match="cannot be opened: No such file"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(DataError, match="not a regular file"):
        load_image(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.zeros((16, 16), np.float32))
    with pytest.raises(DataError, match=r"mode 'F'.*Convert it to 8-bit RGB"):
        load_image(path)


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("P", (16, 16), index) for index in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], optimize=False)
    with pytest.raises(DataError, match=r"holds \d frames"):
        load_image(tmp_path / "a.gif")


def test_check_image_reads_the_header_only(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", gradient())
    assert check_image(path) == (20, 12)
