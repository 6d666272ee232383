"""What a study consists of: a grid of recipes, read from one YAML file, and the order of its cells.

A block is one network on one data set: a recipe, with changes. Each attention and each seed of a block is a
cell. Needs neither torch nor the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeattn.artifact import sha256_of_file
from edgeattn.data.archive import unpack_class_folders
from edgeattn.data.datasets import expand_path
from edgeattn.errors import RecipeError, close_matches_hint
from edgeattn.progress import Progress
from edgeattn.recipe import Recipe, load_recipe
from edgeattn.recipe_errors import explain
from edgeattn.recipe_yaml import parse_yaml
from edgeattn.report_study import BARE

__all__ = [
    "Block",
    "Cell",
    "Images",
    "StudyPlan",
    "compose",
    "fingerprint",
    "load_plan",
    "order_cells",
    "unpack",
]

_STRICT = ConfigDict(extra="forbid", frozen=True)
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")]


class Images(BaseModel):
    """A zip of images, of which the first of each class are used, in the order of their names."""

    model_config = _STRICT

    archive: Annotated[
        Path, Field(description="With train/<class>/<image> and test/<class>/<image>; variables expanded.")
    ]
    train_per_class: Annotated[int | None, Field(ge=2, description="null: all.")] = None
    test_per_class: Annotated[int | None, Field(ge=1, description="null: all.")] = None


class Block(BaseModel):
    """One network on one data set."""

    model_config = _STRICT

    data: _Name
    network: _Name
    recipe: Annotated[Path, Field(description="Relative to the plan.")]
    changes: Annotated[
        tuple[str, ...], Field(description="Changes to the recipe, as --set of `edgeattn run` takes them.")
    ] = ()
    identity_start: Annotated[
        bool, Field(description="Start gates as the identity: for networks with trained weights.")
    ] = False
    edge_forms: Annotated[
        dict[_Name, str],
        Field(description="Attention -> the exact form that is quantized; the target's otherwise."),
    ] = {}
    images: Annotated[Images | None, Field(description="null: the recipe's own data.root.")] = None
    minutes: Annotated[
        float, Field(gt=0, le=100_000, description="Of one cell on one core, roughly: for the order.")
    ]
    when: Annotated[
        Literal["always", "budget", "no-budget"],
        Field(description="Whether it is part of a study with a budget, of one without, or of both."),
    ] = "always"

    @property
    def key(self) -> tuple[str, str]:
        """Data set and network."""
        return self.data, self.network


class StudyPlan(BaseModel):
    """A grid: every block with every attention and every seed."""

    model_config = _STRICT

    title: Annotated[str, Field(min_length=1, max_length=200, description="Of the page.")]
    attentions: Annotated[tuple[_Name, ...], Field(min_length=1)]
    seeds: Annotated[int, Field(ge=1, le=1000, description="Seeds 0, 1, ... of every network.")] = 5
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_single(self) -> StudyPlan:
        keys = [block.key for block in self.blocks]
        if len(set(keys)) != len(keys) or len(set(self.attentions)) != len(self.attentions):
            raise ValueError("blocks of one data and network, or attentions, are named twice")
        for kind in {name for block in self.blocks for name in block.edge_forms} - set(self.attentions):
            raise ValueError(
                f"edge_forms names {kind!r}, which is not among the plan's attentions: {', '.join(self.attentions)}"
            )
        return self


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network to train."""

    block: Block
    attention: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """As in the results."""
        return self.block.data, self.block.network, self.attention, self.seed

    @property
    def name(self) -> str:
        """Of its folder, and for people."""
        return f"{self.block.data}_{self.block.network}_{self.attention}_{self.seed}"


def load_plan(path: Path) -> StudyPlan:
    """Read a plan.

    Raises:
        RecipeError: If it cannot be read, or says something that is not valid.
    """
    located = parse_yaml(path)
    try:
        return StudyPlan.model_validate(located.value)
    except ValidationError as exc:
        raise RecipeError(explain(exc, located, StudyPlan)) from exc


