"""Norms and gated MLPs that save less for the backward pass, with the same numbers as transformers' own.

Written operation by operation, as in transformers, a norm saves three copies of its input, and a gated MLP its
activation beside gate, up and product. Here a norm saves its input and one number per row, and an MLP recomputes what
one cheap operation yields (the idea of Liger Kernel, Hsu et al. 2024, arXiv:2410.10989, in plain torch).

Shapes: D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bbu.layers.padded import missing_columns, narrowed, widened


class _RootMeanSquare(torch.autograd.Function):
    """weight · x / √(mean x² + eps), computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        exact = x.to(torch.float32)
        scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight_D, scale)
        return weight_D * (exact * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_D, scale = ctx.saved_tensors
        unit = x.to(torch.float32) * scale
        of_weight = of_x = None
        if ctx.needs_input_grad[1]:
            of_weight = (slope * unit).flatten(0, -2).sum(0).to(weight_D.dtype)
        if ctx.needs_input_grad[0]:
            of_unit = (slope * weight_D).to(torch.float32)
            along = (of_unit * unit).mean(-1, keepdim=True)
            of_x = of_unit.sub_(unit.mul_(along)).mul_(scale).to(x.dtype)
        return of_x, of_weight, None


class _GatedSilu(torch.autograd.Function):
    """silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(slope * up, gate)
        return of_gate, F.silu(gate).mul_(slope)


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """(…, D) → (…, D) in x's dtype (Zhang and Sennrich 2019, arXiv:1910.07467). Differentiable once.

    On a GPU this is torch's own kernel: 3.5 to 6 times as fast, and it saves as little. On a CPU torch writes the norm
    out operation by operation and saves two to four times as much (benchmarks/norms.py, docs/performance.md).
    """
    if x.is_cuda and x.dtype == weight_D.dtype:
        return torchs_rms_norm(x, weight_D, eps)
    return lean_rms_norm(x, weight_D, eps)


def lean_rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """The same, saving its input and one number per row."""
    return _RootMeanSquare.apply(x, weight_D, eps)  # type: ignore[no-untyped-call,no-any-return]


def torchs_rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """The same by torch, whose autocast on GPUs would return float32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, x.shape[-1:], weight_D, eps)


def gated_silu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """(…, F) and (…, F) → (…, F), SwiGLU's product (Shazeer 2020, arXiv:2002.05202). Differentiable once."""
    return _GatedSilu.apply(gate, up)  # type: ignore[no-untyped-call,no-any-return]


class LeanNorm(nn.Module):
    """Replaces the forward of a norm with ``weight`` and ``variance_epsilon``."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class LeanMLP(nn.Module):
    """Replaces the forward of an MLP with ``gate_proj``, ``up_proj``, ``down_proj`` and SiLU."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        more = missing_columns(hidden_state, self.gate_proj, self.up_proj, self.down_proj)
        gate, up = (widened(layer, hidden_state, more) for layer in (self.gate_proj, self.up_proj))
        return narrowed(self.down_proj, gated_silu(gate, up), more)


class PlainMLP(nn.Module):
    """Replaces the forward of an MLP with ``linear_fc1``, ``linear_fc2`` and an activation that keeps 0."""

    linear_fc1: nn.Linear
    linear_fc2: nn.Linear
    act_fn: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        more = missing_columns(hidden_state, self.linear_fc1, self.linear_fc2)
        return narrowed(self.linear_fc2, self.act_fn(widened(self.linear_fc1, hidden_state, more)), more)


def make_lean(model: nn.Module, norms: Collection[type[nn.Module]], mlps: Collection[type[nn.Module]]) -> None:
    """Give a model's norms and MLPs these forwards; parameters keep their names.

    Args:
        norms, mlps: the library's classes. A gated MLP with an activation other than SiLU, or a plain one whose
            activation does not keep 0, is left alone.
    """
    for module in model.modules():
        kind = type(module)
        if kind in norms:
            module.__class__ = before(LeanNorm, kind)  # type: ignore[arg-type]
        elif kind in mlps and hasattr(module, "linear_fc1"):
            if not float(module.act_fn(torch.zeros(1, device="cpu"))):  # type: ignore[operator]
                module.__class__ = before(PlainMLP, kind)  # type: ignore[arg-type]
        elif kind in mlps and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation"):
            module.__class__ = before(LeanMLP, kind)  # type: ignore[arg-type]


@cache
def before(lean: type[Any], kind: type[Any]) -> type[Any]:
    """A subclass of the library's class that takes its forward from ``lean``."""
    return type(kind.__name__, (lean, kind), {"__module__": __name__})
