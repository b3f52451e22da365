"""Lean norms and gated MLPs equal the library's and save less for the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP, Qwen2_5_VLRMSNorm

from bbu.layers.lean_layers import make_lean, torchs_rms_norm
from tests.tiny import FAMILIES, tiny_model

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}  # the norm computes in float32


def mlp(activation: str = "silu") -> nn.Module:
    return Qwen2_5_VLMLP(Qwen2_5_VLVisionConfig(hidden_size=24, intermediate_size=40, hidden_act=activation), bias=True)


LAYERS: dict[str, Callable[[], nn.Module]] = {"norm": lambda: Qwen2_5_VLRMSNorm(24), "mlp": mlp}


def pair(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The library's layer with random weights, and the same made lean."""
    torch.manual_seed(0)
    stock = LAYERS[name]().to(dtype)
    for parameter in stock.parameters():
        nn.init.normal_(parameter)
    lean = copy.deepcopy(stock)
    make_lean(lean, {Qwen2_5_VLRMSNorm}, {Qwen2_5_VLMLP})
    assert type(lean) is not type(stock) and isinstance(lean, type(stock))
    return stock, lean


def kept_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass saves for the backward pass, without weights and shared memory."""
    weights = {parameter.data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(x)
    del output
    return sum(kept.values())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_equal_the_librarys_and_gradients_agree(name: str, dtype: torch.dtype) -> None:
    stock, lean = pair(name, dtype)
    inputs = [torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(1)).to(dtype) for _ in range(2)]
    outputs = [layer(x.requires_grad_()) for layer, x in zip((stock, lean), inputs, strict=True)]
    assert torch.equal(*outputs)
    slope = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(slope)
    found = [[x.grad, *(p.grad for p in layer.parameters())] for layer, x in zip((stock, lean), inputs, strict=True)]
    for theirs, ours in zip(*found, strict=True):
        assert ours is not None and theirs is not None and ours.dtype == theirs.dtype
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_torchs_norm_which_gpus_use_has_the_same_values_and_dtype(dtype: torch.dtype) -> None:
    stock, _ = pair("norm", dtype)
    assert isinstance(stock, Qwen2_5_VLRMSNorm)
    x = torch.randn(3, 7, 24).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torchs_rms_norm(x, stock.weight, stock.variance_epsilon)
    assert found.dtype == dtype
    torch.testing.assert_close(found, stock(x), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "share"), [("norm", 0.6), ("mlp", 0.8)])
def test_less_is_saved_for_the_backward_pass(name: str, share: float) -> None:
    stock, lean = pair(name, torch.float32)
    x = torch.randn(500, 24, requires_grad=True)
    assert kept_bytes(lean, x) < share * kept_bytes(stock, x)


def test_an_mlp_with_another_activation_is_left_alone() -> None:
    layer = mlp("gelu")
    make_lean(layer, set(), {Qwen2_5_VLMLP})
    assert type(layer) is Qwen2_5_VLMLP


def test_the_gated_silus_gradients_equal_finite_differences() -> None:
    from bbu.layers.lean_layers import gated_silu

    gate, up = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(gated_silu, (gate, up))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_and_gated_mlp_of_a_backbone_is_lean(family: str) -> None:
    names = {type(module).__mro__[1].__name__ for module in tiny_model(family).backbone.modules()}
    assert {"LeanNorm", "LeanMLP"} <= names
    left = [
        name
        for name, module in tiny_model(family).backbone.named_modules()
        if hasattr(module, "variance_epsilon") and type(module).__mro__[1].__name__ != "LeanNorm"
    ]
    assert not left
