"""What in an ONNX model will be slow, fall back or go wrong on a target, and what repairs it."""

from __future__ import annotations

from collections.abc import Sequence

from edgeattn.errors import RecipeError, close_matches_hint
from edgeattn.lint.base import LINT_TARGETS, Evidence, Finding, LintTarget, Rule, View
from edgeattn.lint.dla_fallbacks import DLA_FALLBACKS
from edgeattn.lint.dla_plan import DlaPart, DlaPlan, choose_for_dla, plan_dla
from edgeattn.lint.rules import RULES
from edgeattn.onnx_graph import Graph

__all__ = [
    "DLA_FALLBACKS",
    "LINT_TARGETS",
    "RULES",
    "DlaPart",
    "DlaPlan",
    "Evidence",
    "Finding",
    "LintTarget",
    "Rule",
    "choose_for_dla",
    "fix_graph",
    "lint_graph",
    "plan_dla",
    "rules_for",
]

_MOST_ROUNDS = 4


def rules_for(target: str) -> tuple[Rule, ...]:
    """Return the rules of a target.

    Raises:
        RecipeError: If there are none for such a target.
    """
    if target not in LINT_TARGETS:
        raise RecipeError(
            f"There are no lint rules for the target {target!r}. {close_matches_hint(target, LINT_TARGETS)}"
        )
    return tuple(rule for rule in RULES if target in rule.targets)


def lint_graph(graph: Graph, target: str) -> list[Finding]:
    """Return everything that breaks a rule of a target, errors first; the fixes are tried on a copy.

    Raises:
        RecipeError: If there are no rules for such a target.
    """
    found = _find(graph, target)
    stays = {(rule.id, item.node) for rule, item in found}
    if any(rule.fix is not None for rule, _ in found):
        copy = Graph(graph.to_model())
        fix_graph(copy, target)
        stays = {(rule.id, item.node) for rule, item in _find(copy, target)}
    findings = [
        Finding(
            rule=rule.id,
            title=rule.title,
            severity=rule.severity,
            why=rule.why,
            node=item.node,
            tensor=item.tensor,
            value=item.value,
            fixable=(rule.id, item.node) not in stays,
            rounds=rule.rounds,
        )
        for rule, item in found
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def _find(graph: Graph, target: str) -> list[tuple[Rule, Evidence]]:
    view = View(graph)
    return [(rule, item) for rule in rules_for(target) for item in rule.find(view)]


def fix_graph(graph: Graph, target: str) -> Sequence[str]:
    """Rewrite a graph in place by the fixes of the rules that it breaks.

    Returns:
        Ids of the rules whose fix changed something.

    Raises:
        RecipeError: If there are no rules for such a target.
    """
    changed: list[str] = []
    for _ in range(_MOST_ROUNDS):
        again = False
        for rule in rules_for(target):
            if rule.fix is not None and any(True for _ in rule.find(View(graph))) and rule.fix(graph):
                graph.remove_unused()
                graph.sort()
                changed.append(rule.id)
                again = True
        if not again:
            break
    return list(dict.fromkeys(changed))
