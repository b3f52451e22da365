"""Cross-entropy of language and captions without ever holding (tokens, vocabulary) logits.

Only supervised rows reach the vocabulary, and those in chunks. Shape legend: R supervised rows, W width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**24  # most logits held at a time: 64 MiB in float32


def linear_cross_entropy_sum(states_RW: torch.Tensor, weight_VW: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """Σ over rows of −log softmax(states · weightᵀ)[target], in float32 or better.

    One chunk is computed plainly; more go through torch's chunked linear_cross_entropy where this torch has
    it (its default materialises the logits, so a chunk size is always passed), else through recomputed
    chunks of our own.
    """
    rows_at_once = max(1, CHUNK_ELEMENTS // weight_VW.shape[0])
    if len(states_RW) <= rows_at_once:
        return _plain(states_RW, weight_VW, targets_R)
    options_class = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options_class is not None and not torch.is_autocast_enabled(states_RW.device.type):
        options = options_class(batch_chunk_size=rows_at_once, chunking_method=None)
        return F.linear_cross_entropy(  # type: ignore[attr-defined, no-any-return]
            states_RW, weight_VW.to(states_RW.dtype), targets_R, reduction="sum", options=options
        )
    return _recomputed_chunks(states_RW, weight_VW, targets_R, rows_at_once)


def _plain(states_RW: torch.Tensor, weight_VW: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    logits = F.linear(states_RW, weight_VW.to(states_RW.dtype))
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits, targets_R, reduction="sum")


def _recomputed_chunks(
    states_RW: torch.Tensor, weight_VW: torch.Tensor, targets_R: torch.Tensor, rows_at_once: int
) -> torch.Tensor:
    """Chunks whose logits are computed again in the backward pass instead of being kept."""
    total = states_RW.new_zeros((), dtype=torch.promote_types(states_RW.dtype, torch.float32))
    pairs = zip(states_RW.split(rows_at_once), targets_R.split(rows_at_once), strict=True)
    for states, targets in pairs:
        total = total + checkpoint(_plain, states, weight_VW, targets, use_reentrant=False)
    return total


def span_rows(spans: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """(R,) numbers of the tokens in half-open spans."""
    rows = [row for start, stop in spans for row in range(start, stop)]
    return torch.tensor(rows, dtype=torch.long, device=device)


def answer_loss_sum(
    hidden_TD: torch.Tensor, labels_T: torch.Tensor, weight_VD: torch.Tensor, spans: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """Σ of the language loss over the tokens of answer spans; token t is predicted from state t − 1."""
    rows = span_rows(spans, hidden_TD.device)
    return linear_cross_entropy_sum(hidden_TD[rows - 1], weight_VD, labels_T[rows])
