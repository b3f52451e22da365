"""Cross-entropy of language and captions without ever holding (tokens, vocabulary) logits.

Only supervised rows reach the vocabulary, and those in chunks. Shape legend: R supervised rows, W width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bbu.layers.transfer import to_device

Wanted = tuple[bool, bool]  # gradients by states and by weight

CHUNK_ELEMENTS = 2**25  # most logits held at a time: 128 MiB in float32, and as much again for their softmax


def linear_cross_entropy_sum(states_RW: torch.Tensor, weight_VW: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """Σ over rows of −log softmax(states · weightᵀ)[target], in float32 or better.

    The gradients are computed together with the loss, chunk by chunk, so that no logits are kept or computed
    twice (as in the fused linear cross-entropy of Liger Kernel, Hsu et al. 2024, arXiv:2410.10989). Under
    autocast the products are in its type; the softmax and the sums over chunks are not. The result can be
    differentiated once, not twice.
    """
    wanted = torch.is_grad_enabled()
    total: torch.Tensor = _LinearCrossEntropySum.apply(  # type: ignore[no-untyped-call]
        states_RW, weight_VW, targets_R, (wanted and states_RW.requires_grad, wanted and weight_VW.requires_grad)
    )
    return total


class _LinearCrossEntropySum(torch.autograd.Function):
    """Keeps the gradients of the sum from the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any, states_RW: torch.Tensor, weight_VW: torch.Tensor, targets_R: torch.Tensor, wanted: Wanted
    ) -> torch.Tensor:
        ctx.save_for_backward(states_RW, weight_VW, targets_R)
        ctx.wanted, ctx.dtype = wanted, _product_dtype(states_RW)
        total, ctx.gradients = _chunked_sum(states_RW, weight_VW, targets_R, wanted, ctx.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """In place, because a second (V, W) buffer is what is to be avoided: a second pass computes them again."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            states_RW, weight_VW, targets_R = ctx.saved_tensors
            _, gradients = _chunked_sum(states_RW, weight_VW, targets_R, ctx.wanted, ctx.dtype)
        return (*(gradient if gradient is None else gradient.mul_(scale) for gradient in gradients), None, None)


def _product_dtype(states: torch.Tensor) -> torch.dtype:
    """Of the matrix products: the states' own, or autocast's, which leaves float64 alone."""
    kind = states.device.type
    if torch.is_autocast_enabled(kind) and states.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return states.dtype


def _chunked_sum(
    states_RW: torch.Tensor, weight_VW: torch.Tensor, targets_R: torch.Tensor, wanted: Wanted, dtype: torch.dtype
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """The sum and its gradients by states and weight where they are wanted."""
    exact = torch.promote_types(dtype, torch.float32)
    total = states_RW.new_zeros((), dtype=exact)
    of_states = torch.empty_like(states_RW) if wanted[0] else None
    of_weight = torch.zeros_like(weight_VW) if wanted[1] else None
    rows_at_once = max(1, CHUNK_ELEMENTS // len(weight_VW))
    with torch.autocast(states_RW.device.type, enabled=False):
        weight = weight_VW.to(dtype)
        for start in range(0, len(states_RW), rows_at_once):
            rows = slice(start, start + rows_at_once)
            states, targets = states_RW[rows].to(dtype), targets_R[rows, None]
            log_probs = F.linear(states, weight).log_softmax(-1, dtype=exact)
            total -= log_probs.gather(1, targets).sum()
            if not any(wanted):
                continue
            slopes = log_probs.exp_()  # by the logits: softmax, less 1 at the target
            slopes.scatter_add_(1, targets, slopes.new_full(targets.shape, -1))
            slopes = slopes.to(dtype)
            if of_states is not None:
                of_states[rows] = slopes @ weight
            if of_weight is not None:
                _add_product(of_weight, slopes.T, states)
            del log_probs, slopes  # or they would lie beside those of the next chunk
    return total, (of_states, of_weight)


def _add_product(into_VW: torch.Tensor, slopes_VR: torch.Tensor, states_RW: torch.Tensor) -> None:
    """into += slopes · states; where the types differ, in slices of the vocabulary that need little memory."""
    if into_VW.dtype == states_RW.dtype:
        into_VW.addmm_(slopes_VR, states_RW)
        return
    at_once = max(1, CHUNK_ELEMENTS // states_RW.shape[1])
    for into, slopes in zip(into_VW.split(at_once), slopes_VR.split(at_once), strict=True):
        into += slopes @ states_RW


def span_rows(spans: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """(R,) numbers of the tokens in half-open spans."""
    return to_device([row for start, stop in spans for row in range(start, stop)], device, torch.long)


def answer_loss_sum(
    hidden_TD: torch.Tensor, labels_T: torch.Tensor, weight_VD: torch.Tensor, spans: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Σ of the language loss over the tokens of answer spans; token t is predicted from state t − 1."""
    rows = span_rows(spans, hidden_TD.device)
    return linear_cross_entropy_sum(hidden_TD[rows - 1], weight_VD, labels_T[rows])
