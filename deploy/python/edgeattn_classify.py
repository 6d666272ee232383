#!/usr/bin/env python3
"""Classify images with an INT8 model: a class, a command and an HTTP service in one file.

Needs NumPy, Pillow, and ONNX Runtime or OpenVINO; see README.md beside it.

    python edgeattn_classify.py photo.jpg
    python edgeattn_classify.py --self-test
    python edgeattn_classify.py --serve
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

__all__ = ["Classifier", "ImageError", "KitError", "Label", "SelfTest", "Service", "main"]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

MAX_PIXELS = 40_000_000
MIN_SIDE = 8
_LARGEST_FILE = 1 << 31
_LARGEST_MANIFEST = 8 << 20
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
_AS_RGB = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


class KitError(Exception):
    """The kit's files, an option, or this machine do not allow it; the message says what would help."""


class ImageError(ValueError):
    """An image cannot be used."""


class ImageTooLarge(ImageError):
    """An image has more pixels than are allowed."""


class Label(NamedTuple):
    """One class of an answer, with its softmax probability."""

    name: str
    class_index: int
    confidence: float


class SelfTest(NamedTuple):
    """What comparing with the reference outputs found.

    Attributes:
        images: Images compared.
        identical: Images whose logits equal the reference bit for bit.
        largest_difference: Of a logit, over all images.
        failures: What differs, by image; empty if the kit works.
    """

    images: int
    identical: int
    largest_difference: float
    failures: tuple[str, ...]


# --------------------------------------------------------------------------------- model folder


class Model:
    """A ``model/`` folder whose files all have the hashes that ``model.json`` states.

    Args:
        folder: Holds ``model.json``.

    Raises:
        KitError: If a file is missing, was changed, or lies outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        value = self._json(folder / "model.json")
        try:
            if value["schema_version"] != 1:
                raise KitError(f"model.json has schema_version {value['schema_version']}; this kit reads 1.")
            self.name = str(value["name"])
            self.classes = tuple(str(name) for name in value["classes"])
            self.preprocess = dict(value["preprocess"])
            self.size = int(self.preprocess["size"])
            self.min_confidence = float(value["thresholds"]["min_confidence"])
            self.input_name = str(value["model"]["input"]["name"])
            self.output_name = str(value["model"]["output"]["name"])
            self._main: dict[str, Any] = value["model"]
            self._reference: dict[str, Any] = value["reference"]
            self._variants: dict[str, Any] = value["variants"]
            self._files: dict[str, Any] = value["files"]
            shapes = [tuple(value["model"][key]["shape"]) for key in ("input", "output")]
            Preprocessor(self.preprocess)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise KitError(f"{folder / 'model.json'} is not valid: {exc!r}. Make the kit again.") from exc
        if shapes != [(1, 3, self.size, self.size), (1, len(self.classes))]:
            raise KitError(f"model.json does not fit together: tensors of {shapes}. Make the kit again.")
        listed = [self._main, self._reference, *self._variants.values()]
        for name, entry in [*((item.get("file"), item) for item in listed), *self._files.items()]:
            self._read(name, entry)

    def bytes_for(self, runtime: str) -> bytes:
        """Return the model in the spelling for a runtime, checked again as it is read."""
        entry = self._variants.get(runtime, self._main)
        return self._read(entry["file"], entry)

    def reference(self) -> tuple[str, float, list[dict[str, Any]]]:
        """Return the reference outputs: runtime, tolerance, and one entry for each image."""
        value = json.loads(self._read(self._reference["file"], self._reference))
        return str(value["runtime"]), float(value["tolerance"]), list(value["images"])

    def image_bytes(self, name: str) -> bytes:
        """Return a reference image's file."""
        if name not in self._files:
            raise KitError(f"model.json does not list {name!r}. Make the kit again.")
        return self._read(name, self._files[name])

    def _read(self, name: Any, entry: Any) -> bytes:
        if not isinstance(name, str) or not _PATH.fullmatch(name) or len(name) > 200:
            raise KitError(f"model.json names {name!r}, which is not a file inside its folder.")
        path = self.folder / name
        # pathlib's resolve raises RuntimeError on a loop of links before Python 3.13.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder)):
            raise KitError(f"{path} leads out of {self.folder}. Replace the link by the file itself.")
        try:
            expected_size, expected = int(entry["size_bytes"]), str(entry["sha256"])
            if not path.is_file() or path.stat().st_size != expected_size or expected_size > _LARGEST_FILE:
                raise KitError(f"{path} is missing or has another size than model.json says. Make it again.")
            data = path.read_bytes()
        except (KeyError, TypeError, ValueError, OSError) as exc:
            raise KitError(f"{path} cannot be checked: {exc!r}. Make the kit again.") from exc
        if hashlib.sha256(data).hexdigest() != expected:
            raise KitError(
                f"{path} was changed: its SHA-256 is not what model.json says. Make the kit again."
            )
        return data

    @staticmethod
    def _json(path: Path) -> dict[str, Any]:
        try:
            if path.stat().st_size > _LARGEST_MANIFEST:
                raise KitError(f"{path} is too large to be a kit's model.json.")
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise KitError(f"Cannot read {path}: {exc.strerror}. Name the kit's model folder.") from exc
        except ValueError as exc:
            raise KitError(f"{path} is not JSON: {exc}. Make the kit again.") from exc
        if not isinstance(value, dict):
            raise KitError(f"{path} is not a JSON object. Make the kit again.")
        return value


