"""The grid of a study: which cells, in which order, which recipe each one is, and what its budget allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import RecipeError
from edgeattn.pipeline_study import estimate_seconds, next_cell, parse_budget
from edgeattn.pipeline_study_plan import (
    Block,
    Cell,
    StudyPlan,
    compose,
    fingerprint,
    load_plan,
    order_cells,
)
from edgeattn.recipe import load_recipe
from edgeattn.report_study import MODES, CellResult, StudyResults

RECIPES = Path(__file__).parents[2] / "recipes"
PLAN = RECIPES / "study/plan.yaml"


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-in for the folder of data: weights are only hashed here."""
    monkeypatch.setenv("EDGEATTN_DATA", str(tmp_path))
    path = tmp_path / "mobilenet_v2_imagenet.safetensors"
    path.write_bytes(b"weights")
    return path


def plan_of(*minutes: float, attentions: tuple[str, ...] = ("none", "eca"), seeds: int = 3) -> StudyPlan:
    blocks = tuple(
        Block(data="data", network=f"net{i}", recipe=Path("base.yaml"), minutes=value)
        for i, value in enumerate(minutes)
    )
    return StudyPlan(title="A study", attentions=attentions, seeds=seeds, blocks=blocks)


def result_of(cell: Cell, seconds: float, machine: str = "here") -> CellResult:
    return CellResult(
        data=cell.block.data,
        network=cell.block.network,
        attention=cell.attention,
        seed=cell.seed,
        fingerprint="0" * 16,
        data_sha256="0" * 16,
        train_images=10,
        test_images=10,
        epochs=1,
        qat_epochs=1,
        top1=dict.fromkeys(MODES, 0.5),
        seconds=seconds,
        machine=machine,
    )


# ----------------------------------------------------------------------------------- the grid


def test_the_plan_of_the_project_holds_what_it_promises() -> None:
    plan = load_plan(PLAN)
    assert plan.attentions == ("none", "se", "eca", "coord", "triplet", "cbam")
    assert plan.seeds == 5
    for budget, cifar in ((True, {"cifar10-10k", "cifar10-5k"}), (False, {"cifar10"})):
        cells = order_cells(plan, budget=budget)
        assert len(cells) == len({cell.key for cell in cells}) == 6 * 6 * 5
        assert {cell.block.data for cell in cells} == {"sign-digits", *cifar}


def test_every_cell_of_the_project_is_a_valid_recipe() -> None:
    plan = load_plan(PLAN)
    for block in plan.blocks:
        for attention in plan.attentions:
            recipe = compose(
                Cell(block, attention, 3), PLAN, "ptq", Path("/images") if block.images else None
            )
            assert recipe.attention.kind == attention
            assert recipe.attention.identity_start == (block.identity_start and attention != "none")
            assert recipe.train is not None
            assert recipe.train.seed == recipe.quant.qat.seed == 3
            assert recipe.data.split_seed == 0
            assert recipe.calibration.is_file()


@pytest.mark.parametrize("attention", ["none", "se", "eca", "coord", "triplet"])
def test_seed_0_of_the_pretrained_network_is_the_recipe_of_the_project(attention: str) -> None:
    """But for PTQ's tuning and rounding, which QAT leaves out, and for grids, order, image and forms that studies keep to."""
    block = next(b for b in load_plan(PLAN).blocks if b.key == ("sign-digits", "mobilenetv2-1.0-96"))
    ours = compose(Cell(block, attention, 0), PLAN, "qat")
    changes = [
        "quant.ptq.tuning_steps=0",
        "quant.ptq.exact=false",
        "quant.ptq.range_estimator=mean_minmax",
        "quant.ptq.rounding=false",
        "quant.ptq.channel_order=false",
        "quant.ptq.pixels=false",
        "quant.ptq.padded_grids=false",
        "quant.ptq.swish_grids=false",
    ]
    changes += [f"attention.edge_form={form}" for kind, form in block.edge_forms.items() if kind == attention]
    theirs = load_recipe(RECIPES / f"sign_digits_mobilenetv2_{attention}.yaml", changes)
    for part in ("model", "attention", "data", "train", "quant"):
        assert getattr(ours, part) == getattr(theirs, part), part
    assert ours.calibration.resolve() == theirs.calibration.resolve()


def test_a_block_names_the_form_of_an_attention_and_its_results_tell_forms_apart() -> None:
    block = load_plan(PLAN).blocks[0]
    named, free = (block.model_copy(update={"edge_forms": forms}) for forms in ({"coord": "joint_mean"}, {}))
    assert compose(Cell(named, "coord", 0), PLAN, "ptq").attention.edge_form == "joint_mean"
    assert compose(Cell(named, "eca", 0), PLAN, "ptq").attention.edge_form is None
    prints = {fingerprint(Cell(b, "coord", 0), PLAN, {}) for b in (named, free, block)}
    assert len(prints) == 3
    with pytest.raises(RecipeError, match="no edge form 'joint_men'"):
        compose(
            Cell(block.model_copy(update={"edge_forms": {"coord": "joint_men"}}), "coord", 0), PLAN, "ptq"
        )


def test_a_form_of_an_attention_that_the_plan_lacks_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.read_text().replace("edge_forms: {coord:", "edge_forms: {cord:", 1))
    with pytest.raises(RecipeError, match="edge_forms names 'cord'"):
        load_plan(path)


