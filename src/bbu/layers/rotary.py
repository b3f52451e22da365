"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) in few passes, with transformers' values.

Transformers casts a tensor up, turns it in five passes and a copy, and casts it down. Here it is read as it is, and the
way back is the same turn the other way, which needs the tables alone.

E is the width of an attention head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _Rotation(torch.autograd.Function):
    """The pair of channels i and i + E/2 of a head turned by the i-th angle of its token."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(slope, cos, sin, -1), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(…, E) → (…, E) in x's dtype. Differentiable once.

    Computed in the wider dtype of x and the tables, but float64 in that of the tables, as in transformers' towers. On a
    CPU the values are transformers' to the bit; a GPU rounds a product and a sum at once.

    Args:
        cos, sin: (…, E) tables that broadcast to x, whose second halves repeat the first.
    """
    half = x.shape[-1] // 2
    return _Rotation.apply(x, cos[..., :half], sin[..., :half])  # type: ignore[no-untyped-call,no-any-return]


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: int) -> torch.Tensor:
    exact = x.to(cos.dtype) if x.dtype == torch.float64 else x
    if torch.compiler.is_compiling():  # the compiler makes one pass of the formula
        first, second = exact.chunk(2, -1)
        return torch.cat((first * cos - second * sin * way, second * cos + first * sin * way), -1).to(x.dtype)
    return _turned_in_place(exact.unflatten(-1, (2, -1)), cos, sin, way, at_once=x.is_cuda).flatten(-2).to(x.dtype)


def _turned_in_place(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: int, at_once: bool) -> torch.Tensor:
    """(…, 2, E / 2), both halves of the channels → the same."""
    first, second = x[..., 0, :], x[..., 1, :]
    turned = x * cos.unsqueeze(-2)
    if at_once:
        turned[..., 0, :].addcmul_(second, sin, value=-way)
        turned[..., 1, :].addcmul_(first, sin, value=way)
    else:
        turned[..., 0, :].add_(second * sin, alpha=-way)
        turned[..., 1, :].add_(first * sin, alpha=way)
    return turned
