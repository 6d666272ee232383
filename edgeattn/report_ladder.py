"""The ladder of post-training quantization as a table: what each step reached, and what it gained."""

from __future__ import annotations

from pydantic import ValidationError

from edgeattn.errors import ArtifactError
from edgeattn.report import Report

__all__ = ["LADDER_HEADER", "LADDER_SAYS", "ladder_rows"]

LADDER_HEADER = (
    "step",
    "SQNR u8",
    "gain",
    "SQNR s8",
    "gain",
    "agreement u8",
    "agreement s8",
    "seconds",
    "kept",
)
LADDER_SAYS = "PTQ's ladder on held-out calibration images, simulated; gains against the last step before it that was kept"


def ladder_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row for each step, in order; none for a report without a ladder.

    Raises:
        ArtifactError: If the report's ladder is not one.
    """
    from edgeattn.quant.plan import LadderStep

    value = report.quant.get("ladder") or []
    try:
        steps = [LadderStep.model_validate(item) for item in value] if isinstance(value, list) else []
    except ValidationError as exc:
        raise ArtifactError(
            f"The report of {report.name} has a ladder that is none ({exc.errors()[0]['msg']}). Run again to make it anew."
        ) from exc
    rows: list[tuple[str, ...]] = []
    before: LadderStep | None = None
    for step in steps:
        rows.append(
            (
                step.step,
                f"{step.sqnr_db_u8:.2f} dB",
                f"{step.sqnr_db_u8 - before.sqnr_db_u8:+.2f}" if before else "-",
                f"{step.sqnr_db_s8:.2f} dB",
                f"{step.sqnr_db_s8 - before.sqnr_db_s8:+.2f}" if before else "-",
                _share(step.agreement_u8),
                _share(step.agreement_s8),
                f"{step.seconds:.0f}",
                "yes" if step.kept else "no",
            )
        )
        before = step if step.kept else before
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
