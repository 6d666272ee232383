"""Judge what an engine runs in INT8, by what its build tells: a bound of the recipe, or a failed build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeattn.errors import CoverageError
from edgeattn.report import ReasonResult

__all__ = ["STRICT_COVERAGE", "check_coverage", "judge_coverage"]

STRICT_COVERAGE = 1.0
"""What a strict build must reach where no bound is set: every layer with weights, gates left out."""

_NAMED = 6


def judge_coverage(name: str, build: Mapping[str, Any], wanted: float | None) -> list[ReasonResult]:
    """Judge what was built; targets that do not tell what they built are not judged.

    Args:
        name: Of the target.
        build: An engine's details.
        wanted: The bound; 1 also forbids float32 kernels before the last layer.
    """
    coverage = build.get("coverage")
    if wanted is None or not isinstance(coverage, dict) or coverage.get("int8_coverage") is None:
        return []
    got, missing = float(coverage["int8_coverage"]), list(coverage["not_int8"])
    floating = list(coverage["float32_kernel_names"]) if wanted == 1.0 else []
    text = f"{100 * got:.1f} % of {coverage['convolutions']} layers with weights run in INT8, wanted {100 * wanted:.1f} %"
    if missing:
        text += f"; not {'; '.join(_by_module(missing))}"
    if floating:
        text += f"; {coverage['float32_kernels']} kernels compute in float32: {', '.join(floating)}"
    return [
        ReasonResult(
            bound="int8_coverage_min",
            target=name,
            wanted=wanted,
            got=got,
            passed=got >= wanted and not floating,
            text=text,
        )
    ]


def check_coverage(name: str, build: Mapping[str, Any], wanted: float) -> None:
    """Fail a build that runs less in INT8 than wanted; targets that do not tell pass.

    Args:
        name: Of the target.
        build: An engine's details.
        wanted: The bound; 1 also forbids float32 kernels before the last layer.

    Raises:
        CoverageError: With the layers that are not INT8, by module of the network.
    """
    if all(reason.passed for reason in judge_coverage(name, build, wanted)):
        return
    coverage = build["coverage"]
    where = f" for {build['compute_capability']}" if build.get("compute_capability") else ""
    share = f"{100 * coverage['int8_coverage']:.1f} % of {coverage['convolutions']} layers with weights"
    lines = [f"{share} run in INT8{where}; --strict wants {100 * wanted:.1f} % (accept.int8_coverage_min)."]
    if coverage["not_int8"]:
        lines += ["Not INT8, by module:", *(f"  {line}" for line in _by_module(coverage["not_int8"]))]
    if wanted == 1.0 and coverage["float32_kernels"]:
        names = ", ".join(coverage["float32_kernel_names"][:_NAMED])
        lines.append(f"{coverage['float32_kernels']} kernels compute in float32: {names}")
    lines.append(
        "`edgeattn lint` says why layers fall out of INT8; or lower the bound, or leave --strict out."
    )
    raise CoverageError("\n".join(lines), build)


def _by_module(layers: Sequence[str]) -> list[str]:
    """Return one line for each module, such as ``features.3 (2): features/3/conv/0, features/3/conv/1``."""
    modules: dict[str, list[str]] = {}
    for layer in layers:
        parts = layer.split("_token_")[0].strip("/").split("/")
        depth = 2 if len(parts) > 2 and parts[1].isdigit() else 1
        modules.setdefault(".".join(parts[:depth]), []).append(layer)
    return [
        f"{module} ({len(names)}): {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
        for module, names in modules.items()
    ]
