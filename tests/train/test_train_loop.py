"""Training learns, and a killed run that is repeated ends exactly as one that ran through."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from train_task import PREPROCESS, build_arrays, build_model

from edgeattn.data import Augmentation, DataSplits, ImageSet, training_geometry
from edgeattn.errors import ArtifactError, DataError, ModelError, RecipeError
from edgeattn.train import TrainArrays, TrainConfig, TrainingDivergedError, TrainResult, evaluate, fit
from edgeattn.train.checkpoint import CHECKPOINT_NAME

CONFIG = TrainConfig(epochs=3, batch_size=16, learning_rate=0.01, ema_decay=0.9, label_smoothing=0.1)
LONG = TrainConfig(epochs=40, batch_size=4, ema_decay=0.9)
MOVES = Augmentation(rotate_degrees=10, translate=0.1, color_jitter=0.1)


class Killed(BaseException):
    """Stands for anything that ends the process."""


class KillAt:
    def __init__(self, step: int) -> None:
        self.step, self.steps = step, 0

    def update(self, stage: str, done: int, total: int, **metrics: float) -> None:
        if stage == "train":
            self.steps += 1
            if done == self.step:
                raise Killed


def train(
    model: nn.Module,
    folder: Path,
    config: TrainConfig = CONFIG,
    data: TrainArrays | None = None,
    **options: object,
) -> TrainResult:
    values = {"augmentation": Augmentation(), "checkpoint_dir": folder, "preprocess": PREPROCESS, **options}
    return fit(model, data or build_arrays(), config, **values)  # type: ignore[arg-type]


def assert_equal_state(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_learns(model: nn.Module, arrays: TrainArrays, tmp_path: Path, optimizer: str) -> None:
    rate = 0.1 if optimizer == "sgd" else 0.02
    config = TrainConfig(epochs=15, batch_size=16, optimizer=optimizer, learning_rate=rate, gradient_clip=1.0)
    result = train(model, tmp_path, config)
    assert result.last_top1 > 0.9
    assert result.history[-1].loss < result.history[0].loss
    assert result.best_top1 >= result.last_top1
    assert result.epochs_run == len(result.history) == 15
    assert not model.training
    measured = evaluate(model, arrays.validation_pixels, arrays.validation_labels, preprocess=PREPROCESS)
    assert measured.top1 == result.last_top1


# resuming


@pytest.mark.parametrize("augmentation", [Augmentation(), MOVES])
@pytest.mark.parametrize("kill_at", [1, 3, 5, 9])
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 60.0])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, kill_at: int, checkpoint_seconds: float, augmentation: Augmentation
) -> None:
    data = build_arrays(training_geometry(PREPROCESS, augmentation).size)
    options = {"augmentation": augmentation, "checkpoint_seconds": checkpoint_seconds}
    whole, resumed = build_model(), build_model()
    expected = train(whole, tmp_path / "whole", data=data, **options)
    with pytest.raises(Killed):
        train(build_model(), tmp_path / "killed", data=data, progress=KillAt(kill_at), **options)
    counter = KillAt(-1)
    result = train(resumed, tmp_path / "killed", data=data, progress=counter, **options)
    assert_equal_state(whole, resumed)
    assert result.history == expected.history
    kept = kill_at - 1 if checkpoint_seconds == 0 else (kill_at - 1) // 3 * 3
    assert counter.steps == 9 - kept


def test_a_process_killed_by_the_system_resumes_to_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_train_loop import *\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "model = build_model()\n"
        "train(model, Path(sys.argv[1]), LONG, checkpoint_seconds=0)\n"
        "torch.save(model.state_dict(), sys.argv[2])\n"
    )
    folder, output = tmp_path / "killed", tmp_path / "killed.pt"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), str(folder), str(output)]
    killed = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while not (folder / CHECKPOINT_NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    assert not output.exists()
    subprocess.run(command, env=environment, check=True, timeout=60)
    whole = build_model()
    train(whole, tmp_path / "whole", LONG)
    resumed = torch.load(output, weights_only=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.state_dict().items())


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first, again = build_model(), build_model()
    expected = train(first, tmp_path)
    counter = KillAt(-1)
    result = train(again, tmp_path, progress=counter)
    assert counter.steps == result.epochs_run == 0
    assert_equal_state(first, again)
    assert (result.history, result.last_top1) == (expected.history, expected.last_top1)


def other_seed(model: nn.Module, folder: Path) -> None:
    train(model, folder, CONFIG.model_copy(update={"seed": 1}))


def other_data(model: nn.Module, folder: Path) -> None:
    train(model, folder, data=build_arrays(count=64))


def other_weights(model: nn.Module, folder: Path) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    train(model, folder)


@pytest.mark.parametrize("change", [other_seed, other_data, other_weights])
def test_another_runs_checkpoint_is_ignored_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[nn.Module, Path], None]
) -> None:
    train(build_model(), tmp_path / "shared")
    fresh, over = build_model(), build_model()
    change(fresh, tmp_path / "fresh")
    with caplog.at_level(logging.WARNING):
        change(over, tmp_path / "shared")
    assert "another configuration" in caplog.text
    assert_equal_state(fresh, over)


def test_named_starting_weights_replace_their_hash(tmp_path: Path) -> None:
    """For weights that cannot be made again bit for bit, such as calibrated scales."""
    train(build_model(), tmp_path, start_fingerprint="ptq-1")
    model = build_model()
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 1e-7)
    assert train(model, tmp_path, start_fingerprint="ptq-1").epochs_run == 0


@pytest.mark.parametrize("damage", [b"", b"rubbish", b"PK\x03\x04rubbish"])
def test_a_damaged_checkpoint_is_ignored_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    (tmp_path / CHECKPOINT_NAME).write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert train(build_model(), tmp_path).epochs_run == 3
    assert "cannot be read" in caplog.text


def test_an_unwritable_folder_is_an_artifact_error(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="Cannot write"):
        train(model, tmp_path / "file" / "folder")


def test_interrupting_leaves_one_whole_checkpoint(tmp_path: Path) -> None:
    model = build_model()
    with pytest.raises(Killed):
        train(model, tmp_path, progress=KillAt(5), checkpoint_seconds=0)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]


# what a step does


def test_frozen_batch_norm_keeps_statistics_and_trains_its_affine_part(
    model: nn.Module, tmp_path: Path
) -> None:
    before = copy.deepcopy(model[1])
    train(model, tmp_path, CONFIG.model_copy(update={"freeze_batch_norm": True, "ema_decay": None}))
    assert torch.equal(before.running_mean, model[1].running_mean)
    assert torch.equal(before.num_batches_tracked, model[1].num_batches_tracked)
    assert not torch.equal(before.weight, model[1].weight)


def test_distillation_follows_the_teacher(arrays: TrainArrays, tmp_path: Path) -> None:
    """With the whole loss on the teacher, wrong labels do not matter."""
    teacher = build_model()
    good = TrainConfig(epochs=15, batch_size=16, learning_rate=0.02)
    train(teacher, tmp_path / "teacher", good)
    wrong = TrainArrays(
        arrays.train_pixels,
        np.roll(arrays.train_labels, 1),
        arrays.validation_pixels,
        arrays.validation_labels,
    )
    student = build_model()
    config = good.model_copy(update={"distillation_weight": 1.0, "epochs": 20})
    result = train(student, tmp_path / "student", config, wrong, teacher=teacher)
    assert result.last_top1 > 0.9


def test_the_average_is_what_is_measured_and_left(
    model: nn.Module, arrays: TrainArrays, tmp_path: Path
) -> None:
    plain = build_model()
    result = train(model, tmp_path / "average")
    train(plain, tmp_path / "plain", CONFIG.model_copy(update={"ema_decay": None}))
    assert not torch.equal(model[6].weight, plain[6].weight)
    measured = evaluate(model, arrays.validation_pixels, arrays.validation_labels, preprocess=PREPROCESS)
    assert measured.top1 == result.last_top1


def test_image_sets_train_like_arrays(arrays: TrainArrays, tmp_path: Path) -> None:
    splits = DataSplits(
        ImageSet.from_array(arrays.train_pixels, arrays.train_labels),
        ImageSet.from_array(arrays.validation_pixels, arrays.validation_labels),
        ("top", "bottom", "left"),
    )
    from_arrays, from_splits = build_model(), build_model()
    train(from_arrays, tmp_path / "arrays")
    stages: list[tuple[str, int, int]] = []

    class Listener:
        def update(self, stage: str, done: int, total: int, **metrics: float) -> None:
            stages.append((stage, done, total))

    options = {
        "preprocess": PREPROCESS,
        "augmentation": Augmentation(),
        "checkpoint_dir": tmp_path / "splits",
    }
    fit(from_splits, splits, CONFIG, progress=Listener(), cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]
    assert_equal_state(from_arrays, from_splits)
    assert ("decode", 48, 48) in stages
    assert ("train", 9, 9) in stages
    assert stages[-1] == ("validate", 3, 3)


def test_no_epochs_measure_only(model: nn.Module, tmp_path: Path) -> None:
    before = copy.deepcopy(model)
    result = train(model, tmp_path, TrainConfig(epochs=0))
    assert_equal_state(before, model)
    assert result.history == ()
    assert 0 <= result.last_top1 <= 1


# refusals


def test_divergence_says_what_to_change(model: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        model[6].bias.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match=r"loss became nan.*Lower learning_rate \(now 0.01\)"):
        train(model, tmp_path)


def test_distillation_needs_a_teacher(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no teacher to follow"):
        train(model, tmp_path, TrainConfig(distillation_weight=0.5))


def test_unfit_models_and_data_are_refused(model: nn.Module, arrays: TrainArrays, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="returns 2 classes, the labels need 3"):
        train(build_model(classes=2), tmp_path)
    with pytest.raises(ModelError, match=r"logits of shape \(batch, classes\), got \(16, 6, 8, 8\)"):
        train(nn.Sequential(*list(model)[:3]), tmp_path)
    with pytest.raises(ModelError, match="no parameter or module 'clasifier'"):
        train(model, tmp_path, new_parameter_names=["clasifier"])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing to train"):
        train(model, tmp_path)
    cropped = dataclasses.replace(arrays, validation_pixels=arrays.validation_pixels[:, :4])
    with pytest.raises(DataError, match="Validation pixels must be uint8 of shape"):
        train(model, tmp_path, data=cropped)


def test_first_epochs_see_small_images(tmp_path: Path) -> None:
    """Until start_epochs are over, in training and in validation."""
    sizes: list[tuple[bool, int]] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build_model()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append((self.training, x.shape[-1]))
            output: torch.Tensor = self.inner(x)
            return output

    pixels, labels = build_arrays(stored=24).train_pixels, build_arrays(stored=24).train_labels
    config = TrainConfig(epochs=3, batch_size=16, start_size=16, start_epochs=2)
    train(
        Watching(),
        tmp_path,
        config,
        TrainArrays(pixels, labels, pixels, labels),
        preprocess=PREPROCESS.model_copy(update={"size": 24}),
    )
    assert [size for training, size in sizes if training] == [16] * 6 + [24] * 3
    # The first was to choose a memory layout.
    measured = [size for size, _ in itertools.groupby(size for training, size in sizes if not training)]
    assert measured == [24, 16, 24], "validated as it was trained"


def test_start_size_must_be_smaller(model: nn.Module, tmp_path: Path) -> None:
    """Larger images first would be no saving; half a request is none."""
    config = TrainConfig(epochs=3, start_size=16, start_epochs=2)
    with pytest.raises(RecipeError, match="own size is 8"):
        train(model, tmp_path, config)
    for values in ({"start_size": 16}, {"start_epochs": 1}, {"start_size": 16, "start_epochs": 3}):
        with pytest.raises(ValueError, match="start_"):
            TrainConfig(epochs=3, **values)
