"""Tuning times every exact form and policy, keeps what is faster, and is asked once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeattn import load_recipe, run_recipe
from edgeattn.attention import attentions
from edgeattn.cli import app
from edgeattn.errors import ArtifactError, RecipeError, TargetUnavailable
from edgeattn.pipeline import plan_steps
from edgeattn.pipeline_train import _Preparation
from edgeattn.pipeline_tune import can_tune, tune
from edgeattn.pipeline_tune_store import Tuning, TuningStore, tuning_key
from edgeattn.pipeline_workspace import Workspace
from edgeattn.progress import SilentProgress
from edgeattn.recipe import Recipe
from edgeattn.targets import TimingPlan, get_target
from edgeattn.targets._transport import LocalTransport
from edgeattn.targets.jetson_ssh import JetsonSsh
from edgeattn.targets.tensorrt_rtx import TensorRtRtx

SMALL = ("model.width=0.1", "train.epochs=0", "targets=[ort-cpu]", "quant.mode=ptq", "accept={}")
BRIEF = TimingPlan(warmup_runs=1, min_runs=16, min_seconds=0.2)


def recipe(*overrides: str) -> Recipe:
    path = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    return load_recipe(path, [*SMALL, *overrides])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[TuningStore, Tuning]:
    """One tuning of the quickstart's network, forms by size included."""
    store = TuningStore(tmp_path_factory.mktemp("cache"))
    asked = recipe("tune={by_size: true}", "attention.kind=se")
    return store, tune(asked, store=store, timing=BRIEF)


def test_every_form_and_policy_is_timed_once(tuned: tuple[TuningStore, Tuning]) -> None:
    _, tuning = tuned
    by_stage: dict[str, list[Any]] = {}
    for item in tuning.candidates:
        by_stage.setdefault(item.stage, []).append(item)
    assert [item.forms["se"] for item in by_stage["form"]] == ["mean_conv"]
    assert [item.policy for item in by_stage["policy"]] == ["fixed", "float"]
    assert sorted(tuning.policies) == ["fixed", "float", "int8"]
    # One candidate for every size: maps of one shape change together.
    paths = [set(item.forms) - {"se"} for item in by_stage["size"]]
    assert len(paths) > 1
    assert all(paths)


def test_what_is_kept_was_faster_beyond_doubt(tuned: tuple[TuningStore, Tuning]) -> None:
    _, tuning = tuned
    for item in tuning.candidates:
        assert item.latency_ms > 0
        assert item.ratio_interval[0] <= item.ratio <= item.ratio_interval[1]
        if item.stage == "start":
            assert (item.ratio, item.forms) == (1.0, {"se": "pool_conv"})
        elif item.kept and item.stage != "policy":
            assert item.ratio_interval[1] < 1
    kept = [item.forms for item in tuning.candidates if item.kept]
    assert tuning.forms == kept[-1]


def test_what_the_others_are_compared_with_comes_first(tuned: tuple[TuningStore, Tuning]) -> None:
    _, tuning = tuned
    assert [item.stage for item in tuning.candidates].index("start") == 0
    assert [item.stage for item in tuning.candidates].count("start") == 1
    assert tuning.candidates[0].kept == (not any(item.kept for item in tuning.candidates[1:]))


def test_the_same_question_is_answered_from_the_store(tuned: tuple[TuningStore, Tuning]) -> None:
    store, tuning = tuned
    asked = recipe("tune={by_size: true}", "attention.kind=se")
    assert tune(asked, store=store, timing=BRIEF) == tuning
    assert len(list(store.folder.iterdir())) == 1


def test_an_answer_holds_for_its_network_target_threads_and_machine_only(
    tuned: tuple[TuningStore, Tuning],
) -> None:
    _, tuning = tuned
    assert tuning.key["target"] == "ort-cpu"
    assert tuning.key["runtime"] == get_target("ort-cpu").probe().version
    assert tuning.key["threads"] == 1
    assert tuning.key["machine"]["instruction_sets"]
    assert tuning.key["network"]["size"] == 32
    assert tuning.key["attention"]["kind"] == "se"


def test_what_was_measured_on_one_device_holds_for_no_other(tmp_path: Path) -> None:
    asked = recipe("tune={}")
    hosts = [JetsonSsh(host=host, transport=LocalTransport(tmp_path)) for host in ("orin", "orin", "thor")]
    first, again, other = (tuning_key(asked, target, 1) for target in hosts)
    assert first == again
    assert {key for key in first if first[key] != other[key]} == {"device"}
    planned = [tuning_key(recipe("tune={rank_by: dla}"), target, 1) for target in hosts]
    assert planned[0] == planned[2], "NVIDIA's tables are the same for both"
    assert TensorRtRtx(compute_capability="SM120").device.endswith("SM120")


@pytest.mark.parametrize("damage", ["{}", "other"])
def test_a_damaged_answer_is_refused(tuned: tuple[TuningStore, Tuning], tmp_path: Path, damage: str) -> None:
    store, tuning = tuned
    other = TuningStore(tmp_path)
    value = json.loads(store.path(tuning.key).read_text())
    value["key"]["threads"] = 99
    other.path(tuning.key).write_text(json.dumps(value) if damage == "other" else damage)
    with pytest.raises(ArtifactError, match="Delete it"):
        other.load(tuning.key)


