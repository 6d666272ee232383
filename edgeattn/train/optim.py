"""Parameter groups, the learning-rate schedule and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from edgeattn.errors import ModelError, close_matches_hint
from edgeattn.train.config import TrainConfig

__all__ = ["WeightAverage", "build_optimizer", "learning_rate_factor", "set_learning_rate"]


def build_optimizer(
    model: nn.Module, config: TrainConfig, new_parameter_names: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer with its parameter groups.

    Parameters with at most one dimension longer than one (batch norms, biases, the scales of fake
    quantizers) get no weight decay: pulling them to zero does not regularize, it rescales. A mechanism's own
    `learning_rate_scales` hold for its layers.

    Args:
        model: Parameters that do not require a gradient are left out.
        config: Optimizer and its values.
        new_parameter_names: Parameters, or modules by the prefix of their parameters' names, that learn
            at `head_lr_multiplier` times the rate.

    Raises:
        ModelError: If nothing can be trained, or a new name does not exist.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise ModelError("The model has no parameter that requires a gradient; there is nothing to train.")
    everything = dict(model.named_parameters(remove_duplicate=False))
    for new in new_parameter_names:
        if not any(_belongs(name, new) for name in everything):
            raise ModelError(
                f"The model has no parameter or module {new!r}. {close_matches_hint(new, everything)}"
            )
    scales = _own_scales(model)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        is_new = any(_belongs(name, new) for new in new_parameter_names)
        is_vector = parameter.numel() == max(parameter.shape, default=1)
        own = math.prod(scale for layer, scale in scales.items() if _belongs(name, layer))
        groups.setdefault((is_new, is_vector, own), []).append(parameter)
    options = [
        {
            "params": parameters,
            "weight_decay": 0.0 if is_vector else config.weight_decay,
            "lr": config.learning_rate * (config.head_lr_multiplier if is_new else 1.0) * own,
        }
        for (is_new, is_vector, own), parameters in groups.items()
    ]
    for group in options:
        group["base_lr"] = group["lr"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(options, lr=config.learning_rate, momentum=config.momentum)
    # Mobile networks have hundreds of small parameters: one kernel for all saves more time than it computes.
    return torch.optim.AdamW(options, lr=config.learning_rate, fused=True)


def _own_scales(model: nn.Module) -> dict[str, float]:
    """Return the layers, by path, that learn at a rate of their own, and its factor."""
    found: dict[str, float] = {}
    for path, module in model.named_modules():
        for layer, scale in getattr(module, "learning_rate_scales", {}).items():
            found[f"{path}.{layer}".lstrip(".")] = scale
    return found


def _belongs(name: str, new: str) -> bool:
    return name == new or name.startswith(new + ".")


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Return the share of the base learning rate at `step`, counted from 0: warm-up, then cosine to 0."""
    total = config.epochs * steps_per_epoch
    # A warm-up that fills the whole run would never reach the base rate.
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` of its base."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class WeightAverage:
    """An exponential moving average of a module's state.

    Early on the average follows the weights faster, as min(decay, (1 + step) / (10 + step)), or a short
    run would still be holding its starting weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.state: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in _tensors(model).items()
        }

    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after `step`, counted from 0, into the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in _tensors(model).items():
                if value.is_floating_point():
                    self.state[name].lerp_(value, 1 - decay)
                else:
                    self.state[name].copy_(value)

    def swap(self, model: nn.Module) -> None:
        """Exchange the module's state with the average; a second call puts it back."""
        with torch.no_grad():
            for name, value in _tensors(model).items():
                current = value.detach().clone()
                value.copy_(self.state[name])
                self.state[name].copy_(current)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return each tensor of the state once, under its first name; shared ones must not be averaged twice."""
    seen: dict[int, str] = {}
    result: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen[id(value)] = name
            result[name] = value
    return result
