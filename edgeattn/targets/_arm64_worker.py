"""Runs inside the emulated Python: opens one model and answers requests on standard input.

It is started by its path and imports nothing of edgeattn. One process serves a whole session, because starting
Python and a runtime under emulation takes seconds.

A message is the length of a JSON header (8 bytes, little endian), the header, and the raw little-endian float32
arrays that it describes, in its order. A request is ``{"inputs": {name: shape}}``; an answer
``{"outputs": {name: shape}}`` or ``{"error": text}``. The first answer says what was opened.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any, BinaryIO

import numpy as np

__all__ = ["main"]


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _write(stream: BinaryIO, header: dict[str, Any], arrays: list[Any]) -> None:
    text = json.dumps(header).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    for array in arrays:
        stream.write(np.ascontiguousarray(array, dtype="<f4").tobytes())
    stream.flush()


class _Ort:
    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Emulated threads that spin take the time of those that work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self.version = f"onnxruntime {ort.__version__}"

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self._names, self._session.run(self._names, feeds)))  # noqa: B905 - same list


class _OpenVino:
    def __init__(self, model: str, threads: int, *, low_precision: bool) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if not low_precision:
            settings["LP_TRANSFORMS_MODE"] = "NO"
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._outputs = [(output.get_any_name(), output) for output in compiled.outputs]
        self.version = f"openvino {openvino.__version__.split('-')[0]}"

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        results = self._request.infer(feeds)
        return {name: np.array(results[output]) for name, output in self._outputs}


def main(runtime: str, model: str, threads: str) -> None:
    """Serve until standard input ends.

    Args:
        runtime: ``"ort"``, ``"openvino"``, or ``"openvino-int8"`` with its low-precision transformations.
        model: An ONNX file.
        threads: Of one inference.
    """
    # What a runtime prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    try:
        if runtime == "ort":
            opened: _Ort | _OpenVino = _Ort(model, int(threads))
        else:
            opened = _OpenVino(model, int(threads), low_precision=runtime == "openvino-int8")
    except Exception as exc:
        _write(answers, {"error": f"{type(exc).__name__}: {exc}"[:2000]}, [])
        return
    _write(answers, {"runtime": opened.version, "machine": os.uname().machine}, [])
    while True:
        try:
            (length,) = struct.unpack("<Q", _read(requests, 8))
        except EOFError:
            return
        header = json.loads(_read(requests, length))
        feeds = {}
        for name, shape in header["inputs"].items():
            data = _read(requests, int(np.prod(shape)) * 4)
            feeds[name] = np.frombuffer(data, dtype="<f4").reshape(shape)
        try:
            outputs = opened.run(feeds)
        except Exception as exc:
            _write(answers, {"error": f"{type(exc).__name__}: {exc}"[:2000]}, [])
            continue
        shapes = {name: list(array.shape) for name, array in outputs.items()}
        _write(answers, {"outputs": shapes}, list(outputs.values()))


if __name__ == "__main__":
    main(*sys.argv[1:])