def order_cells(plan: StudyPlan, *, budget: bool, only: Sequence[str] = ()) -> list[Cell]:
    """Return the cells in the order in which they are worth their time.

    All attentions of a block come one after the other, so that every difference has its partner. Which block
    and seed is next follows from what the block would then have cost: cheap networks come first and have
    several seeds before an expensive one has its second.

    Args:
        plan: The grid.
        budget: Whether there is a budget: it chooses between blocks.
        only: Names of data sets, networks and attentions; of each kind that is named, the others are left out.
            ``none`` stays, because attention is compared with it.

    Raises:
        RecipeError: If a name is unknown, or nothing is left.
    """
    known = {
        "data": {block.data for block in plan.blocks},
        "network": {block.network for block in plan.blocks},
        "attention": set(plan.attentions),
    }
    for name in only:
        if not any(name in names for names in known.values()):
            everything = [n for names in known.values() for n in names]
            raise RecipeError(f"--only {name}: no such name. {close_matches_hint(name, everything)}")
    chosen = {kind: names & {*only} or names for kind, names in known.items()}
    named = known["data"] & {*only}
    blocks = [
        block
        for block in plan.blocks
        if block.data in chosen["data"]
        and block.network in chosen["network"]
        # One that is named is meant, whatever the budget.
        and (block.data in named or block.when != ("no-budget" if budget else "budget"))
    ]
    attentions = [name for name in plan.attentions if name in chosen["attention"] | {BARE}]
    rounds = sorted(
        (
            (block.minutes * (seed + 1), seed, place)
            for place, block in enumerate(blocks)
            for seed in range(plan.seeds)
        )
    )
    if not rounds:
        raise RecipeError(f"--only {', '.join(only)} leaves nothing of the study.")
    return [Cell(blocks[place], name, seed) for _, seed, place in rounds for name in attentions]


def unpack(block: Block, plan_path: Path, cache: Path, progress: Progress) -> Path | None:
    """Return the folder of a block's images, unpacked if they come in an archive; None if they do not.

    Raises:
        DataError: If the archive cannot be used.
    """
    images = block.images
    if images is None:
        return None
    return unpack_class_folders(
        expand_path(images.archive, plan_path.absolute().parent),
        cache / "images",
        train_per_class=images.train_per_class,
        test_per_class=images.test_per_class,
        progress=lambda done, total: progress.update(f"unpack {block.data}", done, total),
    )


def changes_of(cell: Cell, root: Path | None = None) -> list[str]:
    """Return what makes the block's recipe that of a cell."""
    attention: dict[str, object] = {"kind": cell.attention}
    if cell.attention != BARE and cell.block.identity_start:
        attention["identity_start"] = True
    if cell.attention in cell.block.edge_forms:
        attention["edge_form"] = cell.block.edge_forms[cell.attention]
    changes = {
        "attention": attention,
        "train.seed": cell.seed,
        "quant.qat.seed": cell.seed,
        # Only accuracy is wanted, of all images.
        "tune": None,
        "targets": ["ort-cpu"],
        "measure": {"sensitivity_images": 0},
        "accept": {},
    }
    if root is not None:
        changes["data.root"] = str(root.absolute())
    return [*cell.block.changes, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]


def compose(cell: Cell, plan_path: Path, mode: Literal["ptq", "qat"], root: Path | None = None) -> Recipe:
    """Return the recipe of one cell.

    Args:
        cell: Which.
        plan_path: Of the plan; its recipe's path is relative to it.
        mode: ``"ptq"`` first, then ``"qat"``: the float network is the same.
        root: Where the images are; None takes the recipe's.

    Raises:
        RecipeError: If the recipe is not valid, or trains nothing.
    """
    path = plan_path.absolute().parent / cell.block.recipe
    recipe = load_recipe(path, [*changes_of(cell, root), f"quant.mode={mode}"])
    if recipe.attention.replaces_convolutions and cell.block.identity_start:
        raise RecipeError(f"{path}: {cell.attention} has no start as the identity.")
    return recipe


def fingerprint(cell: Cell, plan_path: Path, hashes: dict[Path, str]) -> str:
    """Return what identifies a cell's request: data, schedule, weights, calibration, everything but places.

    Values that are the defaults are left out: an option that is added later changes no old result. When a default
    changes, plans with results must name the old one.

    Args:
        cell: Which.
        plan_path: Of the plan.
        hashes: SHA-256 of files, filled as they are read.

    Raises:
        RecipeError: If the recipe is not valid.
        ArtifactError: If a file that it names is missing.
    """
    recipe = compose(cell, plan_path, "qat")
    files = {"calibration": recipe.calibration, "weights": recipe.model.weights}
    for path in files.values():
        if path is not None and path not in hashes:
            hashes[path] = sha256_of_file(path)
    said: dict[str, object] = recipe.model_dump(
        mode="json",
        exclude_defaults=True,
        include={"model": True, "attention": True, "data": True, "train": True, "quant": True},
        exclude={"model": {"weights"}, "data": {"root"}, "quant": {"mode"}},
    )
    images: Mapping[str, object] = (
        cell.block.images.model_dump(include={"train_per_class", "test_per_class"})
        if cell.block.images
        else {}
    )
    said |= {
        "images": images,
        "files": {name: hashes.get(path) if path else None for name, path in files.items()},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