# -------------------------------------------------------------------------------- preprocessing


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image into upright 8-bit RGB, as training does.

    EXIF orientation is applied, colour profiles are ignored, transparency is composited on white, 16 bits
    keep their high byte. The size is checked before anything is decoded.

    Raises:
        ImageTooLarge: If it has more than `max_pixels`.
        ImageError: If it is no image of one frame in a known format, or is smaller than 8 pixels a side.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_header(image, max_pixels)
            image.load()
            orientation = image.getexif().get(_EXIF_ORIENTATION)
            rgb = _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        raise ImageError(f"this is none of {', '.join(_FORMATS)}") from exc
    except Image.DecompressionBombError as exc:
        raise ImageTooLarge(f"the image is too large: {exc}") from exc
    except Exception as exc:  # decoders raise nearly anything on hostile bytes
        raise ImageError(f"this is no image that can be read: {str(exc) or type(exc).__name__}") from exc
    upright = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return rgb if upright is None else rgb.transpose(upright)


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image has {width} x {height} pixels; at most {max_pixels} are allowed")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"the image has {width} x {height} pixels; each side needs at least {MIN_SIDE}")
    # The further pictures of an MPO file (a camera's JPEG) are previews of the first.
    if int(getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        raise ImageError("the file holds several frames; send a single picture")


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # outlives the file it was opened from
    if mode in _SIXTEEN_BIT or (mode == "I" and image.format in ("PNG", "PPM")):
        high = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if mode in _WITH_ALPHA or (mode in _AS_RGB and "transparency" in image.info):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if mode in _AS_RGB:
        return image.convert("RGB")
    raise ImageError(f"pixels of Pillow mode {mode!r} have no known range; send 8-bit RGB")


class Preprocessor:
    """From an RGB image to the network's input, bit for bit as in training.

    Args:
        spec: ``preprocess`` of ``model.json``.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.size = int(spec["size"])
        self.resize = None if spec["resize"] is None else int(spec["resize"])
        self._filter = _RESAMPLING[spec["interpolation"]]
        self._mean = np.asarray(spec["mean"], dtype=np.float32).reshape(3, 1, 1)
        self._std = np.asarray(spec["std"], dtype=np.float32).reshape(3, 1, 1)

    def pixels(self, image: Image.Image) -> Pixels:
        """Resize with Pillow's antialiased filters and crop around the centre: uint8 (size, size, 3)."""
        width, height = image.size
        new = self._resized(width, height)
        # The larger of what the two steps below make.
        if new[0] * max(height, new[1]) > MAX_PIXELS:
            raise ImageTooLarge(f"the image is too elongated: {width} x {height} would become {new}")
        # Always the horizontal step first: Pillow 13 turns the order around for tall images, older ones do not.
        for step in ((new[0], height), new):
            if step != image.size:
                image = image.resize(step, self._filter)
        # Half-way offsets round to even, as torchvision's CenterCrop does.
        left, top = round((new[0] - self.size) / 2), round((new[1] - self.size) / 2)
        if new != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image, dtype=np.uint8)

    def normalize(self, pixels: Pixels) -> Floats:
        """Scale to [0, 1], subtract the mean, divide by the deviation: float32 (1, 3, size, size)."""
        # In place on whole planes: ten times as fast as the same arithmetic on interleaved pixels.
        result = np.empty((1, 3, self.size, self.size), np.float32)
        np.copyto(result[0], pixels.transpose(2, 0, 1))
        result /= np.float32(255)
        result -= self._mean
        result /= self._std
        return result

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize is None:
            return self.size, self.size
        short = self.resize
        if width <= height:
            return short, max(short, short * height // width)
        return max(short, short * width // height), short


# -------------------------------------------------------------------------------------- engines


Runner = Callable[[Floats], Floats]


def _onnxruntime(model: Model, threads: int) -> tuple[str, Callable[[], Runner]]:
    try:
        import onnxruntime
    except ImportError as exc:
        raise _missing("onnxruntime", "openvino") from exc
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            model.bytes_for("onnxruntime"), options, providers=["CPUExecutionProvider"]
        )
    except Exception as exc:
        raise KitError(f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {exc}") from exc

    def make_runner() -> Runner:
        def run(inputs: Floats) -> Floats:
            logits: Floats = session.run([model.output_name], {model.input_name: inputs})[0][0]
            return logits

        return run

    return f"onnxruntime {onnxruntime.__version__}", make_runner


def _openvino(model: Model, threads: int) -> tuple[str, Callable[[], Runner]]:
    try:
        import openvino
    except ImportError as exc:
        raise _missing("openvino", "onnxruntime") from exc
    properties = {
        # Where the processor has bf16, OpenVINO would use it for what is not INT8, and answers would move.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
    }
    if platform.machine() in ("aarch64", "arm64"):
        # On ARM they would compute many layers in float16, slowly: logits would be others than on x86.
        properties["LP_TRANSFORMS_MODE"] = "NO"
    core = openvino.Core()
    data = model.bytes_for("openvino")

    def make_runner() -> Runner:
        # A compiled model of its own for each worker: one stream each, so that workers do not wait.
        try:
            compiled = core.compile_model(core.read_model(data, b""), "CPU", properties)
        except Exception as exc:
            raise KitError(f"OpenVINO {openvino.__version__} cannot load the model: {exc}") from exc
        request = compiled.create_infer_request()

        def run(inputs: Floats) -> Floats:
            request.infer({model.input_name: inputs}, share_inputs=True, share_outputs=True)
            return np.array(request.get_output_tensor(0).data[0], np.float32)

        return run

    return f"openvino {openvino.__version__.split('-')[0]}", make_runner


def _missing(package: str, other: str) -> KitError:
    error = KitError(f"{package} is not installed: pip install {package}, or use --runtime {other}")
    error.exit_code = 3  # type: ignore[attr-defined]
    return error


_RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino}


# ----------------------------------------------------------------------------------- classifier


class Classifier:
    """A model that is ready to classify. Every file is checked against its hash first.

    `classify` may be called by several threads; with OpenVINO they take turns.

    Args:
        folder: The kit's ``model/`` folder; by default the one beside this file.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        threads: Threads of one inference.
        max_pixels: Images with more are refused.

    Raises:
        KitError: If a file was changed, or the runtime is absent or cannot load the model.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        runtime: str = "onnxruntime",
        threads: int = 1,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if runtime not in _RUNTIMES:
            raise KitError(f"There is no runtime {runtime!r}; choose one of {', '.join(_RUNTIMES)}.")
        if threads < 1:
            raise KitError(f"threads must be at least 1, got {threads}.")
        self.model = Model(Path(folder) if folder is not None else Path(__file__).parent / "model")
        self.preprocessor = Preprocessor(self.model.preprocess)
        self.max_pixels = max_pixels
        self.runtime, self.make_runner = _RUNTIMES[runtime](self.model, threads)
        self._run = self.make_runner()
        self._turn = threading.Lock() if runtime == "openvino" else contextlib.nullcontext()

    def classify(self, image: Path | str | bytes | Image.Image, top: int = 5) -> list[Label]:
        """Return the most likely classes of an image, best first.

        Args:
            image: A path, a file's content, or a Pillow image (mode RGB).
            top: How many classes.

        Raises:
            ImageError: If the image cannot be used.
        """
        return self.labels(self.logits(self.prepare(image)), top)

    def prepare(self, image: Path | str | bytes | Image.Image) -> Floats:
        """Return the network's input for an image, float32 of shape (1, 3, size, size)."""
        return self.preprocessor.normalize(self.pixels(image))

    def pixels(self, image: Path | str | bytes | Image.Image) -> Pixels:
        """Return an image's 8-bit pixels after resizing and cropping, shape (size, size, 3)."""
        if isinstance(image, (str, Path)):
            path = Path(image)
            try:
                if not path.is_file():
                    raise ImageError(f"{path} is not a file")
                image = path.read_bytes()
            except (OSError, ValueError) as exc:
                raise exc if isinstance(exc, ImageError) else ImageError(f"{path}: {exc}") from exc
        if isinstance(image, bytes):
            image = decode_image(image, self.max_pixels)
        if image.mode != "RGB":
            raise ImageError(f"expected a Pillow image of mode RGB, got {image.mode}")
        return self.preprocessor.pixels(image)

    def logits(self, inputs: Floats) -> Floats:
        """Run the network on one prepared input; one logit for each class."""
        with self._turn:
            return self._run(inputs)

    def labels(self, logits: Floats, top: int = 5) -> list[Label]:
        """Turn logits into the best classes with their softmax probabilities."""
        exponentials = np.exp(logits.astype(np.float64) - float(logits.max()))
        confidences = exponentials / exponentials.sum()
        order = np.argsort(-logits, kind="stable")[: max(1, top)]
        return [Label(self.model.classes[i], int(i), float(confidences[i])) for i in order]

    def self_test(self) -> SelfTest:
        """Compare preprocessing and outputs with the reference that came with the model."""
        _, tolerance, entries = self.model.reference()
        failures: list[str] = []
        identical, largest = 0, 0.0
        for entry in entries:
            name = str(entry["file"])
            pixels = self.pixels(self.model.image_bytes(name))
            if hashlib.sha256(pixels.tobytes()).hexdigest() != entry["pixels_sha256"]:
                failures.append(f"{name}: other pixels after resizing (decoder or resizing differs)")
            expected = np.asarray(entry["logits"], dtype=np.float32)
            logits = self.logits(self.preprocessor.normalize(pixels))
            if logits.shape != expected.shape:
                failures.append(f"{name}: {logits.shape[0]} logits instead of {expected.shape[0]}")
                continue
            difference = float(np.abs(logits - expected).max())
            identical += difference == 0
            largest = max(largest, difference)
            if int(logits.argmax()) != entry["top1"]:
                failures.append(f"{name}: class {int(logits.argmax())} instead of {entry['top1']}")
            elif not difference <= tolerance:
                failures.append(f"{name}: a logit differs by {difference:.4g}, more than {tolerance:.4g}")
        return SelfTest(len(entries), identical, largest, tuple(failures))


# ------------------------------------------------------------------------------------- service

_MAX_HEAD = 16 * 1024
_HEAD_SECONDS = 10.0
_IDLE_SECONDS = 30.0
_BODY_SECONDS = 30.0
_ANSWER_SECONDS = 30.0
_HELD_BYTES = 256 << 20  # bodies of all requests together
_RETRY_AFTER = b"Retry-After: 1\r\n"
_RGB = "application/x-rgb8"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_PATHS = {"/classify": "POST", "/batch": "POST", "/health": "GET", "/metrics": "GET"}
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Refused(Exception):
    """A request gets an error for an answer.

    Args:
        status: HTTP status.
        message: What is wrong and what would help.
        close: Whether the connection cannot go on: its body was not read.
        allow: The method that would be right.
    """

    def __init__(self, status: int, message: str, *, close: bool = False, allow: str = "") -> None:
        super().__init__(message)
        self.status, self.close, self.allow = status, close, allow


class _Disconnected(Exception):
    """The client went away, or was idle for too long."""


class Limits(NamedTuple):
    """What a service accepts.

    Attributes:
        body_bytes: Of one request.
        batch_images: In one batch.
        pending_images: Being worked on or waiting; beyond it the answer is 429.
        connections: Open at once; beyond it the answer is 429.
        grace_seconds: To finish requests after a signal to stop.
    """

    body_bytes: int = 16 << 20
    batch_images: int = 32
    pending_images: int = 64
    connections: int = 128
    grace_seconds: float = 10.0


class _Metrics:
    """Counters in Prometheus' text format."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets = [0] * (len(_BUCKETS) + 1)
        self._sum = 0.0
        self.images = 0
        self.engine_seconds = 0.0

    def request(self, path: str, status: int, seconds: float) -> None:
        with self._lock:
            self._requests[path, status] += 1
            self._sum += seconds
            place = next((i for i, bound in enumerate(_BUCKETS) if seconds <= bound), len(_BUCKETS))
            self._buckets[place] += 1

    def engine(self, seconds: float) -> None:
        with self._lock:
            self.images += 1
            self.engine_seconds += seconds

    def text(self, pending: int, connections: int, info: dict[str, str]) -> str:
        with self._lock:
            labels = ",".join(
                '{}="{}"'.format(k, v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " "))
                for k, v in info.items()
            )
            lines = ["# TYPE edgeattn_info gauge", f"edgeattn_info{{{labels}}} 1"]
            lines.append("# TYPE edgeattn_requests_total counter")
            lines += [
                f'edgeattn_requests_total{{path="{path}",code="{code}"}} {count}'
                for (path, code), count in sorted(self._requests.items())
            ]
            lines += ["# TYPE edgeattn_images_total counter", f"edgeattn_images_total {self.images}"]
            lines.append("# TYPE edgeattn_engine_seconds_total counter")
            lines.append(f"edgeattn_engine_seconds_total {self.engine_seconds:.6f}")
            lines += ["# TYPE edgeattn_pending_images gauge", f"edgeattn_pending_images {pending}"]
            lines += ["# TYPE edgeattn_connections gauge", f"edgeattn_connections {connections}"]
            lines.append("# TYPE edgeattn_request_seconds histogram")
            total = 0
            for bound, count in zip((*_BUCKETS, "+Inf"), self._buckets):  # noqa: B905 - lengths are equal
                total += count
                lines.append(f'edgeattn_request_seconds_bucket{{le="{bound}"}} {total}')
            lines.append(f"edgeattn_request_seconds_sum {self._sum:.6f}")
            lines.append(f"edgeattn_request_seconds_count {total}")
        return "\n".join(lines) + "\n"


class _Workers:
    """Threads that run the network on prepared inputs, in the order they come.

    An engine thread takes its next input the moment it is free; everything else (sockets, decoding,
    resizing) happens on the connections' threads meanwhile.
    """

    def __init__(self, classifier: Classifier, count: int, metrics: _Metrics) -> None:
        self._queue: queue.SimpleQueue[tuple[Floats, queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        self._metrics = metrics
        self._threads = [
            threading.Thread(target=self._serve, args=(classifier.make_runner(),), name=f"engine-{i}")
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, inputs: Floats) -> queue.SimpleQueue[Any]:
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._queue.put((inputs, answer))
        return answer

    def stop(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, run: Runner) -> None:
        while (job := self._queue.get()) is not None:
            inputs, answer = job
            started = time.perf_counter()
            result: Any
            try:
                result = run(inputs)
            except Exception as exc:  # the runtime's; the request gets it, and the thread goes on
                result = exc
            # Counted before it is answered: whoever has the answer finds it in the metrics.
            self._metrics.engine(time.perf_counter() - started)
            answer.put(result)


class _Budget:
    """So much of something at a time; who asks for more is told to come again."""

    def __init__(self, limit: int, noun: str) -> None:
        self._lock = threading.Lock()
        self._limit, self._noun = limit, noun
        self.count = 0

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        with self._lock:
            # One that is larger than the whole limit is let through where nothing else is.
            if self.count and self.count + amount > self._limit:
                raise Refused(429, f"{self.count} {self._noun} are being served; try again in a second")
            self.count += amount
        try:
            yield
        finally:
            with self._lock:
                self.count -= amount


class Service:
    """The HTTP service: an engine behind a listening socket.

    Args:
        classifier: Ready to classify.
        host: Address to listen on.
        port: Port; 0 takes a free one, see `address`.
        workers: Inferences at the same time.
        limits: What it accepts.
        log: Called with one line for each request; None is silent.

    Raises:
        KitError: If the address cannot be listened on.
    """

    def __init__(
        self,
        classifier: Classifier,
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        workers: int = 1,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.classifier, self.limits, self.log = classifier, limits, log
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=512)
        except (OSError, OverflowError) as exc:
            raise KitError(f"Cannot listen on {host}:{port}: {exc}. Choose another --port.") from exc
        self._listener.settimeout(0.2)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.metrics = _Metrics()
        self.workers = _Workers(classifier, workers, self.metrics)
        self.pending = _Budget(limits.pending_images, "images")
        self.held = _Budget(_HELD_BYTES, "bytes")
        # Decoding is work for a core: more at once would only hold more memory.
        self._decoding = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))
        self.stopping = threading.Event()
        self._open: dict[_Connection, threading.Thread] = {}
        self._lock = threading.Lock()
        # A thread that has computed must get the interpreter back soon, or the engine waits for it.
        sys.setswitchinterval(0.0005)

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._open)

    def run(self) -> None:
        """Serve until `stop` is called; requests that have begun are answered first."""
        try:
            while not self.stopping.is_set():
                try:
                    client, _ = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError:  # out of file descriptors, or closed by the peer already
                    time.sleep(0.05)
                    continue
                self._welcome(client)
        finally:
            self.stopping.set()
            # Whoever connected while the last ones were accepted has a request coming.
            self._listener.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    self._welcome(self._listener.accept()[0])
            self._listener.close()
            self._finish()

    def stop(self) -> None:
        """Ask `run` to end; may be called from a signal handler or another thread."""
        self.stopping.set()

    def closed(self, connection: _Connection) -> None:
        with self._lock:
            self._open.pop(connection, None)

    def _welcome(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            crowded = len(self._open) >= self.limits.connections
            # Those beyond the limit are told so, by a few threads more; beyond these the kernel's queue holds them.
            full = len(self._open) >= 2 * self.limits.connections
        if full:
            self._wait_for_room()
        connection = _Connection(self, client, crowded=crowded)
        thread = threading.Thread(target=connection.serve, daemon=True)
        with self._lock:
            self._open[connection] = thread
        thread.start()

    def _wait_for_room(self) -> None:
        while self.connections >= 2 * self.limits.connections and not self.stopping.is_set():
            time.sleep(0.01)

    def _finish(self) -> None:
        with self._lock:
            connections = dict(self._open)
        for connection in connections:
            connection.end_idle()
        deadline = time.monotonic() + self.limits.grace_seconds
        for thread in connections.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self.workers.stop()

    # ------------------------------------------------------------------------------ answers

    def answer(self, request: _Request, *, crowded: bool = False) -> tuple[bytes, str]:
        """Return the body and content type of a request's answer.

        Args:
            request: As it was read.
            crowded: There are too many connections already, this one included.

        Raises:
            Refused: If it cannot be answered.
        """
        if crowded:
            raise Refused(429, "too many connections; try again in a second", close=True)
        if request.path == "/health":
            return _json({"status": "ok", "model": self.classifier.model.name, **self._info()})
        if request.path == "/metrics":
            info = {"model": self.classifier.model.name, **self._info()}
            return self.metrics.text(self.pending.count, self.connections, info).encode(), _TEXT
        top = _top(request.query)
        if request.path == "/classify":
            with self.pending.take(1):
                return _json(self._classify(request, top))
        parts = split_multipart(request.body, request.content_type, self.limits.batch_images)
        with self.pending.take(len(parts)):
            waiting = [self._submit(part) for part in parts]
            logits = [item if isinstance(item, ImageError) else _collect(item) for item in waiting]
        return _json(
            {
                "results": [
                    {"error": str(item)}
                    if isinstance(item, ImageError)
                    else describe(self.classifier, item, top)
                    for item in logits
                ]
            }
        )

    def _classify(self, request: _Request, top: int) -> dict[str, Any]:
        try:
            inputs = self._prepare(request.body, request.content_type)
        except ImageTooLarge as exc:
            raise Refused(413, str(exc)) from exc
        except ImageError as exc:
            raise Refused(422, str(exc)) from exc
        return describe(self.classifier, _collect(self.workers.submit(inputs)), top)

    def _submit(self, part: memoryview) -> queue.SimpleQueue[Any] | ImageError:
        try:
            return self.workers.submit(self._prepare(part, ""))
        except ImageError as exc:
            return exc

    def _prepare(self, data: bytes | bytearray | memoryview, content_type: str) -> Floats:
        classifier, size = self.classifier, self.classifier.model.size
        if content_type.partition(";")[0].strip().lower() == _RGB:
            if len(data) != size * size * 3:
                raise ImageError(f"{_RGB} takes {size} x {size} x 3 bytes, got {len(data)}")
            return classifier.preprocessor.normalize(np.frombuffer(data, np.uint8).reshape(size, size, 3))
        with self._decoding:
            return classifier.prepare(bytes(data))

    def _info(self) -> dict[str, str]:
        return {"runtime": self.classifier.runtime}


def describe(classifier: Classifier, logits: Floats, top: int) -> dict[str, Any]:
    """Return an answer as the service and ``--json`` give it."""
    labels = classifier.labels(logits, top)
    return {
        "top": [{"class": name, "index": index, "confidence": round(p, 6)} for name, index, p in labels],
        "sure": labels[0].confidence >= classifier.model.min_confidence,
    }


def _json(value: dict[str, Any]) -> tuple[bytes, str]:
    return json.dumps(value).encode() + b"\n", "application/json"


def _collect(answer: queue.SimpleQueue[Any]) -> Floats:
    try:
        result = answer.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise Refused(503, "the engine took too long; try again later") from None
    if isinstance(result, Exception):
        raise Refused(500, f"the engine failed: {result}") from result
    logits: Floats = result
    return logits


def _top(query: str) -> int:
    values = parse_qs(query, max_num_fields=8).get("top", ["5"])
    if len(values) != 1 or not re.fullmatch("[1-9][0-9]{0,4}", values[0]):
        raise Refused(400, "top must be one whole number from 1 on")
    return int(values[0])


def split_multipart(body: bytes | bytearray, content_type: str, most: int) -> list[memoryview]:
    """Return the contents of the parts of a multipart/form-data body, in order.

    Raises:
        Refused: If it is none, has no part, or more than `most`.
    """
    kind, _, parameters = content_type.partition(";")
    match = re.search(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', parameters)
    if kind.strip().lower() != "multipart/form-data" or match is None:
        raise Refused(415, "send the images as parts of multipart/form-data, with a boundary")
    fence = b"--" + (match.group(1) or match.group(2)).encode("latin-1")
    if not body.startswith(fence):
        raise Refused(400, "the body does not begin with the boundary")
    view, parts, place = memoryview(body), [], len(fence)
    while body[place : place + 2] != b"--":
        head_end = body.find(b"\r\n\r\n", place, place + _MAX_HEAD)
        end = body.find(b"\r\n" + fence, head_end + 2)
        if body[place : place + 2] != b"\r\n" or head_end < 0 or end < 0:
            raise Refused(400, "the multipart body is cut short or malformed")
        parts.append(view[head_end + 4 : max(end, head_end + 4)])
        if len(parts) > most:
            raise Refused(413, f"a batch may hold {most} images at most")
        place = end + 2 + len(fence)
    if not parts:
        raise Refused(400, "the multipart body holds no image")
    return parts


def _path_of(head: bytes) -> str:
    """Return a request's path for the metrics and the log, whatever else is wrong with it."""
    words = head[:8192].split(b"\r\n", 1)[0].split(b" ")
    return words[1].split(b"?")[0].decode("latin-1") if len(words) == 3 else "-"


# ---------------------------------------------------------------------------------- connections


class _Request(NamedTuple):
    path: str
    query: str
    content_type: str
    body: bytes | bytearray


class _Connection:
    """One client: requests one after another on one thread, each with its time limits."""

    def __init__(self, service: Service, client: socket.socket, *, crowded: bool) -> None:
        self._service, self._socket, self._crowded = service, client, crowded
        self._buffer = bytearray()
        self._idle, self._keep, self._served = True, False, False

    def serve(self) -> None:
        """Answer until either side is done."""
        try:
            while self._serve_one():
                pass
        except (_Disconnected, OSError):
            pass
        finally:
            self._close()
            self._service.closed(self)

    def end_idle(self) -> None:
        """Wake a connection that waits for a next request; what has arrived is still read."""
        if self._idle:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)

    def _serve_one(self) -> bool:
        path, allow, started = "-", "", time.perf_counter()
        self._keep = False
        try:
            head = self._read_head()
            started = time.perf_counter()
            path = _path_of(head)
            with contextlib.ExitStack() as holds:
                request = self._read_request(head, holds)
                body, content_type = self._service.answer(request, crowded=self._crowded)
            status = 200
        except Refused as exc:
            status, allow = exc.status, exc.allow
            self._keep = self._keep and not exc.close
            body, content_type = _json({"error": str(exc)})
        except (_Disconnected, OSError):
            raise
        except Exception as exc:  # a defect must cost one answer, not the connection or the service
            status, self._keep = 500, False
            body, content_type = _json({"error": f"unexpected {type(exc).__name__}"})
            print(f"defect: {exc!r}", file=sys.stderr)
        keep = self._keep and not self._service.stopping.is_set()
        seconds = time.perf_counter() - started
        # Counted before it is sent, so that whoever has the answer finds it in the metrics.
        self._service.metrics.request(path if path in _PATHS else "other", status, seconds)
        self._send(status, body, content_type, keep, allow)
        if self._service.log is not None:
            self._service.log(f"{path[:200]!r} {status} {len(body)} bytes {seconds * 1e3:.1f} ms")
        return keep

    def _read_head(self) -> bytes:
        """Return the head of the next request, without its empty line."""
        self._idle = not self._buffer
        if self._served and self._idle and self._service.stopping.is_set():
            raise _Disconnected  # `end_idle` may have come by while the last request was answered
        self._served = True
        deadline = time.monotonic() + (_IDLE_SECONDS if self._idle else _HEAD_SECONDS)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise Refused(431, f"the request's head is longer than {_MAX_HEAD} bytes", close=True)
            began = bool(self._buffer)
            try:
                self._buffer += self._receive(deadline)
            except TimeoutError:
                if began:
                    raise Refused(408, "the request's head did not arrive in time", close=True) from None
                raise _Disconnected from None
            if not began:
                self._idle = False
                deadline = time.monotonic() + _HEAD_SECONDS
        if end > _MAX_HEAD:
            raise Refused(431, f"the request's head is longer than {_MAX_HEAD} bytes", close=True)
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    def _read_request(self, head: bytes, holds: contextlib.ExitStack) -> _Request:
        lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"([A-Z]{1,10}) (\S{1,8000}) HTTP/(\d)\.(\d)", lines[0])
        if match is None:
            raise Refused(400, "this is no HTTP request", close=True)
        method, target, major, minor = match.groups()
        if major != "1":
            raise Refused(505, "this service speaks HTTP/1.1", close=True)
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if (
                not colon
                or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
                or "\0" in value
                or (
                    name.lower() in headers
                    and name.lower() in ("content-length", "transfer-encoding", "host")
                )
            ):
                raise Refused(400, "a header field is malformed", close=True)
            headers[name.lower()] = value.strip(" \t")
        connection = headers.get("connection", "").lower()
        keep = "close" not in connection and (minor != "0" or "keep-alive" in connection)
        try:
            url = urlsplit(target)
        except ValueError:
            raise Refused(400, "the request's target is malformed", close=True) from None
        body = self._read_body(headers, holds)
        self._keep = keep
        allowed = _PATHS.get(url.path)
        if allowed is None:
            raise Refused(404, f"there is {', '.join(_PATHS)}")
        if method != allowed:
            raise Refused(405, f"{url.path} takes {allowed}", allow=allowed)
        return _Request(url.path, url.query, headers.get("content-type", ""), body)

    def _read_body(self, headers: dict[str, str], holds: contextlib.ExitStack) -> bytes | bytearray:
        if "transfer-encoding" in headers:
            raise Refused(411, "send Content-Length instead of Transfer-Encoding", close=True)
        text = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", text):
            raise Refused(400, "Content-Length must be a whole number", close=True)
        length, most = int(text), self._service.limits.body_bytes
        if length > most:
            raise Refused(413, f"the body may have {most} bytes at most, got {length}", close=True)
        try:
            holds.enter_context(self._service.held.take(length))
        except Refused as exc:
            raise Refused(exc.status, str(exc), close=True) from exc
        if headers.get("expect", "").lower() == "100-continue" and len(self._buffer) < length:
            self._socket.settimeout(_BODY_SECONDS)
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._buffer[:length]
        del self._buffer[:length]
        got, deadline = len(body), time.monotonic() + _BODY_SECONDS
        if got == length:
            return body
        body += bytes(length - got)
        view = memoryview(body)
        while got < length:
            try:
                count = self._receive_into(view[got:], deadline)
            except TimeoutError:
                raise Refused(408, "the body did not arrive in time", close=True) from None
            got += count
        return body

    def _receive(self, deadline: float) -> bytes:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        data = self._socket.recv(1 << 16)
        if not data:
            raise _Disconnected
        return data

    def _receive_into(self, view: memoryview, deadline: float) -> int:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        count = self._socket.recv_into(view)
        if not count:
            raise _Disconnected
        return count

    def _send(self, status: int, body: bytes, content_type: str, keep: bool, allow: str) -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n"
        ).encode()
        extra = _RETRY_AFTER if status in (429, 503) else b""
        if allow:
            extra += f"Allow: {allow}\r\n".encode()
        self._socket.settimeout(_BODY_SECONDS)
        self._socket.sendall(head + extra + b"\r\n" + body)

    def _close(self) -> None:
        """Close so that the last answer arrives: data left unread would make the kernel reset it away."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 1.0
            self._socket.settimeout(0.2)
            while time.monotonic() < deadline and self._socket.recv(1 << 16):
                pass
        self._socket.close()


# --------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 something failed, 2 wrong use, 3 package absent."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except KitError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return int(getattr(exc, "exit_code", 1))
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    classifier = Classifier(
        options.model, runtime=options.runtime, threads=options.threads, max_pixels=options.max_pixels
    )
    if options.self_test:
        return _print_self_test(classifier, options.json)
    if options.serve:
        return _serve(classifier, options)
    return _print_answers(classifier, options)


def _print_self_test(classifier: Classifier, as_json: bool) -> int:
    runtime, tolerance, _ = classifier.model.reference()
    result = classifier.self_test()
    passed = not result.failures
    if as_json:
        print(json.dumps({"passed": passed, "runtime": classifier.runtime, **result._asdict()}, indent=2))
    else:
        print(
            f"{result.images} images on {classifier.runtime}, reference {runtime}: {result.identical} with "
            f"identical logits, largest difference {result.largest_difference:.4g} (allowed {tolerance:.4g})"
        )
        print("\n".join((*result.failures, "passed" if passed else "FAILED")))
    return 0 if passed else 1


def _print_answers(classifier: Classifier, options: argparse.Namespace) -> int:
    answers: list[dict[str, Any]] = []
    for path in options.images:
        try:
            logits = classifier.logits(classifier.prepare(Path(path)))
            answers.append({"file": path, **describe(classifier, logits, options.top)})
        except ImageError as exc:
            answers.append({"file": path, "error": str(exc)})
        if not options.json:
            _print_answer(answers[-1])
    if options.json:
        print(json.dumps(answers, indent=2))
    return 2 if any("error" in answer for answer in answers) else 0


def _print_answer(answer: dict[str, Any]) -> None:
    name = "".join(c if c.isprintable() else "?" for c in answer["file"])
    if "error" in answer:
        print(f"{name}: error: {answer['error']}", file=sys.stderr)
        return
    best = ", ".join(f"{label['class']} {label['confidence']:.1%}" for label in answer["top"])
    print(f"{name}: {best}" + ("" if answer["sure"] else " (not sure)"))


def _serve(classifier: Classifier, options: argparse.Namespace) -> int:
    limits = Limits(
        options.max_body, options.max_batch, options.max_pending, options.max_connections, options.grace
    )
    log = (lambda line: print(line, file=sys.stderr, flush=True)) if options.log else None
    service = Service(classifier, options.host, options.port, workers=options.workers, limits=limits, log=log)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: service.stop())
    host, port = service.address
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {classifier.model.name} on http://{shown}:{port} ({classifier.runtime})", flush=True)
    service.run()
    return 0


def _parser() -> argparse.ArgumentParser:
    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError("must be at least 1")
        return value

    parser = argparse.ArgumentParser(description="Classify images with an INT8 model.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("images", nargs="*", default=[], metavar="IMAGE", help="files to classify")
    what.add_argument("--self-test", action="store_true", help="compare with the reference outputs")
    what.add_argument("--serve", action="store_true", help="run the HTTP service")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="classes to show (5)")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="the model folder (model/ beside this file)"
    )
    parser.add_argument("--runtime", choices=sorted(_RUNTIMES), default="onnxruntime")
    parser.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="threads of one inference (1)"
    )
    parser.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="of an image")
    serve = parser.add_argument_group("service")
    limits = Limits()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)"
    )
    serve.add_argument("--port", type=int, default=8080, help="0 takes a free one (8080)")
    serve.add_argument(
        "--workers", type=positive, default=max(1, cores - 1), metavar="N", help="inferences at the same time"
    )
    serve.add_argument("--max-body", type=positive, default=limits.body_bytes, metavar="BYTES")
    serve.add_argument("--max-batch", type=positive, default=limits.batch_images, metavar="IMAGES")
    serve.add_argument("--max-pending", type=positive, default=limits.pending_images, metavar="IMAGES")
    serve.add_argument("--max-connections", type=positive, default=limits.connections, metavar="N")
    serve.add_argument("--grace", type=float, default=limits.grace_seconds, metavar="SECONDS")
    serve.add_argument("--log", action="store_true", help="one line on standard error for each request")
    return parser


if __name__ == "__main__":
    sys.exit(main())
