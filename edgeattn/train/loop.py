"""Train a module: float fine-tuning and QAT alike."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import random
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeattn.data.image_set import DataSplits
from edgeattn.data.spec import Augmentation, Preprocess
from edgeattn.errors import RecipeError
from edgeattn.train.arrays import Progress, TrainArrays, decode_splits, hash_arrays
from edgeattn.train.checkpoint import Checkpoint, hash_state, load_checkpoint, save_checkpoint
from edgeattn.train.config import TrainConfig
from edgeattn.train.distributed import (
    World,
    average_gradients,
    broadcast_state,
    join_world,
    sum_over_ranks,
    wait_for_all,
)
from edgeattn.train.evaluation import check_logits, evaluate, module_device, resize_inputs
from edgeattn.train.layout import choose_layout, use_layout
from edgeattn.train.loader import EpochLoader, mix_seed
from edgeattn.train.optim import WeightAverage, build_optimizer, learning_rate_factor, set_learning_rate
from edgeattn.train.result import EpochRecord, TrainingDivergedError, TrainResult

__all__ = ["fit"]

logger = logging.getLogger(__name__)

_EVALUATED_PIXELS = 2**18
"""Of a batch in evaluation: 256 images at 32x32, 28 at 96x96. Small images cost calls, large ones memory."""


def fit(
    model: nn.Module,
    data: DataSplits | TrainArrays,
    config: TrainConfig,
    *,
    preprocess: Preprocess,
    augmentation: Augmentation,
    checkpoint_dir: Path,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
    new_parameter_names: Collection[str] = (),
    cache_dir: Path | None = None,
    start_fingerprint: str | None = None,
    checkpoint_seconds: float = 60.0,
) -> TrainResult:
    """Train `model` in place and leave it in evaluation mode with the last epoch's weights.

    Not the best epoch's: choosing weights by their validation score would make that score
    optimistic. With `ema_decay`, validation and the final weights are those of the average.

    A call that was killed at any point and is repeated with the same arguments and the same starting
    weights ends with the weights, bit for bit, of one that ran through (same machine and threads).

    Args:
        model: Any module from float32 NCHW to logits; fake quantizers train with the rest.
        data: Splits, or decoded images.
        config: Optimizer, schedule and regularization.
        preprocess: Of the network.
        augmentation: Random changes to training images.
        checkpoint_dir: Folder for this run's checkpoint. One of another run there is ignored, which
            is logged, and replaced.
        teacher: Float network to follow, as far as `distillation_weight` says.
        progress: Hears of the stages ``decode``, ``train`` (steps) and ``validate`` (epochs).
        new_parameter_names: Parameters or module prefixes that learn at `head_lr_multiplier`.
        cache_dir: Folder for decoded images; None decodes them into memory.
        start_fingerprint: Identity of the starting weights; by default a hash of them.
        checkpoint_seconds: Time between checkpoints within an epoch; one follows each epoch anyway.

    Raises:
        DataError: If images cannot be used, or are too few for a batch.
        ModelError: If the module does not return logits for the data's classes.
        RecipeError: If distillation is asked for without a teacher, or `start_size` is not smaller than
            the network's own size.
        TrainingDivergedError: If the loss becomes NaN or infinite; the last checkpoint stays.
        ArtifactError: If a checkpoint cannot be written.
    """
    if config.distillation_weight > 0 and teacher is None:
        raise RecipeError(
            f"distillation_weight is {config.distillation_weight}, but there is no teacher to follow. "
            "Give the float network as teacher, or set distillation_weight to 0."
        )
    if config.start_size is not None and config.start_size >= preprocess.size:
        raise RecipeError(
            f"start_size is {config.start_size}, but the network's own size is {preprocess.size}. "
            "Choose a smaller start_size, or leave it out."
        )
    world = join_world()
    broadcast_state(model, world)  # before the fingerprint: ranks must agree on whether they resume
    arrays = decode_splits(data, preprocess, augmentation, cache_dir, progress)
    identity = _Identity(config, preprocess, augmentation, tuple(new_parameter_names), world.size)
    fingerprint = identity.fingerprint(
        data.fingerprint if isinstance(data, DataSplits) else hash_arrays(arrays),
        start_fingerprint or hash_state(model),
        hash_state(teacher) if teacher is not None and config.distillation_weight > 0 else "",
    )
    run = _Run(model, arrays, identity, teacher, progress, world)
    return run.train(fingerprint, checkpoint_dir, checkpoint_seconds)


@dataclasses.dataclass(frozen=True)
class _Identity:
    """What, besides data and weights, determines the outcome of a run."""

    config: TrainConfig
    preprocess: Preprocess
    augmentation: Augmentation
    new_parameter_names: tuple[str, ...]
    world_size: int

    def fingerprint(self, data: str, start: str, teacher: str) -> str:
        models = (self.config, self.preprocess, self.augmentation)
        parts = [
            *(model.model_dump(mode="json") for model in models),
            *(sorted(self.new_parameter_names), self.world_size, data, start, teacher),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _Run:
    def __init__(
        self,
        model: nn.Module,
        arrays: TrainArrays,
        identity: _Identity,
        teacher: nn.Module | None,
        progress: Progress | None,
        world: World,
    ) -> None:
        self.model, self.arrays, self.teacher = model, arrays, teacher
        self.config, self.preprocess = identity.config, identity.preprocess
        self.progress, self.world = progress, world
        self.device = module_device(model)
        self.classes = 1 + int(max(arrays.train_labels.max(), arrays.validation_labels.max()))
        self.loader = EpochLoader(
            arrays.train_pixels,
            arrays.train_labels,
            preprocess=identity.preprocess,
            augmentation=identity.augmentation,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            rank=world.rank,
            world_size=world.size,
            device=self.device,
        )
        sample = next(self.loader.epoch(0))[0][:2]
        self.layout = choose_layout(model, sample)
        self.teacher_layout = choose_layout(teacher, sample) if teacher is not None else self.layout
        self.optimizer = build_optimizer(model, self.config, identity.new_parameter_names)
        decay = self.config.ema_decay
        self.average = WeightAverage(model, decay) if decay is not None else None
        self.epoch = self.batch = 0
        self.loss_sum = self.earlier_seconds = 0.0
        self.history: list[EpochRecord] = []
        self.started = time.monotonic()

    def train(self, fingerprint: str, folder: Path, checkpoint_seconds: float) -> TrainResult:
        self._restore(load_checkpoint(folder, fingerprint, self.device))
        wait_for_all(self.world)  # nobody writes a new checkpoint while another still reads
        first_epoch = self.epoch
        if self.teacher is not None:
            self.teacher.eval()
        saved = time.monotonic()
        while self.epoch < self.config.epochs:
            self._set_training_mode()
            with self._layouts():
                for inputs, labels in self.loader.epoch(self.epoch, self.batch):
                    self._step(inputs, labels)
                    if time.monotonic() - saved >= checkpoint_seconds:
                        self._save(folder, fingerprint)
                        saved = time.monotonic()
            self._finish_epoch()
            self._save(folder, fingerprint)
            saved = time.monotonic()
        if self.average is not None:
            self.average.swap(self.model)
        self.model.eval()
        last = self.history[-1].top1 if self.history else self._top1()
        return TrainResult(
            best_top1=max((record.top1 for record in self.history), default=last),
            last_top1=last,
            history=tuple(self.history),
            epochs_run=self.epoch - first_epoch,
            seconds=self._seconds(),
        )

    def _set_training_mode(self) -> None:
        self.model.train()
        if self.config.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    @contextlib.contextmanager
    def _layouts(self) -> Iterator[None]:
        """For the steps only: what is measured and saved is what callers will compute with."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(use_layout(self.model, self.layout))
            if self.teacher is not None:
                stack.enter_context(use_layout(self.teacher, self.teacher_layout))
            yield

    def _step(self, inputs: Tensor, labels: Tensor) -> None:
        config = self.config
        step = self.epoch * len(self.loader) + self.batch
        # Seeding each step makes dropout, and anything else random, a function of the step alone.
        _seed_everything(mix_seed(config.seed, step, self.world.rank))
        loss = self._loss(resize_inputs(inputs, self._size()), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        value = average_gradients(self.model, loss.item(), self.world)
        if not np.isfinite(value):
            raise TrainingDivergedError(
                f"The loss became {value} in epoch {self.epoch}, step {self.batch}. Lower learning_rate "
                f"(now {config.learning_rate:g}), raise warmup_epochs, or set gradient_clip to 1.0."
            )
        if config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        set_learning_rate(self.optimizer, learning_rate_factor(step, len(self.loader), config))
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, step)
        self.loss_sum += value
        self.batch += 1
        if self.progress is not None and self.world.rank == 0:
            total = config.epochs * len(self.loader)
            self.progress.update("train", step + 1, total, epoch=self.epoch, loss=value)

    def _size(self) -> int | None:
        """Return the size of this epoch's images where it is not the network's own."""
        return self.config.start_size if self.epoch < self.config.start_epochs else None

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = check_logits(self.model(inputs.contiguous(memory_format=self.layout)), self.classes).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        weight = self.config.distillation_weight
        if weight == 0 or self.teacher is None:
            return loss
        with torch.no_grad():
            inputs = inputs.contiguous(memory_format=self.teacher_layout)
            target = check_logits(self.teacher(inputs), logits.shape[1]).float()
        divergence = F.kl_div(
            logits.log_softmax(dim=1), target.log_softmax(dim=1), log_target=True, reduction="batchmean"
        )
        return (1 - weight) * loss + weight * divergence

    def _finish_epoch(self) -> None:
        broadcast_state(self.model, self.world)  # batch-norm statistics differ between ranks
        if self.average is not None:
            self.average.swap(self.model)
        top1 = self._top1()
        if self.average is not None:
            self.average.swap(self.model)
        loss = self.loss_sum / len(self.loader)
        rate = float(max(group["lr"] for group in self.optimizer.param_groups))
        self.history.append(EpochRecord(self.epoch, loss, top1, rate))
        logger.info("Epoch %d: loss %.4f, top-1 %.4f", self.epoch, loss, top1)
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0
        if self.progress is not None and self.world.rank == 0:
            self.progress.update("validate", self.epoch, self.config.epochs, top1=top1, loss=loss)

    def _top1(self) -> float:
        pixels, labels = self.arrays.validation_pixels, self.arrays.validation_labels
        share = slice(self.world.rank, None, self.world.size)
        correct = count = 0
        # A network that has seen small images alone answers by chance at its own size.
        size = self._size()
        if len(labels[share]):
            result = evaluate(
                self.model,
                pixels[share],
                labels[share],
                batch_size=max(
                    self.config.batch_size, _EVALUATED_PIXELS // (size or self.preprocess.size) ** 2, 16
                ),
                preprocess=self.preprocess,
                size=size,
            )
            correct, count = round(result.top1 * result.n), result.n
        correct, count = sum_over_ranks([correct, count], self.world)
        return correct / count

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def _save(self, folder: Path, fingerprint: str) -> None:
        if self.world.rank != 0:
            return
        checkpoint = Checkpoint(
            fingerprint=fingerprint,
            epoch=self.epoch,
            batch=self.batch,
            loss_sum=self.loss_sum,
            seconds=self._seconds(),
            history=[dataclasses.asdict(record) for record in self.history],
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=self.average.state if self.average is not None else None,
        )
        save_checkpoint(folder, checkpoint)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.average is not None and checkpoint.average is not None:
            self.average.state = checkpoint.average
        self.epoch, self.batch = checkpoint.epoch, checkpoint.batch
        self.loss_sum, self.earlier_seconds = checkpoint.loss_sum, checkpoint.seconds
        self.history = [
            EpochRecord(int(r["epoch"]), r["loss"], r["top1"], r["learning_rate"]) for r in checkpoint.history
        ]
        logger.info("Resuming at epoch %d, step %d.", self.epoch, self.batch)


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - modules may draw from the global generator
