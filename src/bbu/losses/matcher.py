"""Hungarian matching of predictions and targets (DETR, Carion et al. 2020, arXiv:2005.12872).

Shapes: N training targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from bbu.geometry import cxcywh_to_xyxy, giou
from bbu.layers.transfer import HostCopy, to_device

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


@dataclass
class Matching:
    """A matching whose costs are on their way to the host.

    What is queued between ``begin_matching`` and ``finish`` keeps a GPU at work while the host solves the tables.
    """

    prediction_sets: Sequence[PredictionSet]
    target_counts: Sequence[int]
    costs: Sequence[HostCopy]

    def finish(self) -> list[Matches]:
        """Wait for the costs, and find the cheapest matching for every prediction set, layer and sample."""
        tables = [table for group in self.costs for table in group.wait()]
        found, first = [], 0
        for predicted in self.prediction_sets:
            layers, _, queries = predicted.objectness.shape
            columns = slice(first, first := first + layers * queries)
            ours = [
                table[:count, columns].reshape(count, layers, queries)
                for table, count in zip(tables, self.target_counts, strict=True)
            ]
            found.append(Matches.of(_solve(predicted, ours, self.target_counts), predicted.boxes.device))
        return found


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
    return begin_matching(prediction_sets, target_boxes_N4, target_counts, costs).finish()


@torch.no_grad()
def begin_matching(
    prediction_sets: Sequence[PredictionSet],
    target_boxes_N4: torch.Tensor,
    target_counts: Sequence[int],
    costs: MatchCosts,
) -> Matching:
    """The first half of ``hungarian_matcher``: queue the costs and their transfer, and wait for nothing."""
    tables = _cost_tables(prediction_sets, target_boxes_N4, target_counts, costs)
    return Matching(prediction_sets, target_counts, [HostCopy(table) for table in tables])


def _cost_tables(
    prediction_sets: Sequence[PredictionSet],
    targets_N4: torch.Tensor,
    target_counts: Sequence[int],
    costs: MatchCosts,
) -> list[torch.Tensor]:
    """Costs of each sample's targets for its predictions of all sets and layers, which lie side by side.

    One table (samples, most targets, predictions) for each group of samples that is costed at once; what pads the
    targets of a sample is to be ignored.
    """
    boxes = _coordinates_apart(_side_by_side([each.boxes.to(targets_N4.dtype) for each in prediction_sets]))
    rewards = costs.objectness * _side_by_side([each.objectness for each in prediction_sets]).sigmoid()
    targets = _coordinates_apart(_padded(targets_N4, target_counts))
    corners, target_corners = (_coordinates_apart(cxcywh_to_xyxy(both)) for both in (boxes, targets))
    at_once = SAMPLES_AT_ONCE.get(targets_N4.device.type, len(target_counts))
    tables = []
    for start in range(0, len(target_counts), at_once):
        group = slice(start, start + at_once)
        theirs = (group, slice(max(target_counts[group])), None)
        l1 = (boxes[group, None] - targets[theirs]).abs_().sum(-1)
        overlap = giou(corners[group, None], target_corners[theirs])
        tables.append(l1.mul_(costs.l1).sub_(overlap, alpha=costs.giou).sub_(rewards[group, None]))
    return tables


def _side_by_side(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """(K, B, Q, …) each → (B, predictions of a sample, …): set by set, layer by layer."""
    return torch.cat([layer for of_set in values for layer in of_set.unbind()], dim=1)


def _padded(targets_N4: torch.Tensor, target_counts: Sequence[int]) -> torch.Tensor:
    """(B, most targets, 4); targets of any sample pad the others."""
    counts = np.asarray(target_counts)
    places = np.arange(counts.max())
    rows = np.where(places < counts[:, None], places + (counts.cumsum() - counts)[:, None], 0)
    return targets_N4.index_select(0, to_device(rows.ravel(), targets_N4.device)).view(*rows.shape, 4)


def _coordinates_apart(boxes: torch.Tensor) -> torch.Tensor:
    """The same (…, 4) boxes with each coordinate contiguous in memory.

    Elementwise operations then run along the predictions instead of along four numbers.
    """
    return boxes.movedim(-1, 0).contiguous().movedim(0, -1)


def _solve(predicted: PredictionSet, tables: Sequence[np.ndarray], target_counts: Sequence[int]) -> np.ndarray:
    """(4, R) int64 pairs of one prediction set: layer, sample, prediction, target; tables (N, K, Q) of each sample."""
    widths = predicted.counts or [predicted.boxes.shape[2]] * len(tables)
    first_target = np.cumsum([0, *target_counts])
    found = [np.zeros((4, 0), dtype=np.int64)]
    for layer in range(predicted.boxes.shape[0]):
        for sample, (table, width) in enumerate(zip(tables, widths, strict=True)):
            targets, predictions = linear_sum_assignment(_solvable(table[:, layer, :width]))
            ours = np.full_like(targets, layer), np.full_like(targets, sample)
            found.append(np.stack([*ours, predictions, targets + first_target[sample]]))
    return np.concatenate(found, axis=1)


def _solvable(table: np.ndarray) -> np.ndarray:
    """The same costs, with the lowest of all in place of those that are not finite, which scipy refuses."""
    finite = np.isfinite(table)
    return table if finite.all() else np.where(finite, table, -1e9)
