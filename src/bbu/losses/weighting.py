"""The one weighted sum: which terms there are, what each is divided by, how they join."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bbu.config import LossConfig

TERMS = ("teacher_lm", "student_lm", "bbox_l1", "bbox_giou", "objectness", "caption")


def term_weights(config: LossConfig) -> dict[str, float]:
    """The configured weight of each term."""
    return {term: float(getattr(config, f"{term}_weight")) for term in TERMS}


def count_terms(batch: Mapping[str, Any]) -> dict[str, int]:
    """What each term of a batch is counted in: supervised tokens for words, parts for boxes.

    A part that no query is left for still counts, as do its caption's tokens: it was missed.
    """
    parts = sum(batch["box_counts"])
    return {
        "teacher_lm": sum(stop - start for spans in batch["teacher_spans"] for start, stop in spans),
        "student_lm": sum(span[1] - span[0] for span in batch["student_spans"] if span is not None),
        "bbox_l1": parts,
        "bbox_giou": parts,
        "objectness": parts,
        "caption": sum(len(ids) for ids in batch["caption_ids"]),
    }


def weigh(
    sums: Mapping[str, torch.Tensor], counts: Mapping[str, torch.Tensor | float], weights: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """Weighted components; their sum is the loss.

    Args:
        sums: of this batch.
        counts: of everything that makes up one optimizer step, over accumulation and ranks. A count of
            zero (no parts anywhere) counts as one: the objectness of an empty photo is still learned.
    """
    return {term: weights[term] * sums[term] / max_one(counts[term]) for term in TERMS}


def max_one(count: torch.Tensor | float) -> torch.Tensor | float:
    """At least one, so that an empty step divides by something."""
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