def test_attentions_of_a_block_stay_together_and_cheap_networks_come_first() -> None:
    cells = order_cells(plan_of(10, 4), budget=False)
    order = [(cell.block.network, cell.seed) for cell in cells]
    assert [cell.attention for cell in cells] == ["none", "eca"] * 6
    # 4, 8, 10, 12, 20, 30 minutes: what each block has cost then.
    assert order[::2] == [("net1", 0), ("net1", 1), ("net0", 0), ("net1", 2), ("net0", 1), ("net0", 2)]
    assert order[::2] == order[1::2]


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=5), st.integers(1, 5))
def test_the_order_holds_every_cell_once_and_seeds_rise(minutes: list[float], seeds: int) -> None:
    cells = order_cells(plan_of(*minutes, seeds=seeds), budget=True)
    assert len({cell.key for cell in cells}) == len(cells) == 2 * len(minutes) * seeds
    for network in {cell.block.network for cell in cells}:
        found = [cell.seed for cell in cells if cell.block.network == network]
        assert found == sorted(found)


def test_only_keeps_what_is_named_and_none_to_compare_with() -> None:
    plan = load_plan(PLAN)
    cells = order_cells(plan, budget=True, only=["coord", "sign-digits"])
    assert {cell.attention for cell in cells} == {"none", "coord"}
    assert {cell.block.data for cell in cells} == {"sign-digits"}
    # A data set that is named is meant, with a budget or without.
    assert {c.block.data for c in order_cells(plan, budget=True, only=["cifar10"])} == {"cifar10"}
    with pytest.raises(RecipeError, match="Did you mean 'coord'"):
        order_cells(plan, budget=True, only=["cord"])
    with pytest.raises(RecipeError, match="leaves nothing"):
        order_cells(plan_of(1).model_copy(update={"blocks": ()}), budget=True, only=["eca"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("attentions: [none]\nblocks: []", "title: this key is required"),
        (
            "title: a\nattentions: [none, none]\nblocks: [{data: a, network: b, recipe: c, minutes: 1}]",
            "twice",
        ),
        ("title: a\nattentions: [none]\nblocks: [{data: ../a, network: b, recipe: c, minutes: 1}]", "blocks"),
        ("title: a\nattentions: [none]\nblocks: [{data: a, network: b, recipe: c, minuts: 1}]", "minuts"),
    ],
)
def test_a_plan_that_is_not_valid_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_plan(path)


# ------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_follows_what_changes_the_result_and_nothing_else(
    weights: Path, tmp_path: Path
) -> None:
    block = next(b for b in load_plan(PLAN).blocks if b.network == "mobilenetv2-1.0-96" and b.images)
    assert block.identity_start
    cell = Cell(block, "se", 1)

    def found(changed: Cell = cell) -> str:
        return fingerprint(changed, PLAN, {})

    first = found()
    assert first == found()

    def with_block(**update: object) -> Cell:
        return dataclasses.replace(cell, block=block.model_copy(update=update))

    fewer = block.images.model_copy(update={"train_per_class": 7}) if block.images else None
    others = [
        Cell(block, "eca", 1),
        Cell(block, "se", 2),
        with_block(changes=(*block.changes, "train.epochs=3")),
        with_block(changes=(*block.changes, "quant.qat.epochs=3")),
        with_block(identity_start=False),
        with_block(images=fewer),
    ]
    assert len({first, *map(found, others)}) == 7
    # Order, names and places say nothing about a result.
    moved = block.images.model_copy(update={"archive": Path("elsewhere.zip")}) if block.images else None
    assert found(with_block(minutes=99, images=moved, when="always")) == first
    weights.write_bytes(b"other weights")
    assert found() != first


# ------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4h", 14400), ("90m", 5400), ("1h30m", 5400), ("0s", 0), ("1.5h", 5400), ("2D", 172800)],
)
def test_a_budget_is_read(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "4", "h", "4 h", "-4h", "4h!", "4hh", "1e3s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is not a time"):
        parse_budget(text)


def test_a_cell_is_estimated_from_measured_ones_of_its_kind() -> None:
    plan = plan_of(2, 10)
    cheap, dear = plan.blocks
    none, eca = Cell(cheap, "none", 0), Cell(cheap, "eca", 0)
    results = StudyResults()
    assert estimate_seconds(Cell(cheap, "eca", 1), results, "here") == 120
    results.put(result_of(none, 100))
    assert estimate_seconds(Cell(cheap, "eca", 1), results, "here") == 100
    results.put(result_of(eca, 300))
    # An attention's own time where there is one, or the longest of the block.
    assert estimate_seconds(Cell(cheap, "none", 1), results, "here") == 100
    assert estimate_seconds(Cell(cheap, "se", 1), results, "here") == 300
    # Another machine's time says nothing.
    assert estimate_seconds(Cell(cheap, "se", 1), results, "elsewhere") == 120
    # The other block was not measured: the plan's minutes, at the speed that was seen.
    assert estimate_seconds(Cell(dear, "none", 0), results, "here", rate=2.5) == 1500


def test_no_cell_begins_that_would_not_end_in_time() -> None:
    plan = plan_of(2, 10, seeds=1)
    pending = order_cells(plan, budget=True)
    cheap, dear = (next(c for c in pending if c.block == block) for block in plan.blocks)
    choose: Callable[[list[Cell], float | None], Cell | None] = lambda cells, left: next_cell(  # noqa: E731
        cells, plan, StudyResults(), "here", left
    )
    assert choose(pending, None) == choose(pending, 120) == cheap
    assert choose(pending, 119.9) is None
    # What is too long is passed over for what still fits.
    assert choose([dear, cheap], 599) == cheap
    assert choose([dear, cheap], 600) == dear
    results = StudyResults()
    results.put(result_of(cheap, 240))
    # Twice as slow here as the plan says: so is the other block.
    assert next_cell([dear], plan, results, "here", 1199) is None
    assert next_cell([dear], plan, results, "here", 1200) == dear
