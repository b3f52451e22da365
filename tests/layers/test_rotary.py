"""Rotary embeddings have transformers' values and gradients."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, apply_rotary_pos_emb_vision

from bbu.layers import rotary
from bbu.layers.rotary import rotate

ROWS, HEADS, WIDTH = 7, 3, 20


def tables(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.rand(ROWS, WIDTH // 2) * 6
    return torch.cat([angles.cos()] * 2, -1).to(dtype), torch.cat([angles.sin()] * 2, -1).to(dtype)


def check_bits(found: torch.Tensor, expected: torch.Tensor, inputs: torch.Tensor) -> None:
    push = torch.randn(expected.shape).to(expected.dtype)
    ours, theirs = (torch.autograd.grad(output, inputs, push.to(output.dtype))[0] for output in (found, expected))
    assert found.dtype == inputs.dtype and torch.equal(found, expected.to(inputs.dtype)) and torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_towers_rotation_is_equal_to_the_bit(dtype: torch.dtype) -> None:
    """Its tables are float32 for any dtype; queries and keys are turned together."""
    torch.manual_seed(0)
    packed, (cos, sin) = torch.randn(ROWS, 2, HEADS, WIDTH).to(dtype).requires_grad_(), tables(torch.float32)
    expected = torch.stack(apply_rotary_pos_emb_vision(*packed.unbind(1), cos, sin), 1)
    check_bits(rotate(packed, cos[:, None, None], sin[:, None, None]), expected, packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_language_models_rotation_is_equal_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    heads, (cos, sin) = torch.randn(ROWS, HEADS, WIDTH).to(dtype).requires_grad_(), tables(dtype)
    query = heads.transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(query, query, cos[None], sin[None])
    check_bits(rotate(heads, cos[:, None], sin[:, None]), expected[0].transpose(0, 1), heads)


def test_a_gpus_way_differs_by_a_rounding() -> None:
    torch.manual_seed(2)
    x, (cos, sin) = torch.randn(ROWS, 2, WIDTH // 2), tables(torch.float32)
    tables_of_halves = [table[:, : WIDTH // 2] for table in (cos, sin)]
    for way in (1, -1):
        one, two = (rotary._turned_in_place(x, *tables_of_halves, way, at_once=at_once) for at_once in (False, True))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_traced_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    x, (cos, sin) = torch.randn(ROWS, HEADS, WIDTH).bfloat16(), tables(torch.float32)
    expected = rotate(x, cos[:, None], sin[:, None])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(rotate(x, cos[:, None], sin[:, None]), expected)
