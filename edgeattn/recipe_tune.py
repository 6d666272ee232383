"""What of a network measurements on its target may choose."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeattn.quant.config import GatePolicy

__all__ = ["TuneSpec"]


class TuneSpec(BaseModel):
    """Let measurements on the first target choose edge forms and gate policy.

    What was found is kept in the user's cache for this machine and runtime, and the next run reuses it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policies: Annotated[
        tuple[GatePolicy, ...],
        Field(
            min_length=1,
            description="Policies to try. The fastest that keeps accept.agreement_min on calibration images "
            "is taken.",
        ),
    ] = ("int8", "fixed", "float")
    by_size: Annotated[
        bool,
        Field(
            description="Also let gates on maps of different sizes take different forms: some minutes more."
        ),
    ] = False
    by_gate: Annotated[
        bool,
        Field(
            description="Also let each gate take a policy of its own: the fastest mix that keeps accept's "
            "agreement_min, s8_agreement_min and sqnr_db_min on calibration images held out, if it is faster than "
            "one policy for all beyond doubt. Times gates by map size, and calibrates a few times more."
        ),
    ] = False
    rank_by: Annotated[
        Literal["speed", "dla"],
        Field(
            description="speed: time, or where nothing can run the kernels of a build. dla: fewest hand-overs between "
            "a Jetson's deep learning accelerator and its GPU, by NVIDIA's tables; nothing is built."
        ),
    ] = "speed"

    @model_validator(mode="after")
    def _gates_have_a_choice(self) -> TuneSpec:
        if self.by_gate and self.rank_by == "dla":
            raise ValueError(
                "by_gate needs speeds, and rank_by is dla, which builds nothing: leave one of them out"
            )
        if self.by_gate and len(set(self.policies)) < 2:
            raise ValueError(
                f"by_gate chooses among policies, which is only {self.policies[0]}: name another one, or leave it out"
            )
        return self
