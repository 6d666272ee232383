"""Load the data set that a `DataSpec` describes."""

from __future__ import annotations

import csv
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn import extras
from edgeattn.artifact import follow_links
from edgeattn.data.image_set import DataSplits, FileSource, ImageSet
from edgeattn.data.images import is_image_name
from edgeattn.data.spec import DataSpec
from edgeattn.data.splits import group_near_duplicates, split_indices
from edgeattn.errors import DataError

__all__ = ["expand_path", "folder_images", "list_images", "load_dataset"]

Progress = Callable[[int, int], None]

_VALIDATION_FOLDERS = ("val", "validation", "test")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
# Class names are one list entry per index, so an absurd index must not become an absurd list.
_LARGEST_CLASS_INDEX = 99_999
_NAMED_BAD_ROWS = 5


def load_dataset(spec: DataSpec, base_dir: Path, progress: Progress | None = None) -> DataSplits:
    """List a data set's images and divide them; no image is decoded unless duplicates are grouped.

    * ``digits``: scikit-learn's 1,797 handwritten digits, 8 x 8 grids of 0..16 scaled to 0..255.
    * ``image_folder``: ``ROOT/<class>/<image>``, divided by `validation_share`; or ``ROOT/train``
      with ``ROOT/val``, ``validation`` or ``test`` (the first that exists), used as they are.
      Classes are numbered in the alphabetical order of their folders.
    * ``labelled_files``: ``ROOT/labels.csv`` with the columns ``file`` and ``class_index``. Class
      names are the lines of ``ROOT/classes.txt`` where there is one, otherwise the numbers.

    Args:
        spec: What to load.
        base_dir: Folder that a relative `root` starts from: the recipe's or the manifest's.
        progress: Called with (done, total) while duplicates are searched.

    Raises:
        DataError: If the folder, its classes or its labels cannot be used.
        MissingExtraError: If ``digits`` is asked for and scikit-learn is not installed.
    """
    if spec.kind == "digits":
        return _divide(_load_digits(), tuple(str(digit) for digit in range(10)), spec, progress)
    if spec.root is None:
        raise DataError(f"data.kind {spec.kind!r} needs data.root. Set it to the folder of the images.")
    root = _existing_folder(expand_path(spec.root, base_dir))
    if spec.kind == "labelled_files":
        images, class_names = _load_labelled_files(root)
        return _divide(images, class_names, spec, progress)
    held_out = next((root / name for name in _VALIDATION_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and held_out is not None:
        return _load_divided_folders(root, root / "train", held_out, spec)
    images, class_names = _load_class_folders(root, root)
    return _divide(images, class_names, spec, progress)


def expand_path(path: Path, base_dir: Path) -> Path:
    """Expand ``~`` and environment variables; a relative result starts from `base_dir`.

    Raises:
        DataError: If a variable is not set.
    """
    text = str(path)
    for match in _VARIABLE.finditer(text):
        name = match.group(1) or match.group(2)
        if not os.environ.get(name):
            raise DataError(
                f"Path {text!r} uses the environment variable {name}, which is not set. "
                f"Set it to the folder of your data first: export {name}=/path/to/data"
            )
    expanded = _VARIABLE.sub(lambda match: os.environ[match.group(1) or match.group(2)], text)
    try:
        return base_dir / Path(expanded).expanduser()
    except RuntimeError as exc:
        raise DataError(f"Path {text!r} cannot be expanded: {exc}. Write the full path.") from exc


def folder_images(folder: Path) -> ImageSet:
    """Return the images of a folder and of the folders right in it, by name, without labels (0).

    Raises:
        DataError: If there is no such folder, or one leads out of it.
    """
    folder = expand_path(folder, Path())
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give one of images.")
    paths = list_images(folder, folder)
    for inner in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()):
        paths += list_images(inner, folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    return ImageSet(FileSource(tuple(paths)), names, [0] * len(paths))


def list_images(folder: Path, root: Path) -> list[Path]:
    """Return the image files directly in `folder`, sorted by name.

    Raises:
        DataError: If the folder cannot be read, or a link leads out of `root`.
    """
    return [entry for entry in _entries(folder, root) if is_image_name(entry.name) and not entry.is_dir()]


def _entries(folder: Path, root: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_symlink()) for entry in scan)
    except OSError as exc:
        raise DataError(f"Folder {folder} cannot be read: {exc.strerror}. Check its permissions.") from exc
    for name, is_link in entries:
        if name.startswith("."):
            continue
        if is_link:
            _check_inside(folder / name, root)
        yield folder / name


def _check_inside(path: Path, root: Path) -> None:
    try:
        inside = follow_links(path, strict=True).is_relative_to(follow_links(root))
    except (OSError, ValueError) as exc:  # a loop of links, a NUL in the name
        raise DataError(f"{path} cannot be followed: {exc}. Remove it.") from exc
    if not inside:
        raise DataError(
            f"{path} leads out of the data folder {root}. Images must lie inside it; copy the file in, "
            "or set root to a folder that holds both."
        )


def _existing_folder(root: Path) -> Path:
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"Data folder {root} {reason}. Set data.root to the folder of the images.")
    return root


def _divide(
    images: ImageSet, class_names: tuple[str, ...], spec: DataSpec, progress: Progress | None
) -> DataSplits:
    groups = group_near_duplicates(images, progress) if spec.group_near_duplicates else None
    train, validation = split_indices(images.labels, spec.validation_share, spec.split_seed, groups)
    return DataSplits(images.subset(train), images.subset(validation), class_names, spec)


