"""The float network of a recipe: built, loaded, trained, measured."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import nn

import edgeattn
from edgeattn.artifact import sha256_of_file
from edgeattn.data import DataSplits
from edgeattn.errors import ModelError, RecipeError
from edgeattn.models import create_model, insert_attention, load_weights, replace_convolutions, save_weights
from edgeattn.pipeline_workspace import Workspace
from edgeattn.progress import Progress
from edgeattn.quant.gates import check_gate_paths, gate_paths
from edgeattn.recipe import Recipe
from edgeattn.train import TrainResult, fit

__all__ = ["FloatStage", "StageProgress", "build_network", "check_recipe_gates", "history_of"]


def build_network(recipe: Recipe, num_classes: int, *, identity: bool) -> nn.Module:
    """Return a recipe's network with random weights, attention inserted.

    Args:
        recipe: Architecture and attention.
        num_classes: Of the classifier.
        identity: Start every gate as the identity.

    Raises:
        RecipeError: If the attention has no such option.
    """
    return add_attention(bare_network(recipe, num_classes), recipe, identity=identity)


def bare_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """Return a recipe's network with random weights, without attention."""
    spec = recipe.model
    return create_model(
        spec.arch,
        num_classes=num_classes,
        width=spec.width,
        activation=spec.activation,
        dropout=spec.dropout,
    )


def add_attention(model: nn.Module, recipe: Recipe, *, identity: bool) -> nn.Module:
    """Return a network with a recipe's attention; see `build_network`."""
    attention = recipe.attention
    if attention.kind == "none":
        return model
    where = attention.where if isinstance(attention.where, str) else list(attention.where)
    options = cast("dict[str, Any]", attention.options)
    try:
        if attention.replaces_convolutions:
            places = "depthwise" if where == "authors" else where
            return replace_convolutions(model, attention.kind, where=places, **options)
        return insert_attention(model, attention.kind, where=where, identity=identity, **options)
    except TypeError as exc:
        raise RecipeError(f"attention.options: {exc}") from exc


def check_recipe_gates(recipe: Recipe) -> None:
    """Refuse policies of modules that a recipe's network does not have, before anything is loaded or trained.

    Raises:
        RecipeError: If ``quant.gate_policies`` names what is no attention module; with the closest ones.
    """
    if recipe.quant.gate_policies:
        network = build_network(recipe, 2, identity=False)
        check_gate_paths(gate_paths(network), recipe.quant.gate_policies)


class FloatStage:
    """Gives the trained float network, from the run's folder where training is done already.

    Attributes:
        training: Records of the training, for the report.
    """

    def __init__(self, recipe: Recipe, space: Workspace, progress: Progress) -> None:
        self.recipe = recipe
        self.space = space
        self.progress = progress
        self.cache = space.cache
        self.training: list[dict[str, Any]] = []
        self._loaded: set[str] = set()

    def model(self, splits: DataSplits) -> nn.Module:
        """Return the network in eval mode, trained if the recipe says so.

        Raises:
            ModelError: If weights or classes do not fit.
        """
        recipe = self.recipe
        model = self._new_model(splits)
        config = recipe.train
        if config is None:
            return model
        key = {
            "version": edgeattn.__version__,
            "model": recipe.model.model_dump(mode="json", exclude={"weights"}),
            "weights": sha256_of_file(recipe.model.weights) if recipe.model.weights else None,
            "attention": recipe.attention.model_dump(mode="json", exclude={"edge_form"}),
            "preprocess": recipe.data.preprocess.model_dump(mode="json"),
            "augmentation": recipe.data.augmentation.model_dump(mode="json"),
            "train": config.model_dump(mode="json"),
            "data": splits.fingerprint,
        }

        def train() -> dict[str, Any]:
            result = fit(
                model,
                splits,
                config,
                preprocess=recipe.data.preprocess,
                augmentation=recipe.data.augmentation,
                checkpoint_dir=self.space.folder / "checkpoints" / "float",
                progress=StageProgress(self.progress, "train"),
                new_parameter_names=self._new_parameters(model),
                cache_dir=self.cache,
            )
            save_weights(model, self.space.folder / "float.safetensors")
            return {"history": history_of(result, "float")}

        done = self.space.run("train", key, ["float.safetensors"], train)
        self.training += done["history"]
        load_weights(model, self.space.folder / "float.safetensors", strict=True)
        return model.eval()

    def _new_model(self, splits: DataSplits) -> nn.Module:
        """Return the network as it stands before training, weights loaded and attention inserted."""
        spec, attention = self.recipe.model, self.recipe.attention
        classes = spec.num_classes or splits.num_classes
        if classes < splits.num_classes:
            raise ModelError(
                f"model.num_classes is {classes}, but the data has {splits.num_classes} classes. Raise it."
            )
        # The seed also decides the weights of what training has not touched yet.
        torch.manual_seed(self.recipe.train.seed if self.recipe.train else 0)
        # What takes a convolution's place begins with its weights, so these are loaded first.
        replaces = attention.replaces_convolutions
        model = bare_network(self.recipe, classes)
        if not replaces:
            model = add_attention(model, self.recipe, identity=attention.identity_start)
        if spec.weights is not None:
            loaded = load_weights(model, spec.weights)
            self.progress.note(loaded.summary())
            if self.recipe.train is None and not loaded.complete:
                raise ModelError(
                    f"{spec.weights} does not give all weights of this network, and the recipe does not "
                    f"train it. {loaded.summary()}"
                )
            self._loaded = {*loaded.loaded}
        else:
            self._loaded = set()
        if replaces:
            model = add_attention(model, self.recipe, identity=False)
        return model.eval()

    def _new_parameters(self, model: nn.Module) -> list[str]:
        """Name what did not come from pretrained weights; empty where nothing did."""
        if not self._loaded:
            return []
        return [name for name, _ in model.named_parameters() if name not in self._loaded]


class StageProgress:
    """Gives training's progress the name of the stage that trains."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self._progress = progress
        self._stage = stage

    def update(self, stage: str, done: int, total: int, **metrics: float) -> None:
        name = self._stage if stage == "train" else f"{self._stage}: {stage}"
        self._progress.update(name, done, total, **metrics)


def history_of(result: TrainResult, stage: str) -> list[dict[str, Any]]:
    """Return the epochs of a training as a report holds them."""
    return [{"stage": stage, **dataclasses.asdict(record)} for record in result.history]
