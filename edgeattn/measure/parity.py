"""Parity: whether two engines, or an engine and its float model, give the same answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeattn.errors import DataError, ModelError, ParityError
from edgeattn.measure.statistics import (
    Interval,
    kl_divergence,
    mcnemar_p,
    paired_difference_interval,
    sqnr_db,
    wilson_interval,
)
from edgeattn.targets.base import Session

__all__ = ["LayerSqnr", "Parity", "compare_outputs", "first_drift", "layer_sqnr", "run_session"]


@dataclasses.dataclass(frozen=True)
class Parity:
    """How well a test engine agrees with a reference on the same images.

    Shares lie in [0, 1]; what needs labels is None without them.

    Attributes:
        n: Images.
        agreement: Share of images for which both choose the same class.
        agreement_interval: Its 95 % Wilson interval.
        sqnr_db: Signal-to-quantization-noise ratio of the logits; infinite if they are equal.
        kl: Mean KL divergence from the reference's softmax to the test's, in nats.
        max_abs_diff: Largest difference between two logits.
        top1: Share of images that the test engine gets right.
        top1_interval: Its 95 % Wilson interval.
        top1_reference: Share of images that the reference gets right.
        top1_delta: ``top1 - top1_reference``: negative if the test engine is worse.
        top1_delta_interval: Its 95 % interval, for matched pairs.
        top1_changed_share: Share of images that exactly one of the two gets right.
        mcnemar_p: Two-sided p-value of McNemar's exact test.
    """

    n: int
    agreement: float
    agreement_interval: Interval
    sqnr_db: float
    kl: float
    max_abs_diff: float
    top1: float | None = None
    top1_interval: Interval | None = None
    top1_reference: float | None = None
    top1_delta: float | None = None
    top1_delta_interval: Interval | None = None
    top1_changed_share: float | None = None
    mcnemar_p: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description; an infinite SQNR becomes None beside ``"identical"``."""
        value: dict[str, Any] = dataclasses.asdict(self)
        for name, item in value.items():
            if isinstance(item, tuple):
                value[name] = list(item)
        value["sqnr_db"] = self.sqnr_db if math.isfinite(self.sqnr_db) else None
        value["identical"] = self.max_abs_diff == 0.0
        return value


