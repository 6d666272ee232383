"""What every registered mechanism and each of its edge forms must do.

Registering a mechanism of the contract "map" runs these tests on it; it also needs a case with an oracle in
the `cases_*.py` of its family. Mechanisms of other contracts are tested in `test_other_contracts.py`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cases_branch
import cases_channel
import cases_channel_spatial
import cases_map_gates
import cases_spatial
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeattn.attention import attention_options, attentions, create_attention
from edgeattn.attention.base import Attention, EdgeForm
from edgeattn.errors import ModelError, RecipeError

CASES = {
    **cases_channel.CASES,
    **cases_spatial.CASES,
    **cases_map_gates.CASES,
    **cases_channel_spatial.CASES,
    **cases_branch.CASES,
}
KINDS = tuple(name for name in attentions if attentions.get(name).contract == "map")
FORMS = [(kind, form) for kind in KINDS for form in attentions.get(kind).edge_forms]
ALLOWED_OPS = frozenset(
    [
        "Add",
        "AveragePool",
        "Concat",
        "Constant",
        "Conv",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "MaxPool",
        "Mul",
        "ReduceMax",
        "ReduceMean",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Split",
    ]
)


def defaults(kind: str) -> dict[str, Any]:
    return CASES[kind].variants[0]


def make(kind: str, channels: int | None = None, seed: int = 0, **options: Any) -> Attention:
    """A mechanism in float64 and evaluation mode with random weights and batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    count = CASES[kind].channels if channels is None else channels
    module = create_attention(kind, count, **(options or defaults(kind))).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.3)
    return module


