"""Hungarian matching of predictions and parts (DETR, Carion et al. 2020, arXiv:2005.12872).

Shape legend: K layers, B samples, Q predictions of a sample, N parts of all samples, n parts of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from bbu.errors import SampleError
from bbu.geometry import cxcywh_to_xyxy, giou


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the three costs."""

    l1: float = 5.0
    giou: float = 2.0
    objectness: float = 2.0


@dataclass
class Round:
    """Predictions to be matched with the same parts.

    Args:
        boxes: (K, B, Q, 4) cxcywh.
        objectness: (K, B, Q) logits.
        counts: real predictions of each sample where Q is padded; None = all Q.
        copies: each part may take this many predictions (one-to-many; Jia et al. 2023, arXiv:2207.13080).
    """

    boxes: torch.Tensor
    objectness: torch.Tensor
    counts: Sequence[int] | None = None
    copies: int = 1


@dataclass
class Matches:
    """Pairs over all layers of a round, each (pairs,) int64: layer, sample, prediction and part.

    ``parts`` counts through the parts of all samples, 0 to N − 1.
    """

    layers: torch.Tensor
    samples: torch.Tensor
    predictions: torch.Tensor
    parts: torch.Tensor


@torch.no_grad()
def hungarian_matcher(
    rounds: Sequence[Round],
    part_boxes_N4: torch.Tensor,
    part_counts: Sequence[int],
    costs: MatchCosts,
    names: Sequence[str] = (),
) -> list[Matches]:
    """The cheapest one-to-one pairing for every round, layer and sample.

    The costs of everything are computed on the device and cross to the host in one transfer; scipy's
    linear_sum_assignment solves each (prediction, part) table. With more parts than predictions, the
    parts that fit best are taken.

    Args:
        part_boxes_N4: (N, 4) cxcywh of all samples, end to end.
        part_counts: parts of each sample.
        names: photos, for messages.

    Raises:
        SampleError: a cost is not finite; names the photo.
    """
    padded_Bn4 = _pad_parts(part_boxes_N4, part_counts)
    tables = [_cost_table(entry, padded_Bn4, costs) for entry in rounds]
    host = _to_host(tables)
    first_part = np.concatenate(([0], np.cumsum(part_counts)))
    results = []
    for entry, table in zip(rounds, host, strict=True):
        found: list[np.ndarray] = []
        for layer in range(table.shape[0]):
            for sample, count in enumerate(part_counts):
                predictions = entry.counts[sample] if entry.counts is not None else table.shape[2]
                cost = table[layer, sample, :predictions, :count]
                if not np.isfinite(cost).all():
                    name = names[sample] if names else f"sample {sample}"
                    raise SampleError(
                        f"{name}: the matching cost is not finite, so the model's output or the boxes are not; "
                        "lower the learning rates or check the boxes of this photo"
                    )
                rows, columns = _assign(cost, entry.copies)
                place = np.full_like(rows, layer), np.full_like(rows, sample)
                found.append(np.stack((*place, rows, columns + first_part[sample])))
        joined = np.concatenate(found, axis=1) if found else np.zeros((4, 0), dtype=np.int64)
        layers, samples, rows_, parts = torch.from_numpy(joined).to(part_boxes_N4.device)
        results.append(Matches(layers, samples, rows_, parts))
    return results


def _pad_parts(boxes_N4: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(N, 4) → (B, most parts, 4), padded with a harmless box."""
    most = max(counts, default=0)
    padded = boxes_N4.new_full((len(counts), most, 4), 0.5)
    for sample, boxes in enumerate(boxes_N4.split(list(counts))):
        padded[sample, : len(boxes)] = boxes
    return padded


def _cost_table(entry: Round, parts_Bn4: torch.Tensor, costs: MatchCosts) -> torch.Tensor:
    """(K, B, Q, n) cost of every prediction for every part of its own sample."""
    boxes = entry.boxes.to(parts_Bn4.dtype)[:, :, :, None]
    parts = parts_Bn4[None, :, None]
    l1 = (boxes - parts).abs().sum(-1)
    overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(parts))
    return costs.l1 * l1 - costs.giou * overlap - costs.objectness * entry.objectness.sigmoid()[..., None]


def _to_host(tables: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """All tables in one device-to-host transfer."""
    flat = torch.cat([table.reshape(-1) for table in tables]).cpu().numpy()
    edges = np.cumsum([table.numel() for table in tables])[:-1]
    return [part.reshape(table.shape) for part, table in zip(np.split(flat, edges), tables, strict=True)]


def _assign(cost: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the optimum, a column used up to ``copies`` times."""
    rows, columns = linear_sum_assignment(np.tile(cost, (1, copies)))
    return rows.astype(np.int64), (columns % max(cost.shape[1], 1)).astype(np.int64)
