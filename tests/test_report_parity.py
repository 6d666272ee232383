"""README's table of engines beside each other is what was printed of them, and refuses anything else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from report_samples import make_report

from edgeattn.errors import ArtifactError
from edgeattn.report import write_report
from edgeattn.report_parity import PARITY_HEADER, keep_parity, parity_rows

LAYERS = {
    "images": 2,
    "different_share": 1e-6,
    "layers": [{"over_one_share": 0.0}, {"over_one_share": 2e-4}],
}
PRINTED: dict[str, Any] = {
    "n": 1000,
    "data": {"seen": 589},
    "environment": {"cpu": {"model": "A CPU"}},
    "targets": {
        "a": {
            "status": "ok",
            "profile": "u8",
            "version": "1",
            "top1": 0.99,
            "agreement": 0.999,
            "layers": LAYERS,
        },
        "b": {"status": "ok", "profile": "u8", "version": "1", "top1": 0.989, "agreement": 0.998},
        "c": {"status": "failed", "profile": "u8", "error": "no"},
    },
    "between": {"a/b": {"agreement": 0.997, "sqnr_db": 41.66, "identical": False, "same_profile": True}},
    "top1_spread": {"u8": 0.001},
    "verdict": {"passed": False},
}


def _keep(folder: Path, printed: Any) -> Path:
    write_report(make_report(), folder / "run")
    path = folder / "printed.json"
    path.write_text(json.dumps(printed))
    return keep_parity(folder / "run", path, folder / "kept")


def test_a_row_says_the_worst_of_what_was_printed(tmp_path: Path) -> None:
    kept = _keep(tmp_path, PRINTED)
    assert kept.name == "sample.json"
    (row,) = parity_rows(tmp_path / "kept")
    assert len(row) == len(PARITY_HEADER)
    assert row == (
        "sample",
        "u8",
        "a, b, c (failed)",
        "1,000 (589 of them learned from)",
        "99.70 %",
        "41.7 dB",
        "0.10 points",
        "0.020%",
    )


def test_the_same_targets_take_the_place_of_an_earlier_comparison(tmp_path: Path) -> None:
    _keep(tmp_path, PRINTED)
    again = copy.deepcopy(PRINTED)
    again["n"] = 500
    _keep(tmp_path, again)
    other = copy.deepcopy(PRINTED)
    del other["targets"]["c"]
    other["between"]["a/b"] |= {"identical": True, "sqnr_db": None}
    _keep(tmp_path, other)
    rows = parity_rows(tmp_path / "kept")
    assert [row[3].split()[0] for row in rows] == ["1,000", "500"]
    assert rows[0][5] == "identical"


def test_each_profile_has_its_row_with_its_own_figures(tmp_path: Path) -> None:
    both = copy.deepcopy(PRINTED)
    both["targets"] = {
        f"{name}:{profile}": {**PRINTED["targets"][name], "profile": profile}
        for name in "ab"
        for profile in ("u8", "s8")
    }
    del both["targets"]["a:s8"]["layers"]
    same = PRINTED["between"]["a/b"]
    both["between"] = {
        "a:u8/b:u8": same,
        "a:s8/b:s8": {**same, "agreement": 0.9},
        "a:u8/b:s8": {**same, "agreement": 0.5, "same_profile": False},
    }
    both["top1_spread"] = {"u8": 0.001, "s8": 0.02}
    _keep(tmp_path, {**PRINTED, "targets": {name: PRINTED["targets"][name] for name in "ab"}})
    _keep(tmp_path, both)  # in place of the one of u8 alone
    u8, s8 = parity_rows(tmp_path / "kept")
    assert (u8[1:3], u8[4], u8[6:]) == (("u8", "a, b"), "99.70 %", ("0.10 points", "0.020%"))
    assert (s8[1:3], s8[4], s8[6:]) == (("s8", "a, b"), "90.00 %", ("2.00 points", "-"))


def test_another_profile_of_the_same_targets_stands_beside_the_first(tmp_path: Path) -> None:
    _keep(tmp_path, PRINTED)
    signed = copy.deepcopy(PRINTED)
    for target in signed["targets"].values():
        target["profile"] = "s8"
    signed["top1_spread"] = {"s8": 0.001}
    _keep(tmp_path, signed)
    assert sorted(row[1] for row in parity_rows(tmp_path / "kept")) == ["s8", "u8"]


@pytest.mark.parametrize("printed", [[], {"n": 1}, {**PRINTED, "targets": []}, {**PRINTED, "n": "many"}])
def test_anything_else_is_refused(tmp_path: Path, printed: Any) -> None:
    with pytest.raises(ArtifactError, match="is not what `edgeattn parity RUN --json` prints"):
        _keep(tmp_path, printed)
    assert not (tmp_path / "kept").exists()


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    kept = _keep(tmp_path, PRINTED)
    kept.write_text(json.dumps({"comparisons": [{"n": 1}]}))
    with pytest.raises(ArtifactError, match="not whole"):
        parity_rows(kept.parent)
