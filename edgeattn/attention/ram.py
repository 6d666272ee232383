"""Recurrent model of visual attention (arXiv 1406.6247).

The network sees an image only through glimpses: square patches around a place, at `scales` resolutions, each
twice as wide and half as sharp as the one before. Glimpse and place are embedded, a recurrent core adds them
to its state, and from the state come the next place and, at the last step, the class.
Shapes: image (N, C, H, W); place (N, 2) as (x, y) in [-1, 1]; state (N, hidden); result (N, classes).

Places are drawn from a normal distribution around their mean in training (`explore`, learned by REINFORCE
with a baseline: `ram_loss`), and are the mean otherwise, so that inference is deterministic and unrolls to a
static graph.

Deviations: patches are read bilinearly, so a place need not be on a pixel, and wide ones are averaged down.
The core is the paper's rectified one for still images. Places are not clipped after drawing; outside there are zeros.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from edgeattn.attention.base import EdgeForm, Mechanism
from edgeattn.attention.mapwise import check_count, check_number, map_size

__all__ = ["Exploration", "RecurrentAttention", "ram_loss"]


@dataclasses.dataclass(frozen=True)
class Exploration:
    """What one run with drawn places gives.

    Attributes:
        logits: (N, classes).
        log_probability: Of the places drawn, (N, steps - 1).
        baseline: Expected reward from each state, (N, steps - 1).
    """

    logits: torch.Tensor
    log_probability: torch.Tensor
    baseline: torch.Tensor


class RecurrentAttention(Mechanism):
    """RAM; its keys are the names of its layers, ``see`` to ``expect``.

    Args:
        channels: Channels of the image.
        classes: Results.
        glimpse: Rows and columns of a glimpse.
        scales: Resolutions.
        steps: Glimpses.
        hidden: Width of the state.
        spread: Standard deviation of the places drawn, of half the image.

    Raises:
        RecipeError: If an option's value is not valid.
    """

    kind = "ram"

    def __init__(
        self,
        channels: int,
        *,
        classes: int = 10,
        glimpse: int = 8,
        scales: int = 2,
        steps: int = 4,
        hidden: int = 128,
        spread: float = 0.15,
    ) -> None:
        super().__init__(channels)
        self.classes = check_count("ram", "classes", classes, 2)
        self.glimpse = check_count("ram", "glimpse", glimpse, 2)
        self.scales = check_count("ram", "scales", scales)
        self.steps = check_count("ram", "steps", steps)
        self.hidden = check_count("ram", "hidden", hidden, 2)
        self.spread = check_number("ram", "spread", spread)
        half = hidden // 2
        self.see = nn.Linear(channels * scales * glimpse**2, half)
        self.where = nn.Linear(2, half)
        self.join_see = nn.Linear(half, hidden)
        self.join_where = nn.Linear(half, hidden)
        self.remember = nn.Linear(hidden, hidden)
        self.read = nn.Linear(hidden, hidden)
        self.move = nn.Linear(hidden, 2)
        self.classify = nn.Linear(hidden, classes)
        self.expect = nn.Linear(hidden, 1)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Classify with the mean places; also the edge form's formula."""
        place = state = None
        for step in range(self.steps):
            state = _look(self, x, place, state)
            if step < self.steps - 1:
                place = self.move(state).tanh()
        logits: torch.Tensor = self.classify(state)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes) of images (N, C, H, W), from the mean places."""
        return self.compute(x)

    def explore(self, x: torch.Tensor, generator: torch.Generator | None = None) -> Exploration:
        """Classify with drawn places, for `ram_loss`.

        Args:
            x: Images (N, C, H, W).
            generator: Of the places; None takes torch's.
        """
        place = state = None
        log_probabilities, baselines = [], []
        for step in range(self.steps):
            state = _look(self, x, place, state)
            if step < self.steps - 1:
                mean = self.move(state.detach()).tanh()
                noise = torch.randn(mean.shape, generator=generator).to(mean)
                place = (mean + self.spread * noise).detach()
                distance = (place - mean) / self.spread
                log_probabilities.append(-0.5 * distance.square().sum(1))
                baselines.append(self.expect(state.detach())[:, 0])
        none = x.new_zeros(x.shape[0], 0)
        return Exploration(
            self.classify(state),
            torch.stack(log_probabilities, 1) if log_probabilities else none,
            torch.stack(baselines, 1) if baselines else none,
        )

    def _make_edge_form(self, height: int, width: int, form: str) -> EdgeForm:
        return _RecurrentEdge(self, height, width, form)


def ram_loss(found: Exploration, labels: torch.Tensor) -> torch.Tensor:
    """Return the hybrid loss: cross-entropy, REINFORCE for the places, and the baseline's squared error.

    The reward is 1 for the right class and 0 otherwise, the same for all steps.
    """
    reward = (found.logits.argmax(1) == labels).to(found.logits)[:, None]
    loss = functional.cross_entropy(found.logits, labels)
    if found.log_probability.shape[1] == 0:
        return loss
    advantage = (reward - found.baseline).detach()
    reinforce = -(found.log_probability * advantage).mean()
    return loss + reinforce + functional.mse_loss(found.baseline, reward.expand_as(found.baseline))


def _offsets(size: int, height: int, width: int) -> torch.Tensor:
    """Return places one pixel apart around 0, shape (1, size, size, 2), float64."""
    steps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(steps * 2 / height, steps * 2 / width, indexing="ij")
    return torch.stack([x, y], dim=2).unsqueeze(0)


def _look(
    module: RecurrentAttention | _RecurrentEdge,
    x: torch.Tensor,
    place: torch.Tensor | None,
    state: torch.Tensor | None,
) -> torch.Tensor:
    """Take a glimpse and return the next state; without a place at the image's centre, state zero."""
    height, width = map_size(module, x)
    patches = []
    for scale in range(module.scales):
        size = module.glimpse * 2**scale
        if isinstance(module, _RecurrentEdge):
            grid = module.get_buffer(f"offsets{scale}")
        else:
            grid = _offsets(size, height, width).to(x)
        # Repeated for the batch where there is no place to broadcast with
        centre = place if place is not None else x.flatten(1).narrow(1, 0, 2) * 0.0
        patch = functional.grid_sample(x, grid + centre.reshape(-1, 1, 1, 2), align_corners=False)
        patches.append(functional.avg_pool2d(patch, 2**scale) if scale else patch)
    seen = torch.cat(patches, dim=1).reshape(-1, module.see.in_features)
    glimpse = module.join_see(module.see(seen).relu())
    # The first place is 0, for which this layer gives its bias.
    where = module.where(place) if place is not None else module.where.bias.unsqueeze(0)
    glimpse = (glimpse + module.join_where(where.relu())).relu()
    total = module.read(glimpse)
    total = total + (module.remember(state) if state is not None else module.remember.bias)
    result: torch.Tensor = total.relu()
    return result


class _RecurrentEdge(EdgeForm):
    """The steps unrolled, with constant grids."""

    def __init__(self, source: RecurrentAttention, height: int, width: int, form: str) -> None:
        super().__init__(source, height, width, form)
        self.scales, self.glimpse, self.steps = source.scales, source.glimpse, source.steps
        self.see, self.where, self.join_see, self.join_where = (
            source.see, source.where, source.join_see, source.join_where,
        )  # fmt: skip
        self.remember, self.read, self.move = source.remember, source.read, source.move
        self.classify, self.expect = source.classify, source.expect
        like = source.see.weight
        for scale in range(self.scales):
            offsets = _offsets(self.glimpse * 2**scale, height, width).to(like)
            self.register_buffer(f"offsets{scale}", offsets, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        return RecurrentAttention.compute(self, x)  # type: ignore[arg-type]  # it has all that is read