def maps(kind: str, height: int, width: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CASES[kind].channels, height, width, generator=generator, dtype=torch.float64)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_float_form_equals_the_paper(kind: str) -> None:
    for number, options in enumerate(CASES[kind].variants):
        if number in CASES[kind].beyond_oracle:
            continue
        module = make(kind, seed=number, **options)
        x = maps(kind, 5, 6)
        weights = {key: value.numpy() for key, value in module.state_dict().items()}
        expected = CASES[kind].oracle(x.numpy(), weights, options)
        assert np.abs(module(x).detach().numpy() - expected).max() < CASES[kind].tolerance * max(
            1.0, float(np.abs(expected).max())
        )


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_edge_form_is_exact(kind: str, form: str) -> None:
    for options in CASES[kind].variants:
        for height, width in CASES[kind].sizes:
            module = make(kind, **options)
            x = maps(kind, height, width)
            edge = module.edge_form(height, width, form)
            assert difference(edge(x), module(x)) < 1e-9
            assert difference(edge.materialize()(x), module(x)) < 1e-9


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_edge_form_is_exact_in_training_mode(kind: str, form: str) -> None:
    """Batch statistics, and the running statistics they leave behind, are those of the float form."""
    module = make(kind).train()
    twin = copy.deepcopy(module)
    edge = twin.edge_form(5, 6, form)
    x = maps(kind, 5, 6)
    assert difference(edge(x), module(x)) < 1e-9
    for key, value in module.state_dict().items():
        assert torch.allclose(twin.state_dict()[key], value, atol=1e-12), key


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_edge_form_trains_the_float_form(kind: str, form: str) -> None:
    module = make(kind, **(CASES[kind].trained_options or {}))
    edge = module.edge_form(5, 6, form)
    assert {id(p) for p in edge.parameters()} == {id(p) for p in module.parameters()}
    x = maps(kind, 5, 6).requires_grad_()
    module(x).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    edge(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and expected[name] is not None
        assert torch.allclose(parameter.grad, expected[name], atol=1e-9), name
        if not name.endswith(CASES[kind].idle or ("-",)):
            assert float(parameter.grad.abs().sum()) > 0, name
    before = module(x)
    with torch.no_grad():
        for parameter in edge.parameters():
            parameter.mul_(1.5)
    assert difference(module(x), before) > 1e-6 or not list(module.parameters())
    assert difference(edge(x), module(x)) < 1e-9


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_edge_form_has_the_float_forms_keys(kind: str, form: str) -> None:
    module, other = make(kind, seed=3), make(kind, seed=4)
    edge = module.edge_form(5, 6, form)
    assert set(edge.state_dict()) == set(module.state_dict())
    assert {k: v.shape for k, v in edge.state_dict().items()} == {
        k: v.shape for k, v in module.state_dict().items()
    }
    other.load_state_dict(edge.state_dict(), strict=True)
    x = maps(kind, 5, 6)
    assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_shape_type_and_repetition(kind: str) -> None:
    module = make(kind).float()
    for batch, (height, width) in ((1, (7, 9)), (3, (4, 2))):
        x = maps(kind, height, width, batch).float()
        y = module(x)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert torch.equal(module(x), y)
        for form in attentions.get(kind).edge_forms:
            edge = module.edge_form(height, width, form)
            assert edge(x).shape == x.shape
            assert edge(x).dtype == x.dtype
            assert torch.equal(edge(x), edge(x))
    if CASES[kind].bfloat16:
        assert module.bfloat16()(maps(kind, 4, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_fewest_channels(kind: str) -> None:
    few = CASES[kind].few_channels
    module = make(kind, few)
    x = maps(kind, 4, 5)[:, :few]
    for form in attentions.get(kind).edge_forms:
        assert difference(module.edge_form(4, 5, form)(x), module(x)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_identity_and_learns_from_there(kind: str) -> None:
    for options in CASES[kind].variants:
        for training in (False, True):
            module = make(kind, **options).train(training)
            module.start_as_identity()
            x = maps(kind, 5, 6)
            near = 1e-12 + module.identity_error * float(x.abs().max())
            assert difference(module(x), x) < near
            for form in attentions.get(kind).edge_forms:
                assert difference(module.edge_form(5, 6, form)(x), x) < near
            if not list(module.parameters()):
                continue
            (module(x) * maps(kind, 5, 6, seed=5)).sum().backward()
            largest = max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)
            assert largest > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_gain_is_saved_only_while_it_is_there(kind: str) -> None:
    plain, started = make(kind), make(kind)
    started.start_as_identity()
    more = {"gain"} if started.gain != 1.0 else set()
    assert set(started.state_dict()) - set(plain.state_dict()) == more
    x = maps(kind, 5, 6)
    near = 1e-12 + started.identity_error * float(x.abs().max())
    restored = make(kind, seed=9)
    restored.load_state_dict(started.state_dict(), strict=True)
    assert difference(restored(x), x) < near
    edge = plain.edge_form(5, 6)
    edge.load_state_dict(started.state_dict(), strict=True)
    assert difference(edge(x), x) < near
    # Weights without a gain are the authors' form, whatever the module was before.
    started.load_state_dict(make(kind).state_dict(), strict=True)
    assert started.gain == 1.0
    assert torch.equal(started(x), make(kind)(x))


@pytest.mark.parametrize("kind", KINDS)
def test_absorb_keeps_the_function(kind: str) -> None:
    for options in CASES[kind].variants:
        for input_scale, gain in ((1.0, 1.0), (4.0, 1.0), (0.5, 3.0)):
            module = make(kind, **options)
            module.gain = 2.0
            x = maps(kind, 5, 6)
            before = module(x)
            if input_scale != 1.0 and not module.absorbs_input_scale:
                with pytest.raises(ModelError, match="cannot undo a scale"):
                    module.absorb(input_scale, gain)
                continue
            remainder = module.absorb(input_scale, gain)
            assert difference(module(input_scale * x) * remainder, before) < 1e-9


# The tracing exporter is what the package uses; torch prefers its successor.
@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning")
@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_exports_to_static_onnx(kind: str, form: str, tmp_path: Path) -> None:
    module = make(kind).float()
    x = maps(kind, 7, 9).float()
    for materialize in (False, True):
        edge = module.edge_form(7, 9, form)
        model = edge.materialize() if materialize else edge
        path = tmp_path / f"{materialize}.onnx"
        torch.onnx.export(
            model, (x,), str(path), dynamo=False, opset_version=17, input_names=["x"], output_names=["y"]
        )
        graph = onnx.load(path).graph
        assert {node.op_type for node in graph.node} <= ALLOWED_OPS | CASES[kind].operations
        constants = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            # What is computed from parameters alone becomes an initializer when the package exports.
            if set(node.input) <= constants:
                constants.update(node.output)
        for node in graph.node:
            if node.op_type == "Conv":
                assert set(node.input[1:]) <= constants, f"the weight of {node.name} is computed in the graph"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            expected = module(x).numpy()
        assert np.abs(got - expected).max() < CASES[kind].export_tolerance


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_another_size_is_refused(kind: str, form: str) -> None:
    edge = make(kind).edge_form(5, 6, form)
    count = CASES[kind].channels
    with pytest.raises(ModelError, match=rf"made for maps of {count}x5x6, got \(2, {count}, 6, 5\)"):
        edge(maps(kind, 6, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_batch_norms_stay_frozen(kind: str) -> None:
    module = make(kind).train()
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    for form in attentions.get(kind).edge_forms:
        edge = module.edge_form(5, 6, form)
        assert edge.training
        assert not any(norm.training for norm in norms)


@pytest.mark.parametrize("kind", KINDS)
def test_registered_facts_are_true(kind: str) -> None:
    info = attentions.get(kind)
    module = make(kind)
    assert info.name == module.kind == kind
    assert info.default_form in info.edge_forms
    assert isinstance(module.edge_form(4, 4), EdgeForm)
    assert module.edge_form(4, 4).form == info.default_form
    assert all(key != "channels" for key in attention_options(kind))
    if not info.reads_size:
        # A gate made of global pools does not see where things are.
        x = maps(kind, 4, 4)
        assert difference(module(x.flip(2)).flip(2), module(x)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_named(kind: str) -> None:
    with pytest.raises(TypeError, match=f"{kind!r} has no option 'kernal_size'"):
        create_attention(kind, 8, kernal_size=3)
    for channels, options, message in CASES[kind].bad:
        with pytest.raises(RecipeError, match=message):
            create_attention(kind, channels, **options)
    with pytest.raises(RecipeError, match="at least 1 channel"):
        create_attention(kind, 0)
    module = make(kind)
    with pytest.raises(RecipeError, match=f"{kind!r} has no edge form 'pool_cnv'"):
        module.edge_form(4, 4, "pool_cnv")
    with pytest.raises(RecipeError, match="positive size, got 0x4"):
        module.edge_form(0, 4)
