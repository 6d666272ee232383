"""The photographs that the demonstration's network was not trained on, with the answers of ort-cpu."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn.data import load_dataset, normalize_pixels, resize_and_crop
from edgeattn.kit.deploy_files import demo_folder
from edgeattn.kit.from_run import describe_export
from edgeattn.kit.model_folder import load_model
from edgeattn.measure import run_session
from edgeattn.recipe import load_recipe
from edgeattn.targets import get_target

__all__ = ["DemoSplit", "load_demo_split"]

RECIPE = Path(__file__).parents[1] / "recipes" / "sign_digits_demo.yaml"


@dataclasses.dataclass(frozen=True)
class DemoSplit:
    """Files of the test split, what the target ort-cpu says of each on this machine, and what is right."""

    paths: tuple[Path, ...]
    top1: NDArray[np.int64]
    labels: NDArray[np.int64]

    def differing(self, answers: list[int]) -> list[str]:
        """Return the photographs with another class than ort-cpu's; there must be an answer for each."""
        assert len(answers) == len(self.paths)
        return [
            f"{path.parent.name}/{path.name}: {got}, ort-cpu says {int(want)}"
            for path, got, want in zip(self.paths, answers, self.top1, strict=True)
            if got != want
        ]


def load_demo_split(workdir: Path) -> DemoSplit:
    """Divide the data as the recipe does, and run the target ort-cpu on the shipped model."""
    images = load_dataset(load_recipe(RECIPE).data, RECIPE.parent).validation
    paths = [path for index in range(len(images)) if (path := images.path(index)) is not None]
    assert len(paths) == len(images) == 411
    model = load_model(demo_folder())
    batch = np.stack(
        [
            normalize_pixels(resize_and_crop(images.image(index), model.preprocess), model.preprocess)
            for index in range(len(images))
        ]
    )
    target = get_target("ort-cpu")
    engine = target.build(describe_export(demo_folder(), "u8"), workdir)
    with target.open(engine) as session:
        logits = run_session(session, batch, model.model.input.name, model.model.output.name)
    return DemoSplit(tuple(paths), logits.argmax(axis=1), np.asarray(images.labels))
