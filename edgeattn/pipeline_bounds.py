"""The bounds on accuracy that calibration images can tell about, before any target runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from edgeattn.quant.config import PtqConfig
from edgeattn.quant.plan import LadderStep, Profile
from edgeattn.recipe import Accept, Recipe

__all__ = ["CalibrationBounds", "agreement_of", "calibration_config", "noise_of", "sqnr_of"]

_DB_IN_SHARES = 0.01
"""What a decibel weighs beside agreement, where no policy keeps all bounds and the nearest is taken."""


@dataclasses.dataclass(frozen=True)
class CalibrationBounds:
    """What `accept` asks of a plan's logits.

    Attributes:
        agreement: Least share of images with the float network's answer, by profile; 0 asks nothing.
        sqnr_db: Least signal to noise of the logits; None asks nothing.
    """

    agreement: Mapping[Profile, float]
    sqnr_db: float | None

    @classmethod
    def of(cls, accept: Accept, profiles: Sequence[Profile]) -> CalibrationBounds:
        """Return the bounds on some profiles."""
        u8 = accept.agreement_min if accept.agreement_min is not None else 0.0
        s8 = accept.s8_agreement_min if accept.s8_agreement_min is not None else u8
        every: dict[Profile, float] = {"u8": u8, "s8": s8}
        return cls({profile: every[profile] for profile in profiles}, accept.sqnr_db_min)

    def slack(self, step: LadderStep) -> float:
        """Return by how much a measured plan keeps the bounds; below 0 where it misses one."""
        found = [agreement_of(step, profile) - bound for profile, bound in self.agreement.items()]
        if self.sqnr_db is not None:
            found += [(sqnr_of(step, profile) - self.sqnr_db) * _DB_IN_SHARES for profile in self.agreement]
        return min(found)

    def noise_allowed(self, step: LadderStep, profile: Profile, images: int) -> float:
        """Return the largest power of error over power of signal that is predicted to keep the bounds.

        Answers change where an error is larger than a margin, and small margins are equally likely: the share of
        changed answers rises with the error's size, the root of its power.

        Args:
            step: A plan that was measured: its noise and its agreement fix that line.
            profile: Which spelling.
            images: How many it was measured on.
        """
        allowed = math.inf if self.sqnr_db is None else 10 ** (-self.sqnr_db / 10)
        if self.agreement[profile] > 0:
            got = round((1 - agreement_of(step, profile)) * images)
            most = math.floor((1 - self.agreement[profile]) * images + 1e-9)
            # Half an image: none that changed is fewer than one, not none at all.
            allowed = min(allowed, noise_of(step, profile) * ((most + 0.5) / (got + 0.5)) ** 2)
        return allowed


def calibration_config(recipe: Recipe) -> PtqConfig:
    """Return how a recipe's network is calibrated."""
    ptq = recipe.quant.ptq
    if recipe.tune is not None and recipe.tune.rank_by == "dla":
        # DLA has no pad of its own: the network would begin on the GPU.
        ptq = ptq.model_copy(update={"pixels": False, "padded_grids": False})
    if recipe.quant.mode == "qat":
        # Training tunes biases, roundings and everything else better than calibration can.
        return ptq.model_copy(update={"tuning_steps": 0, "rounding": False, "bias_correction": False})
    return ptq


def agreement_of(step: LadderStep, profile: Profile) -> float:
    """Return a profile's share of images with the float network's answer; 0, which keeps no bound, without classes."""
    return (step.agreement_u8 if profile == "u8" else step.agreement_s8) or 0.0


def sqnr_of(step: LadderStep, profile: Profile) -> float:
    """Return a profile's signal to noise of the logits, in dB."""
    return step.sqnr_db_u8 if profile == "u8" else step.sqnr_db_s8


def noise_of(step: LadderStep, profile: Profile) -> float:
    """Return a profile's power of error over power of signal."""
    return float(10 ** (-sqnr_of(step, profile) / 10))
