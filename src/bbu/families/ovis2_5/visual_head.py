"""Tower states → soft choices from the visual vocabulary → embeddings, without holding the probabilities.

A token's probabilities are as long as the vocabulary (65,532 words), 0.53 GB for a photo of 1920 x 1080. They are
computed in chunks of rows, and once more in the backward pass, so that no more than one chunk is ever held.

Shapes: D feature width, R rows, S image tokens, V vocabulary entries, W width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bbu.layers.products import add_product, product_dtype

CHUNK_NUMBERS = 2**24  # most probabilities held at once: 64 MiB in float32, and a few times as much for their slopes


@dataclass(frozen=True)
class Words:
    """The weights that choose words.

    Args:
        weight_VD: (V, D) projection of joined states, without bias.
        scale_V, shift_V, eps: of the LayerNorm over the words.
    """

    weight_VD: torch.Tensor
    scale_V: torch.Tensor
    shift_V: torch.Tensor
    eps: float

    def scores(self, joined_RD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(R, V) products in ``dtype``, as float32 or better."""
        return F.linear(joined_RD.to(dtype), self.weight_VD.to(dtype)).to(_exact(dtype))

    def normed(self, scores_RV: torch.Tensor) -> torch.Tensor:
        scale_V, shift_V = self.scale_V.to(scores_RV.dtype), self.shift_V.to(scores_RV.dtype)
        return F.layer_norm(scores_RV, scale_V.shape, scale_V, shift_V, self.eps)


def soft_embeddings(joined_SD: torch.Tensor, words: Words, table_VW: torch.Tensor) -> torch.Tensor:
    """softmax(LayerNorm(joined · weightᵀ)) · table, (S, W). Can be differentiated once.

    Under autocast the two matrix products run in its dtype; LayerNorm and softmax run in float32 or better.

    Args:
        table_VW: embeddings of the words; its further rows are left out.
    """
    return _SoftEmbeddings.apply(  # type: ignore[no-untyped-call,no-any-return]
        joined_SD, words.weight_VD, words.scale_V, words.shift_V, table_VW, words.eps
    )


@torch.no_grad()
def chosen_words(joined_SD: torch.Tensor, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
    """(S,) int64 the likeliest word of each token, and (S,) the entropy of its choice in nats, at most ln V."""
    chosen, entropies = [], []
    dtype = product_dtype(joined_SD)
    with torch.autocast(joined_SD.device.type, enabled=False):
        words = replace(words, weight_VD=words.weight_VD.to(dtype))
        for rows in _chunks(len(joined_SD), len(words.weight_VD)):
            shares_RV = words.normed(words.scores(joined_SD[rows], dtype)).softmax(-1)
            chosen.append(shares_RV.argmax(-1))
            entropies.append(torch.special.entr(shares_RV).sum(-1))
    return torch.cat(chosen), torch.cat(entropies)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(rows: int, words: int) -> Iterator[slice]:
    at_once = max(1, CHUNK_NUMBERS // words)
    return (slice(start, start + at_once) for start in range(0, rows, at_once))


class _SoftEmbeddings(torch.autograd.Function):
    """Keeps its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        joined_SD: torch.Tensor,
        weight_VD: torch.Tensor,
        scale_V: torch.Tensor,
        shift_V: torch.Tensor,
        table_VW: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(joined_SD, weight_VD, scale_V, shift_V, table_VW)
        ctx.eps, ctx.dtype = eps, product_dtype(joined_SD)
        with torch.autocast(joined_SD.device.type, enabled=False):
            words = Words(weight_VD.to(ctx.dtype), scale_V, shift_V, eps)
            table = table_VW[: len(weight_VD)].to(ctx.dtype)
            soft_SW = table.new_empty(len(joined_SD), table.shape[1])
            for rows in _chunks(len(joined_SD), len(weight_VD)):
                shares_RV = words.normed(words.scores(joined_SD[rows], ctx.dtype)).softmax(-1)
                soft_SW[rows] = shares_RV.to(ctx.dtype) @ table
                del shares_RV  # before the next chunk is computed
        return soft_SW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_SW: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        joined_SD, weight_VD, scale_V, shift_V, table_VW = ctx.saved_tensors
        slopes = _Slopes.of(ctx.saved_tensors, ctx.needs_input_grad)
        with torch.autocast(joined_SD.device.type, enabled=False):
            words = Words(weight_VD.to(ctx.dtype), scale_V, shift_V, ctx.eps)
            table = table_VW[: len(weight_VD)].to(ctx.dtype)
            for rows in _chunks(len(joined_SD), len(weight_VD)):
                slopes.add(rows, joined_SD[rows].to(ctx.dtype), words, table, slope_SW[rows].to(ctx.dtype))
        return slopes.joined, slopes.weight, slopes.scale, slopes.shift, slopes.table, None


@dataclass
class _Slopes:
    """Gradients of the inputs of the same names; None where nobody asks for one."""

    joined: torch.Tensor | None
    weight: torch.Tensor | None
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    table: torch.Tensor | None

    @classmethod
    def of(cls, inputs: tuple[torch.Tensor, ...], wanted: tuple[bool, ...]) -> _Slopes:
        return cls(*(torch.zeros_like(x) if want else None for x, want in zip(inputs, wanted, strict=False)))

    def add(self, rows: slice, joined_RD: torch.Tensor, words: Words, table: torch.Tensor, slope: torch.Tensor) -> None:
        """Add those of a chunk, computed again from its joined states."""
        with torch.enable_grad():
            scores_RV = words.scores(joined_RD, slope.dtype).detach().requires_grad_()
            scale_V, shift_V = (x.detach().to(scores_RV.dtype).requires_grad_() for x in (words.scale_V, words.shift_V))
            shares_RV = Words(words.weight_VD, scale_V, shift_V, words.eps).normed(scores_RV).softmax(-1)
        of_shares_RV = (slope @ table.T).to(shares_RV.dtype)
        if self.table is not None:
            add_product(self.table[: len(table)], shares_RV.detach().to(slope.dtype).T, slope)
        of_scores, of_scale, of_shift = torch.autograd.grad(shares_RV, (scores_RV, scale_V, shift_V), of_shares_RV)
        del shares_RV, of_shares_RV
        if self.scale is not None:
            self.scale += of_scale
        if self.shift is not None:
            self.shift += of_shift
        of_scores = of_scores.to(slope.dtype)
        if self.weight is not None:
            add_product(self.weight, of_scores.T, joined_RD)
        if self.joined is not None:
            self.joined[rows] = of_scores @ words.weight_VD