@functools.cache  # a run wants them twice, to train and to calibrate; parsing takes longer than splitting
def _load_digits() -> ImageSet:
    sklearn_datasets: Any = extras.require("sklearn.datasets", purpose="data.kind 'digits'")
    bunch = sklearn_datasets.load_digits()
    grey = np.rint(np.asarray(bunch.images, dtype=np.float64) * (255 / 16)).astype(np.uint8)
    rgb: NDArray[np.uint8] = np.repeat(grey[..., None], 3, axis=-1)  # (1797, 8, 8, 3)
    return ImageSet.from_array(rgb, np.asarray(bunch.target, dtype=np.int64))


def _load_divided_folders(root: Path, train: Path, held_out: Path, spec: DataSpec) -> DataSplits:
    for folder in (train, held_out):
        _check_inside(folder, root)
    train_images, class_names = _load_class_folders(train, root)
    validation_images, validation_names = _load_class_folders(held_out, root)
    if class_names != validation_names:
        different = sorted(set(class_names) ^ set(validation_names))
        raise DataError(
            f"{train} and {held_out} must hold the same classes; only one of them has "
            f"{', '.join(map(repr, different[:_NAMED_BAD_ROWS]))}. Rename or add the folders."
        )
    return DataSplits(train_images, validation_images, class_names, spec)


def _load_class_folders(folder: Path, root: Path) -> tuple[ImageSet, tuple[str, ...]]:
    classes = [entry for entry in _entries(folder, root) if entry.is_dir()]
    if not classes:
        raise DataError(
            f"{folder} holds no class folders. Expected {folder.name}/<class>/<image>.jpg, or for "
            "images in one folder a labels.csv and kind: labelled_files."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate(classes):
        found = list_images(class_folder, root)
        if not found:
            raise DataError(
                f"Class folder {class_folder} holds no images (.jpg, .png, ...). "
                "Add some directly in it, or remove the folder."
            )
        paths += found
        labels += [label] * len(found)
    if len(classes) < 2:
        raise DataError(
            f"{folder} holds a single class, {classes[0].name!r}; at least two are needed. "
            "Add class folders, or set root to the folder above the classes."
        )
    ids = [path.relative_to(root).as_posix() for path in paths]
    return ImageSet(FileSource(tuple(paths)), ids, labels), tuple(entry.name for entry in classes)


def _load_labelled_files(root: Path) -> tuple[ImageSet, tuple[str, ...]]:
    rows = _read_labels(root / "labels.csv", root)
    ids = list(rows)
    labels = np.array([rows[name] for name in ids], dtype=np.int64)
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"{root / 'labels.csv'} names {len(ids)} images of {len(np.unique(labels))} class; at least "
            "two classes are needed. Add rows of other classes."
        )
    missing = [name for name in ids if not (root / name).is_file()]
    if missing:
        shown = ", ".join(map(repr, missing[:_NAMED_BAD_ROWS]))
        raise DataError(
            f"{root / 'labels.csv'} names {len(missing)} files that are not in {root}: {shown}. "
            "Add the files or remove the rows."
        )
    for name in ids:
        _check_inside(root / name, root)
    images = ImageSet(FileSource(tuple(root / name for name in ids)), ids, labels)
    return images, _class_names(root / "classes.txt", int(labels.max()) + 1)


def _read_labels(path: Path, root: Path) -> dict[str, int]:
    """Return class index by file name, in the order of the rows."""
    rows: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if not {"file", "class_index"} <= set(reader.fieldnames or ()):
                raise DataError(
                    f"{path} must start with the header 'file,class_index', got "
                    f"{','.join(reader.fieldnames or ())[:80]!r}. Add it."
                )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                name = _inner_name(row["file"], where, root)
                if name in rows:
                    raise DataError(f"{where}: {name!r} is named twice. Keep one row.")
                rows[name] = _class_index(row["class_index"], where)
    except OSError as exc:
        raise DataError(
            f"{path} cannot be read: {exc.strerror}. kind: labelled_files needs it, with the columns "
            "file,class_index."
        ) from exc
    except (csv.Error, UnicodeDecodeError) as exc:
        raise DataError(f"{path} is not a UTF-8 CSV file: {exc}. Write it again.") from exc
    if not rows:
        raise DataError(f"{path} names no images. Add rows of the form: picture.jpg,3")
    return rows


def _inner_name(name: str | None, where: str, root: Path) -> str:
    if not name:
        raise DataError(f"{where}: the column 'file' is empty. Name an image, or remove the row.")
    # Read as a Windows path, both separators and drive letters are seen on every system.
    path = PureWindowsPath(name)
    if path.drive or path.root or ".." in path.parts or "\0" in name:
        raise DataError(
            f"{where}: {name!r} leads out of the data folder. Paths in labels.csv are relative to {root}, "
            "without '..'."
        )
    return name


def _class_index(text: str | None, where: str) -> int:
    value = (text or "").strip()
    if not (value.isascii() and value.isdigit() and len(value) <= 6 and int(value) <= _LARGEST_CLASS_INDEX):
        raise DataError(
            f"{where}: class_index must be a whole number from 0 to {_LARGEST_CLASS_INDEX}, got {value[:40]!r}."
        )
    return int(value)


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(str(index) for index in range(count))
    try:
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path} cannot be read as UTF-8 text: {exc}. Write one class name a line.") from exc
    if len(names) < count:
        raise DataError(
            f"{path} names {len(names)} classes, but labels.csv uses class_index {count - 1}. Add the lines."
        )
    return names
