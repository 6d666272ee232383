"""Measuring: parity, latency, the machine behind them, and the verdict. Knows no runtime and no torch."""

from __future__ import annotations

from edgeattn.measure.environment import describe_environment
from edgeattn.measure.latency import (
    Latency,
    LatencyComparison,
    LatencyRatio,
    compare_engines,
    compare_latency,
    measure_latency,
)
from edgeattn.measure.parity import (
    LayerSqnr,
    Parity,
    compare_outputs,
    first_drift,
    layer_sqnr,
    run_session,
)
from edgeattn.measure.statistics import (
    LsbDifference,
    agreement,
    kl_divergence,
    lsb_difference,
    mcnemar_p,
    mean_interval,
    median_ratio_interval,
    paired_difference_interval,
    sqnr_db,
    top1,
    wilson_interval,
)
from edgeattn.measure.verdict import AcceptBounds, Reason, Verdict, judge

__all__ = [
    "AcceptBounds",
    "Latency",
    "LatencyComparison",
    "LatencyRatio",
    "LayerSqnr",
    "LsbDifference",
    "Parity",
    "Reason",
    "Verdict",
    "agreement",
    "compare_engines",
    "compare_latency",
    "compare_outputs",
    "describe_environment",
    "first_drift",
    "judge",
    "kl_divergence",
    "layer_sqnr",
    "lsb_difference",
    "mcnemar_p",
    "measure_latency",
    "mean_interval",
    "median_ratio_interval",
    "paired_difference_interval",
    "run_session",
    "sqnr_db",
    "top1",
    "wilson_interval",
]
