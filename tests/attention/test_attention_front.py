"""What precedes a network: the spatial transformer and the recurrent model of glimpses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from attention_case import Array, convolve
from cases_spatial import _bilinear as bilinear

from edgeattn.attention import create_attention
from edgeattn.attention.ram import Exploration, RecurrentAttention, ram_loss
from edgeattn.attention.stn import SpatialTransformer
from edgeattn.errors import ModelError, RecipeError
from edgeattn.export.float_onnx import export_float
from edgeattn.models import to_edge_form
from edgeattn.models.digits_front import ram_example, stn_example


def randomize(module: torch.nn.Module, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)


def images(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(
        2, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def linear(vector: Array, state: dict[str, Array], key: str) -> Array:
    weight = state[f"{key}.weight"].reshape(state[f"{key}.weight"].shape[0], -1)
    return vector @ weight.T + state[f"{key}.bias"]


def transformed(x: Array, state: dict[str, Array], grid: int, mode: str) -> Array:
    """The spatial transformer's formula, pixel by pixel."""
    y = x
    for key in ("conv1", "conv2"):
        y = np.maximum(
            convolve(y, state[f"{key}.weight"], state[f"{key}.bias"], stride=2, padding=(1, 1)), 0.0
        )
    rows, columns = y.shape[2:]
    cells = np.zeros((*y.shape[:2], grid, grid))
    for i in range(grid):
        for j in range(grid):
            top, bottom = i * rows // grid, -(-(i + 1) * rows // grid)
            left, right = j * columns // grid, -(-(j + 1) * columns // grid)
            cells[:, :, i, j] = y[:, :, top:bottom, left:right].mean(axis=(2, 3))
    numbers = linear(np.maximum(linear(cells.reshape(len(x), -1), state, "fc1"), 0.0), state, "fc2")
    out = np.zeros_like(x)
    height, width = x.shape[2:]
    for n in range(len(x)):
        t = numbers[n]
        theta = t.reshape(2, 3) if mode == "affine" else np.array([[t[0], 0, t[1]], [0, t[0], t[2]]])
        for i in range(height):
            for j in range(width):
                u, v = theta @ np.array([(2 * j + 1) / width - 1, (2 * i + 1) / height - 1, 1.0])
                place = ((v + 1) * height / 2 - 0.5, (u + 1) * width / 2 - 0.5)
                for c in range(x.shape[1]):
                    out[n, c, i, j] = bilinear(x[n, c], *place)
    return out


@pytest.mark.parametrize("mode", ["affine", "attention"])
def test_transformer_equals_the_paper(mode: Any) -> None:
    module = SpatialTransformer(3, width=4, grid=2, hidden=5, mode=mode).double()
    randomize(module)
    x = images(3, 9, 11)
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    expected = transformed(x.numpy(), state, 2, mode)
    assert np.abs(expected).max() > 0.1
    assert np.abs(module(x).detach().numpy() - expected).max() < 1e-10
    edge = module.edge_form(9, 11)
    assert float((edge(x) - module(x)).detach().abs().max()) < 1e-10
    assert set(edge.state_dict()) == set(module.state_dict())


def test_transformer_starts_as_the_identity() -> None:
    x = images(1, 8, 8)
    assert float((SpatialTransformer(1).double()(x) - x).detach().abs().max()) < 1e-6


