"""What the machine can do at most: multiplications and bytes a second, measured, not looked up."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["Peaks", "copy_bandwidth"]


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The roofline.

    Attributes:
        threads: That both were measured with.
        macs_per_second: By what computes: ``"int8"``, ``"float"``.
        bytes_per_second: Read and written, of memory outside the caches.
    """

    threads: int
    macs_per_second: Mapping[str, float]
    bytes_per_second: float

    def attainable_us(self, macs: int, size: int, dtype: str) -> float | None:
        """Return the least time for so many multiplications and bytes, None if a peak is missing.

        Args:
            macs: Multiplications.
            size: Bytes read and written.
            dtype: A key of `macs_per_second`.
        """
        if macs and dtype not in self.macs_per_second:
            return None
        compute = macs / self.macs_per_second[dtype] if macs else 0.0
        return 1e6 * max(compute, size / self.bytes_per_second)


def copy_bandwidth(threads: int = 1, *, megabytes: int = 64, seconds: float = 0.5) -> float:
    """Return bytes a second, read and written, of the fastest of several large copies.

    Args:
        threads: That copy a part each.
        megabytes: Size of what is copied; more than the caches hold.
        seconds: How long it is tried, after a first copy that brings the pages in.
    """
    count = megabytes * (1 << 20) // 8
    source, copy = np.ones(count), np.empty(count)
    cuts = np.linspace(0, count, threads + 1, dtype=int)
    parts = [slice(int(start), int(stop)) for start, stop in itertools.pairwise(cuts)]

    def copy_part(part: slice) -> None:
        np.copyto(copy[part], source[part])

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy_part, parts))
        deadline = time.perf_counter() + seconds
        while best == float("inf") or time.perf_counter() < deadline:
            start = time.perf_counter()
            list(pool.map(copy_part, parts))
            best = min(best, time.perf_counter() - start)
    return 2.0 * source.nbytes / best
