"""An open TensorRT engine, of either kind, on one GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeattn.errors import ModelError
from edgeattn.targets._common import check_feeds, check_threads, closed_error
from edgeattn.targets._cuda import CudaDevice
from edgeattn.targets.base import Engine, Feeds, LayerTime, Outputs, TimingPlan

__all__ = ["TrtSession"]


class TrtSession:
    """An open TensorRT engine: device memory for every tensor is taken once, when it opens.

    Args:
        trt: TensorRT's module.
        device: The GPU, its context current in this thread.
        context: An execution context.
        engine: What is open.
        threads: Recorded only.
        properties: For the report.
    """

    def __init__(
        self,
        trt: Any,
        device: CudaDevice,
        context: Any,
        engine: Engine,
        threads: int,
        properties: dict[str, Any],
    ) -> None:
        self._trt = trt
        self._device = device
        self._context = context
        self._engine = engine
        self._threads = threads
        self.properties = properties
        self._addresses: dict[str, int] = {}
        for spec in (*engine.inputs, *engine.outputs):
            size_bytes = int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            # A manifest from elsewhere must not make the buffers smaller than TensorRT believes.
            if tuple(context.get_tensor_shape(spec.name)) != spec.shape:
                raise ModelError(
                    f"Engine {engine.path.name}: tensor {spec.name!r} is not the {spec.shape} that its manifest "
                    "says. Build it again."
                )
            self._addresses[spec.name] = device.allocate(size_bytes)
            context.set_tensor_address(spec.name, self._addresses[spec.name])

    def close(self) -> None:
        """Let go of the execution context."""
        self._context = None

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once and return every output by name."""
        self._upload(feeds)
        self._enqueue()
        self._device.synchronize()
        outputs: Outputs = {}
        for spec in self._engine.outputs:
            outputs[spec.name] = np.empty(spec.shape, dtype=spec.dtype)
            self._device.download(outputs[spec.name], self._addresses[spec.name])
        return outputs

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        """Return nanoseconds of each counted inference on the GPU's own clock, without the copies."""
        check_threads(self._threads, plan)
        self._upload(feeds)
        for _ in range(plan.warmup_runs):
            self._enqueue()
        self._device.synchronize()
        samples: list[int] = []
        deadline = time.perf_counter() + plan.min_seconds
        while True:
            self._device.record(0)
            self._enqueue()
            self._device.record(1)
            samples.append(self._device.elapsed_ns())
            if len(samples) >= plan.min_runs or time.perf_counter() >= deadline:
                return samples

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        """Return mean time by kernel as TensorRT's profiler reports it, without element types."""
        self._upload(feeds)
        for _ in range(min(5, runs)):
            self._enqueue()
        self._device.synchronize()
        totals: dict[str, float] = {}

        class _Profiler(self._trt.IProfiler):  # type: ignore[misc, name-defined]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                totals[layer_name] = totals.get(layer_name, 0.0) + ms

        profiler = _Profiler()
        self._context.profiler = profiler
        try:
            for _ in range(runs):
                self._enqueue()
                self._device.synchronize()
        finally:
            # The context keeps only a pointer, so the profiler must not go first.
            self._context.profiler = None
        return [LayerTime(name, "", "", total / runs * 1e3) for name, total in totals.items()]

    def _upload(self, feeds: Feeds) -> None:
        if self._context is None:
            raise closed_error(self._engine)
        for name, array in check_feeds(self._engine, feeds).items():
            self._device.upload(self._addresses[name], array)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise ModelError(f"TensorRT failed in {self._engine.path.name}. Build the engine again here.")
