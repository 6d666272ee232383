"""What the results of a study say, and the page that says it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from edgeattn.errors import ArtifactError
from edgeattn.report_study import (
    MODES,
    CellResult,
    Mode,
    StudyResults,
    load_results,
    save_results,
    summarize_study,
)
from edgeattn.report_study_page import conclusions, render_study_page, study_json, write_study_page


def cell(attention: str, seed: int, fp32: float, **others: float) -> CellResult:
    top1: dict[Mode, float] = {mode: others.get(mode, fp32) for mode in MODES}
    return CellResult(
        data="signs",
        network="net",
        attention=attention,
        seed=seed,
        fingerprint="0123456789abcdef",
        data_sha256="f" * 16,
        train_images=1651,
        test_images=411,
        epochs=8,
        qat_epochs=2,
        top1=top1,
        seconds=120.0,
        machine="A processor",
        version="1",
    )


def study() -> StudyResults:
    """Seeds differ by far more than attentions do: only pairing sees the difference."""
    base = (0.80, 0.90, 0.70)
    results = StudyResults()
    for seed, top1 in enumerate(base):
        jitter = 0.001 * seed
        results.put(cell("none", seed, top1, ptq_s8=top1 - 0.05 - jitter))
        results.put(cell("se", seed, top1 + 0.02 + jitter))
        results.put(cell("eca", seed, top1 + 0.01 * (seed - 1)))
        results.put(cell("triplet", seed, top1 - 0.03 - jitter))
    results.put(cell("cbam", 1, 0.95))
    return results


def test_differences_are_paired_by_seed() -> None:
    (block,) = summarize_study(study().cells, ("se", "eca"))
    assert block.attentions == ("none", "se", "eca", "cbam", "triplet")
    none, se = block.top1["none"]["fp32"], block.versus_none["se"]["fp32"]
    assert (none.mean, none.seeds) == (pytest.approx(0.8), 3)
    # 0.1 from seed to seed: the interval of the mean alone holds everything.
    assert none.interval == pytest.approx((0.8 - 0.24841, 0.8 + 0.24841), abs=1e-4)
    # The differences are 0.020, 0.021, 0.022: 0.021 +- 4.3027 * 0.001 / sqrt(3).
    assert se.mean == pytest.approx(0.021)
    assert se.interval == pytest.approx((0.021 - 0.002484, 0.021 + 0.002484), abs=1e-6)
    assert block.seeds == (1, 3)
    # The one seed of cbam is compared with the same seed of none.
    assert block.versus_none["cbam"]["fp32"].mean == pytest.approx(0.05)
    assert block.versus_none["cbam"]["fp32"].interval is None
    assert block.versus_fp32["none"]["ptq_s8"].mean == pytest.approx(-0.051)
    assert "fp32" not in block.versus_fp32["none"]


def test_seeds_that_only_one_side_has_are_left_out_of_a_difference() -> None:
    cells = [cell("none", 0, 0.5), cell("none", 1, 0.9), cell("se", 1, 0.8), cell("se", 2, 0.1)]
    (block,) = summarize_study(cells)
    assert block.versus_none["se"]["fp32"].mean == pytest.approx(-0.1)
    assert block.versus_none["se"]["fp32"].seeds == 1
    (alone,) = summarize_study([cell("none", 0, 0.5), cell("se", 1, 0.8)])
    assert alone.versus_none == {}
    (without,) = summarize_study([cell("se", 1, 0.8)])
    assert conclusions(without) == ["Not compared: the network without attention is not finished."]


def test_the_sentences_say_where_attention_does_not_pay() -> None:
    (block,) = summarize_study(study().cells)
    assert block.verdicts("fp32") == {
        "better": ["se"],
        "equal": ["eca"],
        "worse": ["triplet"],
        "unknown": ["cbam"],
    }
    text = " ".join(conclusions(block))
    assert "FP32: better than none beyond the interval: se (+2.10 ± 0.25)" in text
    assert "not told from none, so that it does not pay here: eca (+0.00 ± 2.48)" in text
    assert "worse than none beyond the interval: triplet (-3.10 ± 0.25)" in text
    assert "fewer than three seeds, so that nothing can be said: cbam (+5.00)" in text
    assert (
        "INT8 loses against FP32 of the same network beyond the interval: none PTQ s8 (-5.10 ± 0.25)." in text
    )
    (equal,) = summarize_study([cell("none", seed, 0.8) for seed in range(3)])
    assert (
        conclusions(equal)[-1] == "INT8 loses nowhere against FP32 of the same network beyond the interval."
    )


def test_the_page_says_how_ptq_was_tuned() -> None:
    tuned = cell("none", 0, 0.9).model_copy(update={"ptq_tuning_steps": 120})
    for cells, said in (
        ([cell("none", 0, 0.9)], "PTQ leaves out the tuning of biases and ranges."),
        ([tuned], "PTQ tunes biases and ranges in 120 steps."),
        (
            [tuned, cell("none", 1, 0.9)],
            "PTQ leaves out the tuning of biases and ranges or tunes biases and ranges in 120 steps.",
        ),
    ):
        assert said in render_study_page(summarize_study(cells), "A study", {})


def test_two_seeds_that_are_equal_by_chance_are_no_verdict() -> None:
    """Accuracies are whole images: two seeds often differ from FP32 by the same number of them."""
    cells = [
        cell(name, seed, 0.8 + 0.1 * seed, ptq_u8=0.79 + 0.1 * seed)
        for name in ("none", "se")
        for seed in (0, 1)
    ]
    (block,) = summarize_study(cells)
    assert block.versus_fp32["se"]["ptq_u8"].interval == pytest.approx((-0.01, -0.01))
    assert block.verdicts("fp32")["unknown"] == ["se"]
    assert (
        conclusions(block)[-1] == "With fewer than three seeds nothing can be said about INT8 against FP32."
    )


def test_of_a_network_with_one_seed_nothing_is_said_about_int8() -> None:
    (mixed,) = summarize_study([*(cell("none", seed, 0.8) for seed in range(3)), cell("se", 0, 0.8)])
    assert conclusions(mixed)[-1].endswith(
        "beyond the interval. Of se there are fewer than three seeds, which say nothing about it."
    )
    (single,) = summarize_study([cell("none", 0, 0.8), cell("se", 0, 0.8)])
    assert (
        conclusions(single)[-1] == "With fewer than three seeds nothing can be said about INT8 against FP32."
    )


def test_the_page_has_every_figure_and_its_plots(tmp_path: Path) -> None:
    page = write_study_page(study(), tmp_path, title="A study", attentions=("se",)).read_text()
    assert "# A study" in page
    assert "1,651 training and 411 test images; 8 epochs, QAT 2 more; 1 to 3 seeds." in page
    assert "A network took 2.0 minutes on average on one core of A processor." in page
    assert "| se | 3 | 82.10 ± 24.72 |" in page
    assert "| cbam | 1 | 95.00 | 95.00 |" in page
    assert "](signs_net.svg)" in page
    root = ET.fromstring((tmp_path / "signs_net.svg").read_text())
    assert root.tag.endswith("svg")
    shown = "".join(root.itertext())
    assert all(name in shown for name in ("se", "triplet", "QAT s8", "attention less none"))
    # The same results are the same files, so that a commit shows what changed.
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_study_page(study(), tmp_path, title="A study", attentions=("se",))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_page_without_results_says_so() -> None:
    assert "No network is finished yet" in render_study_page([], "A study", {})


def test_names_cannot_break_the_page() -> None:
    hostile = cell("none", 0, 0.5).model_copy(update={"machine": "<script>|\n# x"})
    page = render_study_page(summarize_study([hostile]), "<b>", {})
    assert "<script>" not in page
    assert "<b>" not in page
    assert "\n# x" not in page


def test_results_read_back_equal_and_a_cell_is_one_line(tmp_path: Path) -> None:
    results = study()
    path = save_results(results, tmp_path)
    assert load_results(tmp_path) == results
    assert json.loads(path.read_text())["schema_version"] == 1
    assert len(path.read_text().splitlines()) == len(results.cells) + 5
    save_results(StudyResults(), tmp_path)
    assert load_results(tmp_path).cells == []
    assert load_results(tmp_path / "nowhere").cells == []


def test_a_cell_that_is_put_again_takes_the_old_ones_place() -> None:
    results = study()
    count = len(results.cells)
    results.put(cell("se", 0, 0.1))
    assert len(results.cells) == count
    found = results.find(("signs", "net", "se", 0))
    assert found is not None
    assert found.top1["fp32"] == 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 99}, "Upgrade edgeattn"),
        ({"cells": [{"data": "a"}]}, "does not hold results of a study"),
        ({"more": 1}, "does not hold results of a study"),
        ({"cells": [json.loads(cell("se", 0, 0.5).model_dump_json())] * 2}, "same cell twice"),
        ({"cells": [{**json.loads(cell("se", 0, 0.5).model_dump_json()), "top1": {"fp32": 1.5}}]}, "top1"),
    ],
)
def test_results_that_are_none_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"schema_version": 1, "cells": [], **change}))
    with pytest.raises(ArtifactError, match=said):
        load_results(tmp_path)


def test_the_json_holds_cells_and_conclusions() -> None:
    value = json.loads(json.dumps(study_json(study())))
    assert len(value["cells"]) == 13
    (summary,) = value["summary"]
    assert summary["versus_none"]["se"]["fp32"]["seeds"] == 3
    assert summary["conclusions"]
