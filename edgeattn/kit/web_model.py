"""The model as a browser opens it fastest: a graph that ONNX Runtime has optimized already.

Half of a page's start would go into fusing Q/DQ pairs into integer operators, which gives the same graph each
time. Here it is done once, and the page opens the result as it is. Only operators that the WebAssembly build
knows are let in: blocked layouts for x86 (NCHWc) are not among them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from edgeattn.errors import ModelError
from edgeattn.extras import require

__all__ = ["optimize_for_web"]

_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
_NOT_PORTABLE = ("NchwcTransformer",)


def optimize_for_web(path: Path) -> bytes:
    """Return the ONNX file that ONNX Runtime makes of a lowered ``u8`` model, layout included.

    Raises:
        MissingExtraError: If ONNX Runtime is absent.
        ModelError: If it cannot open the model, or the result holds operators that browsers lack.
    """
    ort = require("onnxruntime", purpose="the model of the web kit")
    with tempfile.TemporaryDirectory(prefix="edgeattn-web-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(optimized)
        options.intra_op_num_threads = 1
        options.log_severity_level = (
            3  # it warns that the file fits this machine only; the check below says otherwise
        )
        try:
            ort.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(_NOT_PORTABLE),
            )
        except Exception as exc:  # ONNX Runtime's errors have no common base
            raise ModelError(f"ONNX Runtime cannot optimize {path.name}: {exc}.") from exc
        model = onnx.load(str(optimized))
    used = {node.domain for node in model.graph.node}
    if foreign := sorted(used - _DOMAINS):
        raise ModelError(
            f"{path.name} became a graph that browsers cannot run: operators of {', '.join(foreign)}."
        )
    # It lists every domain that it knows as imported; a runtime without one of them would refuse the file.
    for number in reversed(range(len(model.opset_import))):
        if model.opset_import[number].domain not in used | {""}:
            del model.opset_import[number]
    data: bytes = model.SerializeToString(deterministic=True)
    return data
