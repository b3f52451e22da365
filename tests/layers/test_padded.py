"""MLPs of odd widths are padded inside the forward: the same values, gradients, names and sizes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionMLP

from bbu.layers import padded
from bbu.layers.lean_layers import make_lean
from tests.tiny import PAIR, noise_photo, pack, run_model, tiny_model, tiny_processor


class Sizes:
    hidden_size, intermediate_size, hidden_act = 24, 70, "silu"


class PlainSizes(Sizes):
    hidden_act = "gelu_pytorch_tanh"


MLPS = {"gated": Qwen2_5_VLMLP(Sizes, bias=True), "plain": Qwen3VLVisionMLP(PlainSizes)}


def lean(name: str) -> nn.Module:
    layer = deepcopy(MLPS[name]).double()
    make_lean(layer, set(), {type(layer)})
    return layer


def pad_on_cpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """CPUs pad as GPUs do; the shapes of the weights that the products then see."""
    shapes: list[tuple[int, ...]] = []

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        shapes.append(tuple(weight.shape))
        return real(x, weight, bias)

    real = nn.functional.linear
    monkeypatch.setattr(padded, "DEVICES", ("cpu",))
    monkeypatch.setattr(padded.F, "linear", watched)
    return shapes


def outcome(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    found = [output.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]
    assert all(value is not None for value in found)
    return [value for value in found if value is not None]


@pytest.mark.parametrize("name", MLPS)
def test_values_gradients_names_and_sizes_are_those_without_padding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 3, 24, dtype=torch.float64)
    layer = lean(name)
    before, names = outcome(layer, x), [(key, value.shape) for key, value in layer.state_dict().items()]
    layer.zero_grad()
    shapes = pad_on_cpus(monkeypatch)
    after = outcome(layer, x)
    assert shapes == ([(128, 24), (128, 24), (24, 128)] if name == "gated" else [(128, 24), (24, 128)])
    for one, other in zip(before, after, strict=True):  # the order in which a product adds depends on its width
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    assert [(key, value.shape) for key, value in layer.state_dict().items()] == names


@pytest.mark.parametrize("name", MLPS)
def test_under_autocast_values_are_those_without_padding_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = lean(name).float(), torch.randn(6, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = layer(x)
        pad_on_cpus(monkeypatch)
        after = layer(x)
    assert before.dtype == after.dtype == torch.bfloat16
    torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-3)


def test_an_adapted_layer_is_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = lean("gated"), torch.randn(2, 24, dtype=torch.float64)
    layer.up_proj = nn.Sequential(layer.up_proj)  # as an adapter wraps it
    before = layer(x)
    shapes = pad_on_cpus(monkeypatch)
    assert torch.equal(layer(x), before) and (128, 24) not in shapes


def test_an_activation_that_moves_zero_leaves_the_mlp_alone() -> None:
    layer = deepcopy(MLPS["plain"])
    layer.act_fn = nn.Sigmoid()
    make_lean(layer, set(), {Qwen3VLVisionMLP})
    assert type(layer) is Qwen3VLVisionMLP


def test_multiples_and_cpus_are_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, odd, even = torch.zeros(1, 24), nn.Linear(70, 24), nn.Linear(128, 24)
    assert padded.missing_columns(x, odd) == 0
    monkeypatch.setattr(padded, "DEVICES", ("cpu",))
    assert (padded.missing_columns(x, odd), padded.missing_columns(x, even)) == (58, 0)
    assert -3420 % padded.MULTIPLE == 36, "Qwen2.5-VL's tower: 3,456"


@pytest.mark.parametrize("family", [*PAIR, "ovis2_5"])  # whose towers have an MLP of their own each
def test_a_backbone_gives_the_same_with_padding(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    processor = tiny_processor(family)
    batch = pack(model, [processor.process_photos([], noise_photo(1), with_answer=True)])
    with torch.no_grad():
        before = run_model(model, batch).hidden_TD
        shapes = pad_on_cpus(monkeypatch)
        after = run_model(model, batch).hidden_TD
    blocks = len(model.backbone.blocks("llm")) + len(model.backbone.blocks("vision"))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    assert sum(shape[0] % 64 == 0 for shape in shapes) >= blocks
