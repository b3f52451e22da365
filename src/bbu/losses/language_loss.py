"""Cross-entropy of language and captions without materialising the (T, V) logits.

Only supervised rows are multiplied with the vocabulary, in chunks.

Shapes: D feature width, R rows, T packed tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bbu.layers.products import CHUNK_ELEMENTS, add_product, product_dtype
from bbu.layers.transfer import to_device

Wanted = tuple[bool, bool]  # gradients by states and by weight


def linear_cross_entropy_sum(
    states_RD: torch.Tensor, weight_VD: torch.Tensor, targets_R: torch.Tensor, importance_R: torch.Tensor | None = None
) -> torch.Tensor:
    """Σ over rows of importance · −log softmax(states · weightᵀ)[target], a scalar in float32 or better.

    Gradients are computed with the loss, chunk by chunk, so logits are neither kept nor computed twice (as in the
    fused linear cross-entropy of Liger Kernel, Hsu et al. 2024, arXiv:2410.10989). Under autocast the matrix products
    run in its dtype, the softmax and the sums over chunks in float32. The result can be differentiated once.

    Args:
        importance_R: weight of each row; None = 1.
    """
    wanted = torch.is_grad_enabled()
    total: torch.Tensor = _LinearCrossEntropySum.apply(  # type: ignore[no-untyped-call]
        states_RD,
        weight_VD,
        targets_R,
        importance_R,
        (wanted and states_RD.requires_grad, wanted and weight_VD.requires_grad),
    )
    return total


class _LinearCrossEntropySum(torch.autograd.Function):
    """The forward pass computes the gradients of the sum; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        states_RD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_R: torch.Tensor,
        importance_R: torch.Tensor | None,
        wanted: Wanted,
    ) -> torch.Tensor:
        ctx.save_for_backward(states_RD, weight_VD, targets_R, importance_R)
        ctx.wanted, ctx.dtype = wanted, product_dtype(states_RD)
        total, ctx.gradients = _chunked_sum(states_RD, weight_VD, targets_R, importance_R, wanted, ctx.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale in place, to avoid a second (V, D) buffer; a second backward pass computes the gradients again."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            states_RD, weight_VD, targets_R, importance_R = ctx.saved_tensors
            _, gradients = _chunked_sum(states_RD, weight_VD, targets_R, importance_R, ctx.wanted, ctx.dtype)
        return (*(gradient if gradient is None else gradient.mul_(scale) for gradient in gradients), None, None, None)


def _chunked_sum(
    states_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_R: torch.Tensor,
    importance_R: torch.Tensor | None,
    wanted: Wanted,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """The sum, and its gradients with respect to states and weight where wanted."""
    exact = torch.promote_types(dtype, torch.float32)
    total = states_RD.new_zeros((), dtype=exact)
    of_states = torch.empty_like(states_RD) if wanted[0] else None
    of_weight = torch.zeros_like(weight_VD) if wanted[1] else None
    rows_at_once = max(1, CHUNK_ELEMENTS // len(weight_VD))
    with torch.autocast(states_RD.device.type, enabled=False):
        weight = weight_VD.to(dtype)
        for start in range(0, len(states_RD), rows_at_once):
            rows = slice(start, start + rows_at_once)
            states, targets = states_RD[rows].to(dtype), targets_R[rows, None]
            importance = None if importance_R is None else importance_R[rows, None].to(exact)
            log_probs = F.linear(states, weight).log_softmax(-1, dtype=exact)
            total -= _times(log_probs.gather(1, targets), importance).sum()
            if not any(wanted):
                continue
            slopes = log_probs.exp_()  # gradient of the logits: softmax − one-hot target
            slopes.scatter_add_(1, targets, slopes.new_full(targets.shape, -1))
            slopes = slopes.to(dtype)
            if of_states is not None:
                of_states[rows] = _times(slopes @ weight, importance)
            if of_weight is not None:
                add_product(of_weight, slopes.T, _times(states, importance).to(dtype))
            del log_probs, slopes  # free them before the next chunk is computed
    return total, (of_states, of_weight)


def _times(values_RD: torch.Tensor, importance_R1: torch.Tensor | None) -> torch.Tensor:
    """Rows times their importance; of width D rather than V, which costs next to nothing."""
    return values_RD if importance_R1 is None else values_RD * importance_R1


def span_rows(spans: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """(R,) indices of the tokens in half-open spans."""
    return to_device([row for start, stop in spans for row in range(start, stop)], device, torch.long)


def answer_loss_sum(
    hidden_TD: torch.Tensor, labels_T: torch.Tensor, weight_VD: torch.Tensor, spans: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Σ of the language loss over the tokens in answer spans; token t is predicted from state t − 1."""
    rows = span_rows(spans, hidden_TD.device)
    return linear_cross_entropy_sum(hidden_TD[rows - 1], weight_VD, labels_T[rows])
