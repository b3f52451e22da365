"""Hungarian matching of predictions and parts (DETR, Carion et al. 2020, arXiv:2005.12872).

Shape legend: K layers, B samples, b samples costed together, Q predictions of a sample, N parts of all samples,
n parts of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.utils.rnn import pad_sequence

from bbu.errors import SampleError
from bbu.geometry import cxcywh_to_xyxy, giou
from bbu.layers.transfer import to_device

# A CPU costs one sample at a time: its table stays in cache and nothing is padded (1.6 times as fast as 16 samples
# together, benchmarks/matcher.py). Other devices are launched once for all samples.
SAMPLES_AT_ONCE = {"cpu": 1}


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
    """

    boxes: torch.Tensor
    objectness: torch.Tensor
    counts: Sequence[int] | None = None


@dataclass
class Matches:
    """Pairs over all layers of a round, each (pairs,) int64 on the device: layer, sample, prediction and part.

    ``parts`` counts through the parts of all samples, 0 to N − 1. ``host`` (4, pairs) holds the same four rows where
    they can be read without waiting for the device.
    """

    layers: torch.Tensor
    samples: torch.Tensor
    predictions: torch.Tensor
    parts: torch.Tensor
    host: np.ndarray

    @classmethod
    def of(cls, host: np.ndarray, device: torch.device) -> Matches:
        """Pairs found on the host."""
        layers, samples, predictions, parts = to_device(host, device)
        return cls(layers, samples, predictions, parts, host)

    def of_layer(self, layer: int) -> Matches:
        """The pairs of one layer, which lie together."""
        first, last = np.searchsorted(self.host[0], (layer, layer + 1)).tolist()
        rows = slice(first, last)
        on_device = (self.layers[rows], self.samples[rows], self.predictions[rows], self.parts[rows])
        return Matches(*on_device, self.host[:, rows])


@torch.no_grad()
def hungarian_matcher(
    rounds: Sequence[Round],
    part_boxes_N4: torch.Tensor,
    part_counts: Sequence[int],
    costs: MatchCosts,
    names: Sequence[str] = (),
) -> list[Matches]:
    """The cheapest one-to-one pairing for every round, layer and sample.

    Each prediction is costed for the parts of its own sample only. The costs of everything are computed on
    the device and cross to the host in one transfer; scipy's linear_sum_assignment solves each (part,
    prediction) table. With more parts than predictions, the parts that fit best are taken. Pairs come in the
    order of layer, sample and part.

    Args:
        part_boxes_N4: (N, 4) cxcywh of all samples, end to end.
        part_counts: parts of each sample.
        names: photos, for messages.

    Raises:
        SampleError: a cost is not finite; names the photo.
    """
    tables = [_cost_tables(entry, part_boxes_N4, part_counts, costs) for entry in rounds]
    host = iter(_to_host([table for of_round in tables for table in of_round]))
    device = part_boxes_N4.device
    return [
        Matches.of(_solve(entry, [next(host) for _ in part_counts], part_counts, names), device) for entry in rounds
    ]


def _cost_tables(
    entry: Round, parts_N4: torch.Tensor, part_counts: Sequence[int], costs: MatchCosts
) -> list[torch.Tensor]:
    """(K, n, Q) for each sample: the cost of every part for every prediction of its own sample."""
    boxes_KBQ4 = entry.boxes.to(parts_N4.dtype)
    # parts are padded with a harmless box, whose costs are cut off again below
    parts_Bn4 = pad_sequence(parts_N4.split(list(part_counts)), batch_first=True, padding_value=0.5)
    boxes, parts = _coordinates_apart(boxes_KBQ4), _coordinates_apart(parts_Bn4)
    corners, part_corners = (_coordinates_apart(cxcywh_to_xyxy(both)) for both in (boxes_KBQ4, parts_Bn4))
    rewards_KBQ = costs.objectness * entry.objectness.sigmoid()
    at_once = SAMPLES_AT_ONCE.get(parts_N4.device.type, len(part_counts))
    tables: list[torch.Tensor] = []
    for start in range(0, len(part_counts), at_once):
        group = slice(start, start + at_once)
        theirs = (group, slice(max(part_counts[group])), None)
        l1_KbnQ = (boxes[:, group, None] - parts[theirs]).abs_().sum(-1)
        overlap_KbnQ = giou(corners[:, group, None], part_corners[theirs])
        cost_KbnQ = l1_KbnQ.mul_(costs.l1).sub_(overlap_KbnQ, alpha=costs.giou).sub_(rewards_KBQ[:, group, None])
        tables += cost_KbnQ.unbind(1)
    return [
        table[:, :count, : _predictions(entry, sample)]
        for sample, (table, count) in enumerate(zip(tables, part_counts, strict=True))
    ]


def _coordinates_apart(boxes: torch.Tensor) -> torch.Tensor:
    """The same (..., 4) boxes with each coordinate in a stretch of memory of its own.

    Elementwise operations then run along the predictions instead of along four numbers.
    """
    return boxes.movedim(-1, 0).contiguous().movedim(0, -1)


def _predictions(entry: Round, sample: int) -> int:
    """Real predictions of a sample."""
    return entry.counts[sample] if entry.counts is not None else entry.boxes.shape[2]


def _to_host(tables: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """All tables in one device-to-host transfer."""
    flat = torch.cat([table.reshape(-1) for table in tables]).cpu().numpy()
    edges = np.cumsum([table.numel() for table in tables])[:-1]
    return [part.reshape(table.shape) for part, table in zip(np.split(flat, edges), tables, strict=True)]


def _solve(entry: Round, tables: Sequence[np.ndarray], part_counts: Sequence[int], names: Sequence[str]) -> np.ndarray:
    """(4, pairs) int64 of one round: layer, sample, prediction, part."""
    first_part = np.cumsum([0, *part_counts])
    found = [np.zeros((4, 0), dtype=np.int64)]
    for sample, table in enumerate(tables):
        if not np.isfinite(table).all():
            name = names[sample] if names else f"sample {sample}"
            raise SampleError(
                f"{name}: the matching cost is not finite, so the model's output or the boxes are not; "
                "lower the learning rates or check the boxes of this photo"
            )
    for layer in range(entry.boxes.shape[0]):
        for sample, table in enumerate(tables):
            parts, predictions = linear_sum_assignment(table[layer])
            pairs = np.empty((4, len(parts)), dtype=np.int64)
            pairs[0], pairs[1], pairs[2] = layer, sample, predictions
            pairs[3] = parts + first_part[sample]
            found.append(pairs)
    return np.concatenate(found, axis=1)
