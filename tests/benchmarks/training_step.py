"""What kernels for small maps and for gates save in a training step of a recipe's network on one CPU thread.

    python -m tests.benchmarks.training_step
    python -m tests.benchmarks.training_step --recipe recipes/study/sign_digits_mobilenetv2_05.yaml --rounds 10

Steps with and without them (forward, backward, optimizer, channels last) take turns in one process. The ratio is the
median of the ratios of neighbouring steps, with the quartiles of those.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgeattn import load_recipe
from edgeattn.attention import channels_last
from edgeattn.pipeline_float import build_network
from edgeattn.recipe import Recipe
from edgeattn.train import layout
from edgeattn.train.optim import build_optimizer
from tests.benchmarks.figures import figures_parser, publish

_CLASSES = 10


@contextlib.contextmanager
def _kernels_of_torch(_: nn.Module) -> Iterator[None]:
    yield


def measure(recipe: Recipe, rounds: int) -> dict[str, Any]:
    """Return milliseconds of a step either way, and how many times as fast it is with the kernels."""
    if recipe.train is None:
        raise SystemExit(f"The recipe {recipe.name} does not train; name one that does.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_network(recipe, _CLASSES, identity=True).train()
    optimizer = build_optimizer(model, recipe.train)
    size, batch = recipe.data.preprocess.size, recipe.train.batch_size
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, _CLASSES, (batch,))

    def step() -> float:
        with layout.use_layout(model, torch.channels_last):
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return 1e3 * (time.perf_counter() - start)

    def step_of_torch() -> float:
        small_maps = mock.patch.object(layout, "use_small_map_kernels", _kernels_of_torch)
        gates = mock.patch.object(channels_last, "_takes_fast_path", return_value=False)
        with small_maps, gates:
            return step()

    step_of_torch(), step()  # whatever is made once
    pairs = np.array([(step_of_torch(), step()) for _ in range(rounds)])
    ratios = pairs[:, 0] / pairs[:, 1]
    before, after = np.median(pairs, axis=0)
    return {
        "recipe": recipe.name,
        "batch": batch,
        "size": size,
        "rounds": rounds,
        "torch_ms": float(before),
        "own_ms": float(after),
        "times_as_fast": float(np.median(ratios)),
        "quartiles": [float(value) for value in np.quantile(ratios, (0.25, 0.75))],
    }


def main() -> None:
    """Measure and print."""
    parser = figures_parser(__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("--batch", type=int, help="images a step; default: the recipe's")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    changes = [] if options.batch is None else [f"train.batch_size={options.batch}"]
    publish(measure(load_recipe(options.recipe, changes), options.rounds), options.json)


if __name__ == "__main__":
    main()
