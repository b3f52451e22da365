"""Hungarian matching of predictions and targets (DETR, Carion et al. 2020, arXiv:2005.12872).

Shapes: B samples, K decoder layers, N training targets, Q queries of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.utils.rnn import pad_sequence

from bbu.geometry import cxcywh_to_xyxy, giou
from bbu.layers.transfer import to_device

# On a CPU, costs are computed one sample at a time: the table stays in cache and nothing is padded (1.6 times as fast
# as 16 samples together, benchmarks/matcher.py). Other devices get one launch for all samples.
SAMPLES_AT_ONCE = {"cpu": 1}


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the matching costs."""

    l1: float = 5.0
    giou: float = 2.0
    objectness: float = 2.0


@dataclass
class PredictionSet:
    """Predictions that are matched with the same targets, each layer by itself.

    Args:
        boxes: (K, B, Q, 4) cxcywh.
        objectness: (K, B, Q) logits.
        counts: predictions of each sample where Q is padded; None = all Q.
    """

    boxes: torch.Tensor
    objectness: torch.Tensor
    counts: Sequence[int] | None = None


@dataclass
class Matches:
    """Matched pairs of all layers of a prediction set: (R,) int64 indices on the device.

    ``targets`` indexes the targets of all samples, 0 to N − 1. ``host`` (4, R) is a copy of the four rows that can be
    read without waiting for the device.
    """

    layers: torch.Tensor
    samples: torch.Tensor
    predictions: torch.Tensor
    targets: torch.Tensor
    host: np.ndarray

    @classmethod
    def of(cls, host: np.ndarray, device: torch.device) -> Matches:
        """From indices on the host."""
        layers, samples, predictions, targets = to_device(host, device)
        return cls(layers, samples, predictions, targets, host)

    def of_layer(self, layer: int) -> Matches:
        """The pairs of one layer, which are contiguous."""
        first, last = np.searchsorted(self.host[0], (layer, layer + 1)).tolist()
        rows = slice(first, last)
        on_device = (self.layers[rows], self.samples[rows], self.predictions[rows], self.targets[rows])
        return Matches(*on_device, self.host[:, rows])


@torch.no_grad()
def hungarian_matcher(
    prediction_sets: Sequence[PredictionSet],
    target_boxes_N4: torch.Tensor,
    target_counts: Sequence[int],
    costs: MatchCosts,
) -> list[Matches]:
    """The cheapest one-to-one matching for every prediction set, layer and sample.

    Each prediction is costed against the targets of its own sample only. All costs are computed on the device and
    cross to the host in one transfer; scipy's linear_sum_assignment solves each (target, prediction) table. With more
    targets than predictions, the best-fitting targets are matched. Pairs are ordered by layer, sample and target. A
    pair whose cost is not finite counts as the best, so that the loss is not finite either.

    Args:
        target_boxes_N4: cxcywh, samples end to end.
        target_counts: targets of each sample.
    """
    tables = [_cost_tables(predicted, target_boxes_N4, target_counts, costs) for predicted in prediction_sets]
    host = iter(_to_host([table for of_set in tables for table in of_set]))
    device = target_boxes_N4.device
    return [
        Matches.of(_solve(predicted, [next(host) for _ in target_counts], target_counts), device)
        for predicted in prediction_sets
    ]


def _cost_tables(
    predicted: PredictionSet, targets_N4: torch.Tensor, target_counts: Sequence[int], costs: MatchCosts
) -> list[torch.Tensor]:
    """(K, N, Q) for each sample: the cost of each of its targets for each of its predictions."""
    boxes_KBQ4 = predicted.boxes.to(targets_N4.dtype)
    # targets are padded with a harmless box, whose costs are cut off again below
    targets_BN4 = pad_sequence(targets_N4.split(list(target_counts)), batch_first=True, padding_value=0.5)
    boxes, targets = _coordinates_apart(boxes_KBQ4), _coordinates_apart(targets_BN4)
    corners, target_corners = (_coordinates_apart(cxcywh_to_xyxy(both)) for both in (boxes_KBQ4, targets_BN4))
    rewards_KBQ = costs.objectness * predicted.objectness.sigmoid()
    at_once = SAMPLES_AT_ONCE.get(targets_N4.device.type, len(target_counts))
    tables: list[torch.Tensor] = []
    for start in range(0, len(target_counts), at_once):
        group = slice(start, start + at_once)
        theirs = (group, slice(max(target_counts[group])), None)
        l1_KBNQ = (boxes[:, group, None] - targets[theirs]).abs_().sum(-1)
        overlap_KBNQ = giou(corners[:, group, None], target_corners[theirs])
        cost_KBNQ = l1_KBNQ.mul_(costs.l1).sub_(overlap_KBNQ, alpha=costs.giou).sub_(rewards_KBQ[:, group, None])
        tables += cost_KBNQ.unbind(1)
    counts = predicted.counts or [predicted.boxes.shape[2]] * len(tables)
    return [table[:, :n, :q] for table, n, q in zip(tables, target_counts, counts, strict=True)]


def _coordinates_apart(boxes: torch.Tensor) -> torch.Tensor:
    """The same (…, 4) boxes with each coordinate contiguous in memory.

    Elementwise operations then run along the predictions instead of along four numbers.
    """
    return boxes.movedim(-1, 0).contiguous().movedim(0, -1)


def _to_host(tables: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """All tables in one device-to-host transfer."""
    flat = torch.cat([table.reshape(-1) for table in tables]).cpu().numpy()
    stops = np.cumsum([table.numel() for table in tables])[:-1]
    return [piece.reshape(table.shape) for piece, table in zip(np.split(flat, stops), tables, strict=True)]


def _solve(predicted: PredictionSet, tables: Sequence[np.ndarray], target_counts: Sequence[int]) -> np.ndarray:
    """(4, R) int64 pairs of one prediction set: layer, sample, prediction, target."""
    first_target = np.cumsum([0, *target_counts])
    found = [np.zeros((4, 0), dtype=np.int64)]
    for layer in range(predicted.boxes.shape[0]):
        for sample, table in enumerate(tables):
            targets, predictions = linear_sum_assignment(_solvable(table[layer]))
            ours = np.full_like(targets, layer), np.full_like(targets, sample)
            found.append(np.stack([*ours, predictions, targets + first_target[sample]]))
    return np.concatenate(found, axis=1)


def _solvable(table: np.ndarray) -> np.ndarray:
    """The same costs, with the lowest of all in place of those that are not finite, which scipy refuses."""
    finite = np.isfinite(table)
    return table if finite.all() else np.where(finite, table, -1e9)
