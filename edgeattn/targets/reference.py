"""The integer reference: the quantized graph in exact integer arithmetic, with NumPy alone.

Products of integers are summed exactly, what follows on the way to a QuantizeLinear is not rounded in
between, and each QuantizeLinear rounds once. Any runtime's integers are therefore at most one step away,
given the same inputs, unless something is wrong. Its engine is the ONNX file itself.

What makes the two CPU runtimes differ from it, given the same inputs, is written in the README under
"Parity": they requantize in float32, with the ratio of scales rounded first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeattn.artifact import OnnxArtifact, write_bytes
from edgeattn.errors import ModelError, TargetUnavailable
from edgeattn.targets._common import (
    RuntimeTarget,
    check_feeds,
    check_threads,
    clock_runs,
    closed_error,
    install_command,
    one_line,
)
from edgeattn.targets.base import Availability, Engine, Feeds, LayerTime, Outputs, Session, TimingPlan

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from edgeattn.targets._reference.program import Program

__all__ = ["Reference", "load_program", "make_program"]


class Reference(RuntimeTarget):
    """Exact integer arithmetic in NumPy.

    Args:
        rounding: Of ties: ``"half-even"`` or ``"half-away"``.
        bias: ``"int32"``: a whole number of accumulator steps; or ``"float"``.
        accumulate: ``"exact"``, or as x86 without VNNI sums: ``"vpmaddubsw"`` in ONNX Runtime,
            ``"vpmaddubsw-onednn"`` in OpenVINO.
        float_dtype: Of the float part: ``"float32"`` or ``"bfloat16"``.

    Raises:
        RecipeError: If an option is none of those.
    """

    name = "reference"
    profile = "u8"
    package = "onnx"

    def __init__(
        self,
        *,
        rounding: Literal["half-even", "half-away", "tie-up", "tie-down"] = "half-even",
        bias: Literal["int32", "float"] = "int32",
        accumulate: Literal["exact", "vpmaddubsw", "vpmaddubsw-onednn"] = "exact",
        float_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        from edgeattn.targets._reference.numbers import Arithmetic

        self._arithmetic = Arithmetic(rounding, bias, accumulate, float_dtype)

    def probe(self) -> Availability:
        """Say that it works: it needs nothing but what edgeattn itself needs."""
        try:
            onnx = self._load()
        except TargetUnavailable as exc:
            return Availability(False, False, str(exc), install_command(self.package))
        return Availability(True, True, version=f"numpy {np.__version__}, onnx {onnx.__version__}")

    def build(self, artifact: OnnxArtifact, workdir: Path) -> Engine:
        """Copy the model into `workdir`, after checking that the reference can execute it.

        Raises:
            ModelError: If the file is no valid model.
            ArtifactError: If the model's file changed, or the engine cannot be written.
        """
        self._load()
        self._check_artifact(artifact)
        program = load_program(artifact.path, self._arithmetic)
        details = {"runtime": self._runtime(), **program.counts()}
        path = write_bytes(self._engine_path(artifact, workdir, ".onnx"), artifact.path.read_bytes())
        return self._engine(artifact, path, details)

    @contextlib.contextmanager
    def open(self, engine: Engine, *, threads: int = 1) -> Iterator[Session]:
        """Open an engine after checking its hash.

        Args:
            engine: An engine of this target.
            threads: Recorded only: NumPy's threads are set when it is loaded.

        Raises:
            ArtifactError: If the engine changed since it was built.
            ModelError: If it is another target's engine, or cannot be executed.
        """
        self._load()
        self._check_engine(engine, threads)
        properties = {
            "runtime": self._runtime(),
            "threads": threads,
            "pinning": "none",
            "rounding": self._arithmetic.rounding,
            "bias": self._arithmetic.bias,
            "accumulate": self._arithmetic.accumulate,
            "inference_precision": self._arithmetic.float_dtype,
            "clock": "perf_counter_ns around the whole graph in NumPy: says nothing about a device",
        }
        session = _ReferenceSession(load_program(engine.path, self._arithmetic), engine, threads, properties)
        try:
            yield session
        finally:
            session.close()

    def _runtime(self) -> str:
        return f"reference (numpy {np.__version__})"


class _ReferenceSession:
    """An open engine of the reference."""

    def __init__(self, program: Program, engine: Engine, threads: int, properties: dict[str, Any]) -> None:
        self._open_program: Program | None = program
        self._engine = engine
        self._threads = threads
        self.properties = properties

    def close(self) -> None:
        """Free the weights."""
        self._open_program = None

    @property
    def program(self) -> Program:
        """The executable graph, for what `run` of it can do beyond inference."""
        if self._open_program is None:
            raise closed_error(self._engine)
        return self._open_program

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once and return every output by name."""
        program = self.program
        return program.run(check_feeds(self._engine, feeds))

    def integers(self, feeds: Feeds, names: Iterable[str] | None = None) -> Mapping[str, NDArray[Any]]:
        """Run once and return quantized tensors as integers.

        Args:
            feeds: As in `infer`.
            names: Of results of QuantizeLinear; None returns all.
        """
        program = self.program
        wanted = list(program.quantized_names if names is None else names)
        found = program.run(check_feeds(self._engine, feeds), wanted)
        return {name: found[name] for name in wanted}

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        """Return nanoseconds of each counted inference."""
        check_threads(self._threads, plan)
        program, arrays = self.program, check_feeds(self._engine, feeds)
        return clock_runs(lambda: program.run(arrays), plan)

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        """Return mean time by node."""
        program, arrays = self.program, check_feeds(self._engine, feeds)
        spent: dict[str, int] = {}
        kinds: dict[str, tuple[str, str]] = {}

        def clock(node: NodeProto, nanoseconds: int) -> None:
            name = node.output[0]
            kinds.setdefault(name, (node.op_type, program.dtype_of(node)))
            spent[name] = spent.get(name, 0) + nanoseconds

        for _ in range(runs):
            program.run(arrays, clock=clock)
        return [LayerTime(name, *kinds[name], latency_us=total / runs / 1e3) for name, total in spent.items()]


def load_program(path: Path, arithmetic: Any = None) -> Program:
    """Read an ONNX file as an executable graph.

    Raises:
        ModelError: If it is none.
    """
    import onnx

    from edgeattn.targets._reference.program import Program

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as exc:
        # Protobuf's own error type depends on its backend.
        raise ModelError(f"{path.name} is not a valid ONNX model: {one_line(exc)}. Export it again.") from exc
    return Program(model, arithmetic)


def make_program(model: ModelProto, **options: Any) -> Program:
    """Return a model as an executable graph.

    Args:
        model: Float or QDQ.
        **options: As `Reference` takes them.

    Raises:
        ModelError: If it cannot be executed.
        RecipeError: If an option is not valid.
    """
    from edgeattn.targets._reference.numbers import Arithmetic
    from edgeattn.targets._reference.program import Program

    return Program(model, Arithmetic(**options))
