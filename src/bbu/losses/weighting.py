"""The weighted sum of the loss terms: their names, their counts and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bbu.config import LossConfig
from bbu.layers.transfer import to_device

LANGUAGE_TERMS = ("teacher_lm", "student_lm", "replay_lm")  # each supervised token is in one of them
TERMS = (*LANGUAGE_TERMS, "bbox_l1", "bbox_giou", "objectness", "caption")


def term_weights(config: LossConfig) -> dict[str, float]:
    """The configured weight of each term."""
    return {term: float(getattr(config, f"{term}_weight")) for term in TERMS}


def count_terms(batch: Mapping[str, Any]) -> dict[str, int]:
    """The denominator of each term in a batch: supervised tokens for language terms, targets for box terms.

    A target that no query is left for still counts, and so do its caption's tokens. A blank batch counts nothing.
    """
    if batch.get("blank"):
        return dict.fromkeys(TERMS, 0)
    targets = sum(batch["box_counts"])
    return {
        "teacher_lm": sum(stop - start for spans in batch["teacher_spans"] for start, stop in spans),
        "student_lm": sum(span[1] - span[0] for span in batch["student_spans"] if span is not None),
        "replay_lm": sum(stop - start for spans in batch["replay_spans"] for start, stop in spans),
        "bbox_l1": targets,
        "bbox_giou": targets,
        "objectness": targets,
        "caption": sum(len(ids) for ids in batch["caption_ids"]),
    }


def weigh(
    sums: Mapping[str, torch.Tensor], counts: Mapping[str, torch.Tensor | float], weights: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """Weighted components, whose sum is the loss.

    Args:
        sums: of this batch.
        counts: of the whole optimizer step, over accumulation and ranks. A count of zero (no targets anywhere) is
            taken as one, because objectness is learned from empty photos too.
    """
    total = torch.stack([sums[term] for term in TERMS])  # all at once: each operation is a launch on a GPU
    factors = to_device([weights[term] for term in TERMS], total.device, total.dtype)
    given = [counts[term] for term in TERMS]
    if isinstance(given[0], torch.Tensor):
        divisors = torch.stack(given).clamp(min=1)  # type: ignore[arg-type]
    else:
        divisors = to_device([max(count, 1) for count in given], total.device, total.dtype)
    return dict(zip(TERMS, (factors * total / divisors).unbind(), strict=True))


def max_one(count: torch.Tensor | float) -> torch.Tensor | float:
    """The count, at least 1."""
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
