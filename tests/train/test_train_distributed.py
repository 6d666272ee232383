"""Several processes train one network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from train_task import PREPROCESS, build_arrays

from edgeattn.data import Augmentation
from edgeattn.errors import RecipeError
from edgeattn.train import TrainConfig, TrainResult, fit
from edgeattn.train.distributed import World, join_world

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.1, optimizer="sgd")


def train_plain(folder: Path, seed: int = 0) -> tuple[nn.Module, TrainResult]:
    """Without dropout and batch norm, ranks together compute what one process does."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    options = {"preprocess": PREPROCESS, "augmentation": Augmentation(), "checkpoint_dir": folder}
    return model, fit(model, build_arrays(), CONFIG, **options)  # type: ignore[arg-type]


def test_one_process_needs_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "1"), ("WORLD_SIZE", ""), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
        monkeypatch.delenv("RANK", raising=False)
        assert join_world() == World(0, 1)


def test_an_incomplete_environment_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RecipeError, match=r"announce 2 processes.*Start with torchrun"):
        join_world()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_train_distributed import *\n"
        "rank = int(os.environ['RANK'])\n"
        "model, result = train_plain(Path(sys.argv[1]), seed=rank)\n"
        "_, again = train_plain(Path(sys.argv[1]), seed=rank)\n"
        "assert again.epochs_run == 0 and again.history == result.history\n"
        "torch.save({**model.state_dict(), 'top1': result.last_top1}, f'{sys.argv[1]}-{rank}.pt')\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "run")],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"run-{rank}.pt", weights_only=True) for rank in range(2))
    model, result = train_plain(tmp_path / "alone")
    assert first["top1"] == second["top1"] == result.last_top1
    for name, value in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-4)
