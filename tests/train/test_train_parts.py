"""Parameter groups, schedule, average, evaluation and lazy imports."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from train_task import PREPROCESS, build_model

import edgeattn.train
from edgeattn.attention import mechanism_class
from edgeattn.data import ImageSet, materialize
from edgeattn.errors import DataError, ModelError
from edgeattn.train import TrainArrays, TrainConfig, evaluate
from edgeattn.train.checkpoint import hash_state
from edgeattn.train.layout import choose_layout, use_layout
from edgeattn.train.optim import WeightAverage, build_optimizer, learning_rate_factor, set_learning_rate


def test_the_configuration_loads_without_torch() -> None:
    code = (
        "import sys; from edgeattn.train import TrainConfig; TrainConfig(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_every_public_name_resolves() -> None:
    for name in edgeattn.train.__all__:
        assert getattr(edgeattn.train, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        edgeattn.train.fitt  # noqa: B018


def test_vectors_get_no_weight_decay_and_new_parameters_learn_faster() -> None:
    model = build_model()
    model.register_parameter("scale", nn.Parameter(torch.ones(6, 1, 1, 1)))  # a quantizer's, per channel
    model.register_parameter("gate", nn.Parameter(torch.tensor(0.0)))
    config = TrainConfig(learning_rate=0.1, weight_decay=0.5, head_lr_multiplier=10)
    optimizer = build_optimizer(model, config, ["6", "gate"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        "0.weight": (0.5, 0.1),
        "1.weight": (0.0, 0.1),
        "1.bias": (0.0, 0.1),
        "scale": (0.0, 0.1),
        "6.weight": (0.5, 1.0),
        "6.bias": (0.0, 1.0),
        "gate": (0.0, 1.0),
    }
    set_learning_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05, 0.5}


def test_a_mechanisms_own_layers_learn_at_their_own_rate() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), mechanism_class("dcn")(8, 8))
    optimizer = build_optimizer(model, TrainConfig(learning_rate=0.1, head_lr_multiplier=4), ["1"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert found == pytest.approx(
        {
            "0.weight": 0.1,
            "0.bias": 0.1,
            "1.conv_offset.weight": 0.04,
            "1.conv_offset.bias": 0.04,
            "1.conv.weight": 0.4,
        }
    )
    edge = mechanism_class("dcn")(8, 8).edge_form(4, 4)
    groups = build_optimizer(edge, TrainConfig(learning_rate=0.1)).param_groups
    assert {round(group["lr"], 6) for group in groups} == {0.1, 0.01}


def test_the_schedule_warms_up_and_decays() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=2)
    factors = [learning_rate_factor(step, 5, config) for step in range(50)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert 0 < factors[-1] < 0.01
    assert (
        max(learning_rate_factor(step, 5, TrainConfig(epochs=1, warmup_epochs=9)) for step in range(5)) == 1
    )
    assert learning_rate_factor(0, 5, TrainConfig(warmup_epochs=0)) == 1


def test_the_average_follows_and_swaps_back() -> None:
    model = build_model()
    model.register_parameter("alias", model[6].bias)  # shared: averaged once
    average = WeightAverage(model, decay=0.5)
    start = model[6].bias.detach().clone()
    with torch.no_grad():
        model[6].bias.add_(1)
        model[1].num_batches_tracked.add_(7)
    average.update(model, step=10_000)
    average.swap(model)
    torch.testing.assert_close(model[6].bias.detach(), start + 0.5)
    assert model[1].num_batches_tracked == 7
    average.swap(model)
    torch.testing.assert_close(model[6].bias.detach(), start + 1)


class Flattening(nn.Module):
    """Cannot take channels last: `view` joins channels and pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(216, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.head(x.view(len(x), -1))


def test_channels_last_is_used_where_the_module_takes_it(model: nn.Module) -> None:
    inputs = torch.randn(2, 3, 8, 8)
    before = hash_state(model)
    model.train()
    assert choose_layout(model, inputs) is torch.channels_last
    assert model.training
    assert model[0].weight.grad is None
    assert hash_state(model) == before
    weight = model[0].weight
    with use_layout(model, torch.channels_last):
        assert weight is model[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous()
    other = Flattening()
    assert choose_layout(other, inputs) is torch.contiguous_format
    assert other.features.weight.is_contiguous()


def test_a_state_hash_follows_names_types_and_values() -> None:
    model = build_model()
    same = hash_state(build_model())
    assert hash_state(model) == same
    with torch.no_grad():
        model[6].bias[0] += 1e-6
    assert hash_state(model) != same
    assert hash_state(build_model().double()) != same


def test_every_form_of_images_evaluates_alike(model: nn.Module, arrays: TrainArrays) -> None:
    pixels, labels = arrays.validation_pixels, arrays.validation_labels
    images = ImageSet.from_array(pixels, labels)
    model.train()
    model[1].eval()
    results = [
        evaluate(model, images, batch_size=5, preprocess=PREPROCESS),
        evaluate(model, pixels, labels, batch_size=5, preprocess=PREPROCESS),
        evaluate(model, materialize(images, PREPROCESS), labels, batch_size=5),
    ]
    assert [module.training for module in (model, model[0], model[1])] == [True, True, False]
    for result in results:
        assert result.n == 24
        assert result.logits.shape == (24, 3)
        assert result.top1 == np.mean(result.logits.argmax(axis=1) == labels)
        np.testing.assert_array_equal(result.logits, results[0].logits)


def test_a_model_may_know_more_classes_than_the_data(arrays: TrainArrays) -> None:
    result = evaluate(
        build_model(classes=1000), arrays.validation_pixels, arrays.validation_labels, preprocess=PREPROCESS
    )
    assert result.logits.shape == (24, 1000)


def test_unusable_evaluations_are_refused(model: nn.Module, arrays: TrainArrays) -> None:
    pixels, labels = arrays.validation_pixels, arrays.validation_labels
    with pytest.raises(DataError, match="need labels"):
        evaluate(model, pixels, preprocess=PREPROCESS)
    with pytest.raises(DataError, match="24 images and 3 labels"):
        evaluate(model, pixels, labels[:3], preprocess=PREPROCESS)
    with pytest.raises(DataError, match="0 images and 0 labels"):
        evaluate(model, pixels[:0], labels[:0], preprocess=PREPROCESS)
    with pytest.raises(DataError, match="need the network's preprocessing"):
        evaluate(model, pixels, labels)
    with pytest.raises(ModelError, match="returns 2 classes, the labels need 3"):
        evaluate(build_model(classes=2), pixels, labels, preprocess=PREPROCESS)
