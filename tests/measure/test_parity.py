"""Parity of two sets of logits, and running an engine over images."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeattn.answers import Answers
from edgeattn.artifact import IoSpec
from edgeattn.errors import DataError, ModelError, ParityError
from edgeattn.measure import (
    compare_outputs,
    first_drift,
    layer_sqnr,
    mcnemar_p,
    run_session,
    wilson_interval,
)
from edgeattn.targets.base import Feeds, LayerTime, Outputs, TimingPlan

REFERENCE = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
TEST = np.array([[2.0, 0.5], [0.0, 1.0], [0.0, 2.0], [1.0, 0.0], [2.0, 0.0]])
LABELS = [0, 0, 1, 0, 1]


def test_with_labels() -> None:
    parity = compare_outputs(REFERENCE, TEST, LABELS)
    assert parity.n == 5
    assert parity.agreement == 0.6
    assert parity.agreement_interval == wilson_interval(3, 5)
    # Right: reference on images 0, 1, 2; test on images 0, 2, 3.
    assert (parity.top1, parity.top1_reference, parity.top1_delta) == (0.6, 0.6, 0.0)
    assert parity.top1_changed_share == 0.4
    assert parity.mcnemar_p == mcnemar_p([1, 1, 1, 0, 0], [1, 0, 1, 1, 0]) == 1.0
    assert parity.max_abs_diff == 2.0
    # Signal 5 * 4, noise 0.25 + (4 + 1) + (1 + 4).
    assert parity.sqnr_db == pytest.approx(10 * math.log10(20 / 10.25))
    assert parity.kl > 0


def test_a_worse_engine_has_a_negative_delta() -> None:
    parity = compare_outputs(REFERENCE, -REFERENCE, [0, 0, 1, 1, 0])
    assert (parity.top1, parity.top1_delta, parity.agreement) == (0.0, -1.0, 0.0)
    assert parity.top1_delta_interval is not None
    assert parity.top1_delta_interval[0] == -1.0


def test_without_labels() -> None:
    parity = compare_outputs(REFERENCE, TEST)
    assert parity.top1 is parity.top1_delta is parity.mcnemar_p is None
    json.dumps(parity.to_json(), allow_nan=False)


def test_outputs_that_are_no_scores_have_no_agreement() -> None:
    answers = Answers.of([IoSpec("boxes", (1, 1)), IoSpec("score", (1, 1))])
    parity = compare_outputs(REFERENCE, TEST, LABELS, answers)
    assert parity.agreement is parity.agreement_interval is parity.kl is parity.top1 is None
    # By output: signal 3 * 4 and 2 * 4, noise 4 + 1 and 0.25 + 1 + 4.
    shares = {"boxes": 5 / 12, "score": 5.25 / 8}
    assert parity.outputs_sqnr_db == pytest.approx({k: -10 * math.log10(v) for k, v in shares.items()})
    assert parity.sqnr_db == pytest.approx(-10 * math.log10(sum(shares.values()) / 2))
    json.dumps(parity.to_json(), allow_nan=False)


def test_answers_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="expected 3"):
        compare_outputs(REFERENCE, TEST, answers=Answers.of([IoSpec("map", (1, 3, 1))]))


def test_equal_numbers_of_maps_are_identical() -> None:
    parity = compare_outputs(REFERENCE, REFERENCE, answers=Answers.of([IoSpec("map", (1, 2, 1))]))
    assert (parity.sqnr_db, parity.outputs_sqnr_db) == (math.inf, {})


def test_equal_logits_have_infinite_sqnr_and_valid_json() -> None:
    parity = compare_outputs(REFERENCE, REFERENCE, LABELS)
    assert parity.sqnr_db == math.inf
    value = json.loads(json.dumps(parity.to_json(), allow_nan=False))
    assert value["sqnr_db"] is None
    assert value["identical"] is True


def test_numbers_that_are_none_are_an_error_not_a_score() -> None:
    broken = TEST.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ParityError, match=r"test logits of 1 of 5 images .* first image 3"):
        compare_outputs(REFERENCE, broken)
    with pytest.raises(ParityError, match="reference"):
        compare_outputs(np.full((2, 2), np.inf), np.zeros((2, 2)))


def test_shapes_are_checked() -> None:
    with pytest.raises(DataError, match="Shapes differ"):
        compare_outputs(REFERENCE, TEST[:2])
    with pytest.raises(DataError, match="Labels"):
        compare_outputs(REFERENCE, TEST, [0])
    with pytest.raises(DataError, match="images, classes"):
        compare_outputs(np.zeros((0, 2)), np.zeros((0, 2)))


class SumSession:
    """Its logits are the image's sum and its negative; it takes one batch size only."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.calls = 0

    def infer(self, feeds: Feeds) -> Outputs:
        images = feeds["input"]
        assert images.shape[0] == self.batch
        self.calls += 1
        total = images.sum(axis=(1, 2, 3), dtype=np.float32)
        return {"logits": np.stack([total, -total], axis=1).reshape(self.batch, 2, 1, 1)}

    def time(self, feeds: Feeds, plan: TimingPlan) -> Sequence[int]:
        raise NotImplementedError

    def layer_times(self, feeds: Feeds, runs: int = 50) -> Sequence[LayerTime]:
        raise NotImplementedError


@pytest.fixture
def images() -> NDArray[np.float32]:
    return np.arange(5 * 12, dtype=np.float32).reshape(5, 3, 2, 2)


@pytest.mark.parametrize(("batch", "calls"), [(1, 5), (2, 3), (5, 1), (8, 1)])
def test_run_session_fills_the_last_batch_and_drops_the_filling(
    batch: int, calls: int, images: NDArray[np.float32]
) -> None:
    session = SumSession(batch)
    logits = run_session(session, images, "input", "logits", batch=batch)
    assert session.calls == calls
    np.testing.assert_array_equal(logits[:, 0], images.sum(axis=(1, 2, 3)))
    assert logits.shape == (5, 2)


def test_run_session_refuses_bad_requests(images: NDArray[np.float32]) -> None:
    with pytest.raises(DataError, match="N >= 1"):
        run_session(SumSession(1), images[:0], "input", "logits")
    with pytest.raises(DataError, match="batch"):
        run_session(SumSession(1), images, "input", "logits", batch=0)
    with pytest.raises(ModelError, match="no output 'scores'"):
        run_session(SumSession(1), images, "input", "scores")


def test_layer_sqnr_keeps_the_networks_order_and_finds_the_first_drift() -> None:
    reference = {"late": np.ones(4), "early": np.ones(4), "only_float": np.ones(1)}
    layers = layer_sqnr(reference, {"early": np.ones(4), "late": np.full(4, 1.5)})
    assert [layer.name for layer in layers] == ["late", "early"]
    drift = first_drift(layers, 20.0)
    assert drift is not None
    assert drift.name == "late"
    assert drift.sqnr_db == pytest.approx(6.02, abs=0.01)
    assert first_drift(layers, 5.0) is None
    json.dumps([layer.to_json() for layer in layers], allow_nan=False)
    with pytest.raises(DataError, match="in common"):
        layer_sqnr(reference, {"other": np.ones(1)})
