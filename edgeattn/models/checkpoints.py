"""Load and save weights: safetensors, or torch files without code; every known key layout."""

from __future__ import annotations

import dataclasses
import logging
import pickle  # noqa: TID251 - for the name of an exception; nothing is unpickled with it
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from edgeattn.artifact import atomic_write
from edgeattn.errors import ModelError
from edgeattn.models.layouts import LAYOUTS, key_candidates

__all__ = ["LoadReport", "load_weights", "read_weights", "save_weights"]

logger = logging.getLogger(__name__)

# Keys under which training scripts keep the weights beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What loading a checkpoint did. Keys are the network's own, except in `unexpected`.

    Attributes:
        loaded: Keys that got their value from the file.
        missing: Keys that the file does not have; they keep their values.
        unexpected: Keys in the file that the network does not have.
        mismatched_shape: (key, shape in the file, shape in the network); left as they were.
        reinitialised: Keys of the classifier left as they were, as the file has another number of classes.
        layout: The key layout of the file, see `edgeattn.models.layouts`.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    reinitialised: tuple[str, ...]
    layout: str

    @property
    def complete(self) -> bool:
        """Whether every key was loaded and none was left over."""
        return not (self.missing or self.unexpected or self.mismatched_shape or self.reinitialised)

    def summary(self) -> str:
        """Return a few lines for people."""
        lines = [f"loaded {len(self.loaded)} tensors (key layout: {self.layout})"]
        if self.reinitialised:
            lines.append(f"classifier left untrained (other classes): {', '.join(self.reinitialised)}")
        if self.missing:
            lines.append(f"not in the file, kept as they were: {_some(self.missing)}")
        if self.unexpected:
            lines.append(f"in the file only, ignored: {_some(self.unexpected)}")
        if self.mismatched_shape:
            shown = [f"{key} {got} instead of {want}" for key, got, want in self.mismatched_shape]
            lines.append(f"other shape, kept as they were: {_some(shown)}")
        return "\n".join(lines)


def _some(items: tuple[str, ...] | list[str], limit: int = 4) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def load_weights(model: nn.Module, path: str | Path, *, strict: bool = False) -> LoadReport:
    """Load a checkpoint into `model`, in place, in whichever known layout its keys are.

    A classifier for another number of classes stays as it is and is reported. Attention that the file
    brings weights for gets its authors' plain form (gain 1), unless the file has a gain.

    Args:
        model: The network, in float or edge form.
        path: A ``.safetensors`` file, or a torch file (``.pth``, ``.pt``) that holds tensors only.
        strict: Refuse anything but a complete match.

    Raises:
        ModelError: If the file is missing, damaged, contains code, holds values that are not finite, or
            does not match.
    """
    path = Path(path)
    weights = read_weights(path)
    own = model.state_dict()
    layout, found = _choose_layout(model, own, weights)
    head = _classifier_prefix(model)
    usable: dict[str, torch.Tensor] = {}
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    reinitialised: list[str] = []
    for key, source in found.items():
        value = _fit(weights[source], own.get(key))
        expected = own.get(key)
        if expected is None or value.shape == expected.shape:
            usable[key] = value
        elif head is not None and key.startswith(head) and value.shape[1:] == expected.shape[1:]:
            reinitialised.append(key)
        else:
            mismatched.append((key, tuple(value.shape), tuple(expected.shape)))
    report = LoadReport(
        loaded=tuple(usable),
        missing=tuple(k for k in own if k not in found and not _is_optional(k)),
        unexpected=tuple(sorted(set(weights) - set(found.values()))),
        mismatched_shape=tuple(mismatched),
        reinitialised=tuple(reinitialised),
        layout=layout,
    )
    if not any(key.rpartition(".")[2] == "weight" for key in usable):
        raise ModelError(
            f"Nothing in {path} fits this {type(model).__name__}. The file has keys such as "
            f"{_some(sorted(weights), 2) or '(none)'}, the network {_some(sorted(own), 2)}. "
            "Load a checkpoint of the same architecture and width."
        )
    if strict and not report.complete:
        raise ModelError(f"{path} does not match {type(model).__name__} exactly:\n{report.summary()}")
    model.load_state_dict(usable, strict=False)
    logger.info("%s: %s", path, report.summary())
    return report


def save_weights(model: nn.Module, path: str | Path) -> Path:
    """Write the network's weights under its own keys as safetensors, whole or not at all.

    Raises:
        ModelError: If the name does not end in ``.safetensors``.
        ArtifactError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"Weights are saved as safetensors; {path.name!r} must end in .safetensors.")
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(tensors, str(temporary), metadata={"format": "pt"})
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint file onto the CPU and check that they are finite.

    Raises:
        ModelError: If the file is missing, damaged, contains code, or holds values that are not finite.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}. Check the path; it is relative to the recipe.")
    if path.suffix == ".safetensors":
        try:
            weights = load_file(str(path), device="cpu")
        except (SafetensorError, OSError) as exc:
            raise ModelError(
                f"{path} cannot be read as safetensors ({exc}); it may be cut short. Fetch it again."
            ) from exc
    else:
        weights = _tensors_in(path, _read_torch_file(path))
    if not weights:
        raise ModelError(f"{path} holds no tensors.")
    _check_finite(path, weights)
    return weights


def _read_torch_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        if "global" in str(exc).lower() or zipfile.is_zipfile(path):
            raise ModelError(
                f"{path} holds more than tensors: loading it would run code from the file, which is "
                "refused. Load it where you trust it and save its state_dict with "
                "safetensors.torch.save_file."
            ) from exc
        raise _damaged(path, exc) from exc
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        raise _damaged(path, exc) from exc


def _damaged(path: Path, exc: Exception) -> ModelError:
    first_line = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
    return ModelError(
        f"{path} cannot be read as a torch file ({first_line}); it may be cut short. Fetch it again."
    )


def _tensors_in(path: Path, content: Any) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected a state dict.")
    weights = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    # DataParallel puts one prefix before everything.
    if weights and all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def _check_finite(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    bad = [
        key
        for key, value in weights.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise ModelError(
            f"{path} holds NaN or infinite values in {_some(bad)}. The training that wrote it diverged; "
            "use an earlier checkpoint."
        )


def _choose_layout(
    model: nn.Module, own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> tuple[str, dict[str, str]]:
    """Return the layout under which most tensors fit, with own key -> key in the file."""
    best: tuple[int, str, dict[str, str]] = (-1, LAYOUTS[0], {})
    for layout in LAYOUTS:
        found: dict[str, str] = {}
        fitting = 0
        for key, spellings in key_candidates(model, layout).items():
            source = next((spelling for spelling in spellings if spelling in weights), None)
            if source is None:
                continue
            found[key] = source
            expected = own.get(key)
            fitting += expected is None or _fit(weights[source], expected).shape == expected.shape
        # Only more matches win: the network's own layout is preferred to an equal one.
        if fitting > best[0]:
            best = (fitting, layout, found)
    return best[1], best[2]


def _fit(value: torch.Tensor, expected: torch.Tensor | None) -> torch.Tensor:
    """Give a linear layer's 2-D weight the shape of the 1x1 convolution that stands for it."""
    if expected is not None and value.dim() == 2 and tuple(expected.shape) == (*value.shape, 1, 1):
        return value[:, :, None, None]
    return value


def _classifier_prefix(model: nn.Module) -> str | None:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return f"{linear[-1]}." if linear else None


def _is_optional(key: str) -> bool:
    # A counter that only matters with momentum None, and many exporters leave it out.
    return key.rpartition(".")[2] in ("num_batches_tracked", "gain")
