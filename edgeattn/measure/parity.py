"""Parity: whether two engines, or an engine and its float model, give the same answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeattn.answers import Answers
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
        agreement: Share of images for which both choose the same class; None where the outputs are no scores of classes.
        agreement_interval: Its 95 % Wilson interval.
        sqnr_db: Signal-to-quantization-noise ratio of the outputs; infinite if they are equal. Of several outputs, by the
            mean of their ratios of noise to signal.
        kl: Mean KL divergence from the reference's softmax to the test's, in nats; None as for `agreement`.
        max_abs_diff: Largest difference between two numbers.
        top1: Share of images that the test engine gets right.
        top1_interval: Its 95 % Wilson interval.
        top1_reference: Share of images that the reference gets right.
        top1_delta: ``top1 - top1_reference``: negative if the test engine is worse.
        top1_delta_interval: Its 95 % interval, for matched pairs.
        top1_changed_share: Share of images that exactly one of the two gets right.
        mcnemar_p: Two-sided p-value of McNemar's exact test.
        outputs_sqnr_db: Of each of several outputs by itself.
    """

    n: int
    agreement: float | None
    agreement_interval: Interval | None
    sqnr_db: float
    kl: float | None
    max_abs_diff: float
    top1: float | None = None
    top1_interval: Interval | None = None
    top1_reference: float | None = None
    top1_delta: float | None = None
    top1_delta_interval: Interval | None = None
    top1_changed_share: float | None = None
    mcnemar_p: float | None = None
    outputs_sqnr_db: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready description; an infinite SQNR becomes None beside ``"identical"``."""
        value: dict[str, Any] = dataclasses.asdict(self)
        for name, item in value.items():
            if isinstance(item, tuple):
                value[name] = list(item)
        value["sqnr_db"] = self.sqnr_db if math.isfinite(self.sqnr_db) else None
        value["identical"] = self.max_abs_diff == 0.0
        value["outputs_sqnr_db"] = {
            name: ratio if math.isfinite(ratio) else None for name, ratio in self.outputs_sqnr_db.items()
        }
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
    reference_logits: ArrayLike,
    test_logits: ArrayLike,
    labels: ArrayLike | None = None,
    answers: Answers | None = None,
) -> Parity:
    """Compare the answers of two engines to the same images.

    Args:
        reference_logits: (N, classes), or (N, numbers): all outputs of an image, flattened.
        test_logits: As `reference_logits`.
        labels: (N,) class indices, or None.
        answers: How the numbers are laid out; None means scores of classes.

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
    if answers is not None and not answers.are_classes:
        return _compare_numbers(reference, test, answers)
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


def _compare_numbers(reference: NDArray[np.float64], test: NDArray[np.float64], answers: Answers) -> Parity:
    """Compare outputs of which no number is to be the largest."""
    parts = answers.parts()
    if reference.shape[1] != sum(answers.sizes):
        raise DataError(
            f"The answers hold {reference.shape[1]} numbers an image; expected {sum(answers.sizes)}."
        )
    ratios = [sqnr_db(reference[:, part], test[:, part]) for part in parts]
    noise = float(np.mean([0.0 if ratio == math.inf else 10 ** (-ratio / 10) for ratio in ratios]))
    return Parity(
        n=len(reference),
        agreement=None,
        agreement_interval=None,
        sqnr_db=-10 * math.log10(noise) if noise else math.inf,
        kl=None,
        max_abs_diff=float(np.max(np.abs(reference - test))),
        outputs_sqnr_db=dict(zip(answers.names, ratios, strict=True)) if len(ratios) > 1 else {},
    )


def run_session(
    session: Session,
    images: NDArray[np.float32],
    input_name: str,
    output_names: str | Sequence[str],
    *,
    batch: int = 1,
) -> NDArray[np.float32]:
    """Return the logits of all images, or all numbers of several outputs, one output behind the other.

    The last batch is filled up by repeating its last image, because an engine's shape is fixed; what the
    filling gave is dropped.

    Args:
        session: An open engine.
        images: (N, C, H, W), float32.
        input_name: Name of the engine's input.
        output_names: Name of the output that holds the logits, or the names of all outputs.
        batch: Images that the engine takes at once.

    Raises:
        DataError: If there are no images.
        ModelError: If the shape is not the engine's, or it has no such output.
    """
    if images.ndim != 4 or images.shape[0] == 0:
        raise DataError(f"Images have shape {images.shape}; expected (N, C, H, W) with N >= 1.")
    if batch < 1:
        raise DataError(f"batch is {batch}; expected at least 1.")
    names = [output_names] if isinstance(output_names, str) else list(output_names)
    many = getattr(session, "infer_many", None)
    if many is not None and batch == 1:
        # An engine on a device across a network takes them all at once.
        return _rows(many({input_name: images}), names, len(images))
    rows: list[NDArray[np.float32]] = []
    for start in range(0, images.shape[0], batch):
        chunk = images[start : start + batch]
        filling = batch - chunk.shape[0]
        fed = np.concatenate([chunk, np.repeat(chunk[-1:], filling, axis=0)]) if filling else chunk
        rows.append(_rows(session.infer({input_name: fed}), names, batch)[: chunk.shape[0]])
    return np.concatenate(rows)


def _rows(outputs: Mapping[str, Any], names: Sequence[str], count: int) -> NDArray[np.float32]:
    """Return a row of numbers for each image."""
    parts = []
    for name in names:
        if name not in outputs:
            raise ModelError(f"The engine has no output {name!r}; it has {sorted(outputs)}.")
        value = np.asarray(outputs[name], dtype=np.float32)
        # Checked before it is reshaped, so that a wrong batch shows.
        if value.shape[:1] != (count,):
            raise ModelError(f"Output {name!r} has shape {value.shape}; expected {count} rows.")
        parts.append(value.reshape(count, -1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


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
