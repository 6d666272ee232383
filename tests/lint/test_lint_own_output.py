"""What edgeattn exports and lowers for a target breaks none of that target's rules, whatever the attention."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from attention_kinds import RECIPE_KINDS
from attention_networks import quantized

from edgeattn.attention import attentions
from edgeattn.lint import DLA_FALLBACKS, fix_graph, lint_graph, plan_dla
from edgeattn.lower import lower_model
from edgeattn.onnx_graph import Graph

INSERTABLE = tuple(name for name in attentions if attentions.get(name).contract == "map")
# The five that recipes are made for run with every change; see attention_kinds.
NETWORKS = [
    pytest.param(name, marks=() if name in ("none", *RECIPE_KINDS) else pytest.mark.slow)
    for name in ("none", *INSERTABLE)
]

TRUE_FINDINGS = {
    # Its tokens are laid out as a map again in front of the next convolution: a Transpose that no spelling avoids.
    ("vit", "tensorrt"): {"OPS002": 1},
}
"""Findings about our own output that stay: what is wrong is true, and there is no exact way round it."""


@pytest.mark.parametrize(
    ("lint_target", "target", "profile"),
    [("tensorrt", "tensorrt-rtx", "s8"), ("openvino", "openvino-cpu", "u8"), ("ort", "ort-cpu", "u8")],
)
@pytest.mark.parametrize("kind", NETWORKS)
def test_our_own_output_has_a_clean_bill(kind: str, lint_target: str, target: str, profile: Any) -> None:
    lowered, _ = lower_model(quantized(kind, profile, target=target), target)
    found = lint_graph(Graph(lowered), lint_target)
    expected = TRUE_FINDINGS.get((kind, lint_target), {})
    assert Counter(item.rule for item in found) == expected, [(i.rule, i.node, i.value) for i in found]


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_falls_back_from_dla_is_known(kind: str) -> None:
    """With the exact fixes applied; everything else about the output is clean there too."""
    graph = Graph(quantized(kind, "s8", target="tensorrt-rtx"))
    fix_graph(graph, "dla")
    found = lint_graph(graph, "dla")
    # Beside what falls back, only what is true of tokens (OPS002), and of a gate that is applied twice (OPS004).
    assert {item.rule for item in found} <= {"DLA001", "DLA002", "OPS002", "OPS004"}
    where = {item.node for item in found if item.rule.startswith("DLA")}
    operations = {node.op_type for node in graph.nodes if node.name in where}
    expected = () if kind == "none" else DLA_FALLBACKS[kind]
    assert operations == set(expected)
    plan = plan_dla(graph)
    assert (plan.loadables, plan.gpu_parts) == (1, 0) if not expected else plan.gpu_parts > 0


def test_the_table_of_fallbacks_lists_every_insertable_attention() -> None:
    assert set(DLA_FALLBACKS) == set(INSERTABLE)


def test_the_bill_is_not_clean_where_the_wrong_profile_is_taken() -> None:
    assert {item.rule for item in lint_graph(Graph(quantized("eca", "u8")), "tensorrt")} >= {
        "TRT001",
        "TRT003",
    }
    assert "ORT001" in {item.rule for item in lint_graph(Graph(quantized("eca", "s8")), "ort")}