@dataclasses.dataclass(frozen=True)
class LayerSqnr:
    """SQNR of one tensor inside a network, against its float value."""

    name: str
    sqnr_db: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description; an infinite SQNR becomes None."""
        return {"name": self.name, "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None}


def compare_outputs(
    reference_logits: ArrayLike, test_logits: ArrayLike, labels: ArrayLike | None = None
) -> Parity:
    """Compare the logits of two engines on the same images.

    Args:
        reference_logits: (N, classes).
        test_logits: (N, classes).
        labels: (N,) class indices, or None.

    Raises:
        DataError: If the shapes do not fit or there are no images.
        ParityError: If a logit is not a finite number: no statistic means anything then.
    """
    reference, test = _logits(reference_logits, "reference"), _logits(test_logits, "test")
    if reference.shape != test.shape:
        raise DataError(
            f"Shapes differ: reference {reference.shape}, test {test.shape}. Compare like with like."
        )
    n = reference.shape[0]
    chosen_reference, chosen_test = reference.argmax(axis=1), test.argmax(axis=1)
    same = int(np.sum(chosen_reference == chosen_test))
    parity = Parity(
        n=n,
        agreement=same / n,
        agreement_interval=wilson_interval(same, n),
        sqnr_db=sqnr_db(reference, test),
        kl=kl_divergence(reference, test),
        max_abs_diff=float(np.max(np.abs(reference - test))),
    )
    if labels is None:
        return parity
    classes = np.asarray(labels)
    if classes.shape != (n,):
        raise DataError(f"Labels have shape {classes.shape}; expected one per image, ({n},).")
    right_reference, right_test = chosen_reference == classes, chosen_test == classes
    hits_reference, hits_test = int(right_reference.sum()), int(right_test.sum())
    return dataclasses.replace(
        parity,
        top1=hits_test / n,
        top1_interval=wilson_interval(hits_test, n),
        top1_reference=hits_reference / n,
        top1_delta=(hits_test - hits_reference) / n,
        top1_delta_interval=paired_difference_interval(right_reference, right_test),
        top1_changed_share=float(np.mean(right_reference != right_test)),
        mcnemar_p=mcnemar_p(right_reference, right_test),
    )


def run_session(
    session: Session,
    images: NDArray[np.float32],
    input_name: str,
    output_name: str,
    *,
    batch: int = 1,
) -> NDArray[np.float32]:
    """Return the logits of all images.

    The last batch is filled up by repeating its last image, because an engine's shape is fixed; what the
    filling gave is dropped.

    Args:
        session: An open engine.
        images: (N, C, H, W), float32.
        input_name: Name of the engine's input.
        output_name: Name of the output that holds the logits.
        batch: Images that the engine takes at once.

    Raises:
        DataError: If there are no images.
        ModelError: If the shape is not the engine's, or it has no such output.
    """
    if images.ndim != 4 or images.shape[0] == 0:
        raise DataError(f"Images have shape {images.shape}; expected (N, C, H, W) with N >= 1.")
    if batch < 1:
        raise DataError(f"batch is {batch}; expected at least 1.")
    many = getattr(session, "infer_many", None)
    if many is not None and batch == 1:
        # An engine on a device across a network takes them all at once.
        outputs = many({input_name: images})
        if output_name not in outputs:
            raise ModelError(f"The engine has no output {output_name!r}; it has {sorted(outputs)}.")
        logits = np.asarray(outputs[output_name], dtype=np.float32)
        if logits.shape[:1] != images.shape[:1]:
            raise ModelError(f"Output {output_name!r} has shape {logits.shape}; expected {len(images)} rows.")
        return logits.reshape(len(images), -1)
    rows: list[NDArray[np.float32]] = []
    for start in range(0, images.shape[0], batch):
        chunk = images[start : start + batch]
        filling = batch - chunk.shape[0]
        fed = np.concatenate([chunk, np.repeat(chunk[-1:], filling, axis=0)]) if filling else chunk
        outputs = session.infer({input_name: fed})
        if output_name not in outputs:
            raise ModelError(f"The engine has no output {output_name!r}; it has {sorted(outputs)}.")
        # The filling is cut off before reshaping, so that a wrong batch shows.
        logits = outputs[output_name]
        if logits.shape[0] != batch:
            raise ModelError(f"Output {output_name!r} has shape {logits.shape}; expected {batch} rows.")
        rows.append(logits[: chunk.shape[0]].reshape(chunk.shape[0], -1))
    return np.concatenate(rows)


def layer_sqnr(
    float_tensors: Mapping[str, ArrayLike], test_tensors: Mapping[str, ArrayLike]
) -> tuple[LayerSqnr, ...]:
    """Return the SQNR of every tensor that both have, in the order of the float network.

    Raises:
        DataError: If they have no tensor in common, or a tensor's shapes differ.
    """
    shared = [name for name in float_tensors if name in test_tensors]
    if not shared:
        raise DataError(
            "The two networks have no tensor name in common. Compare graphs exported from the same module."
        )
    return tuple(LayerSqnr(name, sqnr_db(float_tensors[name], test_tensors[name])) for name in shared)


def first_drift(layers: Sequence[LayerSqnr], threshold_db: float = 20.0) -> LayerSqnr | None:
    """Return the first layer whose SQNR is below `threshold_db`, or None."""
    return next((layer for layer in layers if layer.sqnr_db < threshold_db), None)


def _logits(values: ArrayLike, what: str) -> NDArray[np.float64]:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(f"The {what} logits have shape {rows.shape}; expected (images, classes), neither 0.")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ParityError(
            f"The {what} logits of {int(np.sum(~finite))} of {len(rows)} images are not finite numbers, "
            f"first image {int(np.argmin(finite))}. Look for an overflow or a zero scale in that network."
        )
    return rows
