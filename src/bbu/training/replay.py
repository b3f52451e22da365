"""Batches of a step that was not finite, kept on disk to be run again (docs/training.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bbu.data.collators import Batch
from bbu.jsonl import atomic_file, decode_json, write_json
from bbu.losses.weighting import TERMS, count_terms, max_one
from bbu.models.finite import not_finite
from bbu.training.objective import DetectionObjective

NOT_FINITE_FOLDER = "not_finite"
MOST_BYTES = 2**31  # of a run's not_finite/: batches and models beyond are not kept
LEFT_OUT = ("geometries",)  # not needed to run a batch


@dataclass(frozen=True)
class Replay:
    """A batch run again.

    Args:
        terms: mean of each loss term over the batch, unweighted.
        gradients: parameters whose gradient is not finite.
    """

    terms: dict[str, float]
    gradients: list[str]


def replay(objective: DetectionObjective, batch: Batch) -> Replay:
    """Forward and backward of a batch, without touching gradients or weights of the objective."""
    sums, counts = objective(**batch), count_terms(batch)
    means = {term: sums[term] / max_one(counts[term]) for term in TERMS}
    named = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    total = torch.stack(list(means.values())).sum()
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}
    return Replay({term: mean.item() for term, mean in means.items()}, not_finite(gradients.items()))


def keep_batches(folder: Path, prefix: str, batches: Sequence[Batch]) -> list[str]:
    """Write batches as ``<prefix>-batch-<n>`` .safetensors and .json, while there is room below MOST_BYTES.

    Returns:
        Names of the batches that were written.
    """
    kept = []
    for number, batch in enumerate(batches):
        arrays = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor | np.ndarray)}
        tensors = {key: torch.as_tensor(value).cpu().contiguous() for key, value in arrays.items()}
        if not room_for(folder.parent, sum(value.nbytes for value in tensors.values())):
            continue
        name = f"{prefix}-batch-{number}"
        rest = {key: value for key, value in batch.items() if key not in tensors and key not in LEFT_OUT}
        write_json(folder / f"{name}.json", rest)
        with atomic_file(folder / f"{name}.safetensors") as path:
            save_file(tensors, path)
        kept.append(name)
    return kept


def room_for(folder: Path, count: int) -> bool:
    """Whether so many bytes more stay below MOST_BYTES."""
    return count + sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES


def kept_batches(folder: Path) -> list[Batch]:
    """The batches that a step's folder keeps, on the CPU, as the model was given them."""
    batches = []
    for path in sorted(folder.glob("*-batch-*.safetensors")):
        rest = path.with_suffix(".json")
        batch = decode_json(rest.read_text(encoding="utf-8"), str(rest))
        batches.append({key: _tuples(value) for key, value in batch.items()} | load_file(path))
    return batches


def _tuples(value: Any) -> Any:
    """JSON's lists of numbers within a list were tuples: spans, grids, captions."""

    def inner(item: Any) -> Any:
        if not isinstance(item, list):
            return item
        return [inner(part) for part in item] if item and isinstance(item[0], list) else tuple(item)

    return [inner(item) for item in value] if isinstance(value, list) else value
