"""What holds of any network's engines: they run, decide the same, and their layers compute the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeattn.answers import Answers
from edgeattn.measure import AcceptBounds, compare_outputs, judge
from edgeattn.pipeline_deploy import FAR_DB

__all__ = ["AGREEMENT_BETWEEN", "OVER_ONE_SHARE", "TOP1_SPREAD", "judge_parity", "top1_spread"]

AGREEMENT_BETWEEN = 0.995
"""Least agreement of two targets of one profile."""
OVER_ONE_SHARE = 1e-3
"""Largest share of a layer's values more than one step from the reference, given the same inputs."""
APART_DB = 6.0
"""How much more than each from the float network two engines may differ: errors that have nothing to do with each other
add up to 3 dB more, and to more on single images."""
TOP1_SPREAD = 0.002
"""Largest distance between the top-1 of two targets of one profile."""

_ROUNDING_HINT = (
    "; given the same inputs no layer of either differs by more than rounding: with quant.ptq.exact: true in the recipe "
    "their convolutions have nothing to round"
)


def top1_spread(targets: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return, by profile, how far top-1 of its targets lies apart; nothing without labels or with one target.

    Args:
        targets: By name, what `edgeattn.pipeline_parity.parity_model` found for each.
    """
    scores: dict[str, list[float]] = {}
    for entry in targets.values():
        if entry["status"] == "ok" and entry.get("top1") is not None:
            scores.setdefault(entry["profile"], []).append(float(entry["top1"]))
    return {profile: max(found) - min(found) for profile, found in scores.items() if len(found) > 1}


def judge_parity(
    result: Mapping[str, Any],
    logits: Mapping[str, NDArray[np.float32]],
    answers: Answers | None = None,
) -> dict[str, Any]:
    """Return ``passed`` and ``reasons``.

    A target that is not available here is no reason; one that failed is, and so is a comparison of nothing.

    Args:
        result: With ``n``, ``targets``, ``between`` and ``top1_spread``.
        logits: By target that ran, (n, classes), or all outputs, flattened.
        answers: What the network answers; None means scores of classes, which have to be the same. Other outputs have
            to be as near to each other as engines are whose roundings have nothing to do with each other.
    """
    targets = result["targets"]
    reasons = [
        _reason(label, "status", None, None, f"failed: {entry['error']}", passed=False)
        for label, entry in targets.items()
        if entry["status"] == "failed"
    ]
    for pair, both in result["between"].items():
        if not both["same_profile"]:
            continue
        first, second = pair.split("/")
        if answers is not None and not answers.are_classes:
            reasons.append(_judge_outputs(pair, both, targets[first], targets[second]))
        else:
            parity = compare_outputs(logits[first], logits[second])
            for reason in judge(AcceptBounds(agreement_min=AGREEMENT_BETWEEN), parity).reasons:
                item = {"about": pair, **reason.to_json()}
                if not reason.passed and _only_rounds(targets[first]) and _only_rounds(targets[second]):
                    item["text"] += _ROUNDING_HINT
                reasons.append(item)
    reasons += [
        _judge_layers(label, entry["layers"]) for label, entry in targets.items() if entry.get("layers")
    ]
    for profile, spread in result["top1_spread"].items():
        if result["n"] * TOP1_SPREAD >= 1:  # else one image alone is more than the bound
            text = f"top-1 of its targets lies within {spread:.2%}; accepted is at most {TOP1_SPREAD:.1%}"
            passed = spread <= TOP1_SPREAD
            reasons.append(_reason(profile, "top1_spread", TOP1_SPREAD, spread, text, passed=passed))
    if not reasons:
        text = "nothing was compared: fewer than two targets of one profile ran, and no layers"
        reasons.append(_reason("parity", "status", None, None, text, passed=False))
    return {"passed": all(reason["passed"] for reason in reasons), "reasons": reasons}


def _judge_outputs(
    pair: str, both: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, Any]:
    """Judge outputs of which no number is to be the largest."""
    got, *costs = (_db(item) for item in (both, first, second))
    bound = min(FAR_DB, min(costs) - APART_DB)
    nearer = f"are {got:.1f} dB apart" if math.isfinite(got) else "are identical"
    text = (
        f"the outputs {nearer}; accepted is at least {bound:.1f} dB: {FAR_DB:.0f}, or {APART_DB:.0f} less than what the "
        "one that is farther has against the float network"
    )
    measured = got if math.isfinite(got) else None
    return _reason(pair, "sqnr_db", bound, measured, text, passed=got >= bound)


def _db(parity: Mapping[str, Any]) -> float:
    """Return the SQNR as it was measured: JSON has no infinity."""
    if parity["sqnr_db"] is not None:
        return float(parity["sqnr_db"])
    return math.inf if parity["identical"] else -math.inf


def _only_rounds(entry: Mapping[str, Any]) -> bool:
    """Return whether a target's layers were compared, and what they differ by is rounding."""
    layers = (entry.get("layers") or {}).get("layers", [])
    return bool(layers) and not any(layer["finding"]["is_error"] for layer in layers)


def _judge_layers(label: str, layers: Mapping[str, Any]) -> dict[str, Any]:
    errors = [layer for layer in layers["layers"] if layer["finding"]["is_error"]]
    worst = max(layers["layers"], key=lambda layer: float(layer["over_one_share"]), default=None)
    share = 0.0 if worst is None else float(worst["over_one_share"])
    text = (
        f"given the same inputs, at most {share:.3%} of a layer's values are more than one step from the "
        f"reference; accepted is at most {OVER_ONE_SHARE:.1%}"
    )
    if errors:
        first = errors[0]
        text += (
            f"; {len(errors)} of {len(layers['layers'])} layers differ by more than rounding, first "
            f"{first['module'] or first['name']} ({first['finding']['cause']}: {first['finding']['evidence']})"
        )
    passed = share <= OVER_ONE_SHARE and not errors
    return _reason(label, "over_one_share", OVER_ONE_SHARE, share, text, passed=passed)


def _reason(
    about: str, metric: str, bound: float | None, measured: float | None, text: str, *, passed: bool
) -> dict[str, Any]:
    return {
        "about": about,
        "metric": metric,
        "bound": bound,
        "measured": measured,
        "passed": passed,
        "certain": None,
        "text": text,
    }