def test_an_option_that_the_mechanism_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"attention\.options: .*no option 'reduction'"):
        tune(recipe("attention={kind: eca, options: {reduction: 8}}"), store=TuningStore(tmp_path))


def test_the_steps_of_a_run_say_that_it_tunes() -> None:
    assert "tune" not in [step.name for step in plan_steps(recipe())]
    step = next(step for step in plan_steps(recipe("tune={}")) if step.name == "tune")
    assert not step.why_skipped
    assert "coord" in step.what
    assert "ort-cpu" in step.what
    bare = next(
        step for step in plan_steps(recipe("tune={}", "attention={kind: none}")) if step.name == "tune"
    )
    assert bare.why_skipped == "there is no attention"


def test_a_network_without_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing to tune"):
        tune(recipe("attention={kind: none}"), store=TuningStore(tmp_path))


def test_a_target_that_can_neither_run_nor_build_is_refused_with_its_reason(tmp_path: Path) -> None:
    here = get_target("tensorrt").probe()
    if here.can_run or here.can_build:
        pytest.skip("TensorRT is here, so there is something to tune by")
    with pytest.raises(TargetUnavailable, match="cannot run here"):
        tune(recipe(), target="tensorrt", store=TuningStore(tmp_path))


@pytest.mark.parametrize(("bound", "tried"), [(0.0, 1), pytest.param(1.0, 3, marks=pytest.mark.slow)])
def test_a_run_takes_the_fastest_policy_that_keeps_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: float, tried: int
) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    asked = recipe(
        "tune={}",
        "attention={kind: se}",
        f"accept.agreement_min={bound}",
        "quant.ptq={tuning_steps: 0, nncf: false, importance: false}",
        "measure.limit=8",
        "measure.quick=true",
    )
    timed = tune(asked, store=TuningStore(), timing=BRIEF)
    stages: list[tuple[str, float]] = []

    class Counts:
        def update(self, stage: str, done: float, total: float, **metrics: float) -> None:
            stages.append((stage, done / total))

        def note(self, text: str) -> None:
            pass

    report = run_recipe(asked, tmp_path / "run", progress=Counts())
    assert report.quant["gate_policy"] in timed.policies[:tried]
    if bound == 0.0:
        assert report.quant["gate_policy"] == timed.policies[0]
    # The report says what was built.
    assert set(report.quant["edge_forms"].values()) == {timed.forms["se"]}
    finished = [share for stage, share in stages if stage == "ptq" and share == 1.0]
    # A network of random weights agrees with itself now and then: the search may end early.
    assert 1 <= len(finished) <= tried


def test_forms_are_chosen_for_dla_by_the_tables_without_building_anything(tmp_path: Path) -> None:
    asked = recipe("targets=[jetson-ssh]", "tune={rank_by: dla}")
    tuning = tune(asked, store=TuningStore(tmp_path))
    parts = {item.forms["coord"]: (item.loadables or 0) + (item.gpu_parts or 0) for item in tuning.candidates}
    assert set(parts) == set(attentions.get("coord").edge_forms)
    assert parts[tuning.forms["coord"]] == min(parts.values())
    # The plan tells the forms apart: the choice is one.
    assert len(set(parts.values())) > 1
    assert all(item.latency_ms is None and item.kernels is None for item in tuning.candidates)
    assert [item.forms for item in tuning.candidates if item.kept] == [tuning.forms]


def test_ranking_for_dla_is_refused_where_no_dla_is(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="openvino-cpu has no DLA"):
        tune(recipe("tune={rank_by: dla}", "targets=[openvino-cpu]"), store=TuningStore(tmp_path))


def test_the_command_says_which_forms_avoid_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path))
    path = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    arguments = ["tune", str(path), "--target", "jetson-ssh", "--rank-by", "dla"]
    for change in (*SMALL, "attention.kind=se"):
        arguments += ["--set", change]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "without fallback: " in text
    assert "1 loadable of 16 (fits)" in text
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(as_json.stdout)["key"]["rank_by"] == "dla"


def test_a_run_takes_the_form_that_dla_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No device is needed to choose."""
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEATTN_JETSON_HOST", raising=False)
    asked = recipe("attention.kind=se", "targets=[jetson-ssh]", "tune={rank_by: dla}", "measure.limit=4")
    steps = {step.name: step for step in plan_steps(asked)}
    assert steps["tune"].what == "plan the exact forms of se for DLA"
    assert steps["tune"].why_skipped == ""
    tuning = _Preparation(asked, Workspace(tmp_path / "run", SilentProgress()), SilentProgress())._tune()
    assert tuning is not None
    assert tuning.forms == tune(asked).forms


def test_a_run_tunes_by_kernels_where_tensorrt_rtx_only_builds() -> None:
    target = get_target("tensorrt-rtx")
    if target.probe().can_run or not target.probe().can_build:
        pytest.skip("needs the builder, and no GPU")
    asked = recipe("targets=[tensorrt-rtx]", "tune={}")
    assert asked.tune is not None
    assert can_tune(target, asked.tune) == ""
    (step,) = [step for step in plan_steps(asked) if step.name == "tune"]
    assert (step.why_skipped, step.what.startswith("count the kernels of")) == ("", True)
    assert "cannot run here" in can_tune(get_target("jetson-ssh"), asked.tune) or os.environ.get(
        "EDGEATTN_JETSON_HOST"
    )