def glimpses(x: Array, state: dict[str, Array], module: RecurrentAttention) -> Array:
    """The recurrent model's formula, pixel by pixel."""
    results = []
    for image in x:
        height, width = image.shape[1:]
        place, hidden = np.zeros(2), np.zeros(module.hidden)
        for step in range(module.steps):
            seen = []
            for scale in range(module.scales):
                fine = module.glimpse * 2**scale
                patch = np.zeros((image.shape[0], module.glimpse, module.glimpse))
                for c in range(image.shape[0]):
                    for i in range(fine):
                        for j in range(fine):
                            py = (place[1] + 1) * height / 2 - 0.5 + i - (fine - 1) / 2
                            px = (place[0] + 1) * width / 2 - 0.5 + j - (fine - 1) / 2
                            patch[c, i // 2**scale, j // 2**scale] += bilinear(image[c], py, px) / 4**scale
                seen.append(patch)
            what = linear(
                np.maximum(linear(np.concatenate(seen).reshape(-1), state, "see"), 0), state, "join_see"
            )
            where = linear(np.maximum(linear(place, state, "where"), 0), state, "join_where")
            glimpse = np.maximum(what + where, 0)
            hidden = np.maximum(linear(hidden, state, "remember") + linear(glimpse, state, "read"), 0)
            if step < module.steps - 1:
                place = np.tanh(linear(hidden, state, "move"))
        results.append(linear(hidden, state, "classify"))
    return np.stack(results)


def test_glimpses_equal_the_paper() -> None:
    module = RecurrentAttention(2, classes=3, glimpse=3, scales=2, steps=3, hidden=8).double()
    randomize(module)
    x = images(2, 9, 10)
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    expected = glimpses(x.numpy(), state, module)
    assert np.abs(module(x).detach().numpy() - expected).max() < 1e-10
    edge = module.edge_form(9, 10)
    assert float((edge(x) - module(x)).detach().abs().max()) < 1e-10
    assert set(edge.state_dict()) == set(module.state_dict())
    with pytest.raises(ModelError, match="made for maps of 2x9x10"):
        edge(images(2, 10, 9))


@pytest.mark.parametrize("make", [stn_example, ram_example])
def test_examples_export_to_the_same_function(make: Any) -> None:
    torch.manual_seed(0)
    example = make()
    network = example.network.eval()
    x = torch.randn(example.input_shape, generator=torch.Generator().manual_seed(1))
    edge = to_edge_form(network, *example.input_shape[2:], materialize=True)
    model = export_float(edge, example.input_shape).model
    assert not {"Shape", "Loop", "If", "Scan"} & {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        assert np.abs(got - network(x).numpy()).max() < 1e-5


def rotated_bars(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bar with a dot at one of its sides, turned by up to 45 degrees: two classes."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:16, 0:16] - 7.5
    pictures, labels = [], []
    for _ in range(count):
        angle, label = random.uniform(-math.pi / 4, math.pi / 4), int(random.integers(2))
        u = columns * math.cos(angle) + rows * math.sin(angle)
        v = rows * math.cos(angle) - columns * math.sin(angle)
        side = 4 if label else -4
        pictures.append(np.exp(-(u**2) / 2 - v**2 / 40) + np.exp(-((u - side) ** 2) / 4 - v**2 / 4))
        labels.append(label)
    return torch.from_numpy(np.stack(pictures)).float().unsqueeze(1), torch.tensor(labels)


def test_transformer_learns_through_the_sampling() -> None:
    torch.manual_seed(0)
    front = SpatialTransformer(1, width=8, grid=2, hidden=16)
    # A classifier that only sees the columns' sums: turned pictures have to be turned back.
    classifier = torch.nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*front.parameters(), *classifier.parameters()], lr=3e-3)
    x, y = rotated_bars(64, 0)
    before = front.fc2.weight.detach().clone()
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(classifier(front(x).sum(2).flatten(1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(front.fc2.weight, before)


def test_glimpses_learn_by_reinforce() -> None:
    """The class is in a corner that one narrow glimpse at the centre does not show."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = RecurrentAttention(1, classes=2, glimpse=4, scales=2, steps=3, hidden=32, spread=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = rotated_bars(64, 0)
    for _ in range(120):
        loss = ram_loss(model.explore(x, generator), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen, labels = rotated_bars(64, 1)
    assert float((model(unseen).argmax(1) == labels).float().mean()) > 0.9


def test_reinforce_moves_towards_places_that_were_rewarded() -> None:
    """The loss's gradient for a place's log-probability is minus its advantage."""
    log_probability = torch.zeros(2, 1, requires_grad=True)
    logits = torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    found = Exploration(logits, log_probability, torch.full((2, 1), 0.25))
    ram_loss(found, torch.tensor([0, 1])).backward()
    assert log_probability.grad is not None
    assert torch.allclose(log_probability.grad, torch.tensor([[-0.75], [0.25]]) / 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpatialTransformer(3, grid=0), "grid of stn must be positive"),
        (lambda: SpatialTransformer(3, mode="afine"), "Did you mean 'affine'"),  # type: ignore[arg-type]
        (lambda: RecurrentAttention(3, classes=1), "classes of ram must be at least 2"),
        (lambda: RecurrentAttention(3, spread=-1.0), "spread of ram must be a number greater than 0"),
        (lambda: create_attention("stn", 3), "does not go from a map to a map"),
    ],
)
def test_bad_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
