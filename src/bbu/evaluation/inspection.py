"""Operating characteristics: recall at a precision, miss rate at an FPPI, duplicates, confusions.

A threshold cannot split equal confidences, so only distinct ones count, unlike in COCO's curves. The miss rate at n
false positives per image (FPPI) follows Dollár et al. 2012, "Pedestrian Detection: An Evaluation of the State of the
Art": the lowest that any threshold reaches with at most that FPPI, and 1 where every threshold exceeds it.

Shapes: Dt detections, Th score thresholds, Op overlapping pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bbu.evaluation.descriptions import Pair, PairCounts, ratio
from bbu.evaluation.matching import MATCH_IOU, Matched

SLACK = 1e-9  # so that 9 of 10 reach a precision of 0.9


@dataclass(frozen=True)
class Sweep:
    """True and false positives at every score threshold.

    Attributes:
        thresholds_Th: distinct confidences, highest first; a detection passes at or above the threshold.
        right_Th, wrong_Th: true and false positives among the detections that pass.
        annotated: number of ground-truth objects.
    """

    thresholds_Th: np.ndarray
    right_Th: np.ndarray
    wrong_Th: np.ndarray
    annotated: int

    def at_precision(self, goal: float) -> int | None:
        """Index of the lowest threshold whose precision reaches the goal."""
        return _last(self.right_Th >= goal * (self.right_Th + self.wrong_Th) - SLACK)

    def at_recall(self, goal: float) -> int | None:
        """Index of the highest threshold whose recall reaches the goal."""
        reached = np.flatnonzero(self.right_Th >= goal * self.annotated - SLACK)
        return int(reached[0]) if self.annotated and reached.size else None

    def at_false_positives(self, most: float) -> int | None:
        """Index of the lowest threshold with at most so many false positives."""
        return _last(self.wrong_Th <= most + SLACK)

    def recall(self, index: int | None) -> float | None:
        """Recall at a threshold; None without a threshold or without ground truth."""
        return None if index is None else ratio(int(self.right_Th[index]), self.annotated)

    def miss_rate(self, limit: float) -> float | None:
        """Share of objects missed with at most ``limit`` false positives; None without ground truth."""
        index = self.at_false_positives(limit)
        found = 0 if index is None else int(self.right_Th[index])
        return ratio(self.annotated - found, self.annotated)


def _last(holds_Th: np.ndarray) -> int | None:
    reached = np.flatnonzero(holds_Th)
    return int(reached[-1]) if reached.size else None


def sweep(confidence_Dt: np.ndarray, right_Dt: np.ndarray, annotated: int) -> Sweep:
    """Count the true and false positives at each threshold."""
    order = np.argsort(-confidence_Dt, kind="stable")
    ends_Th = tie_ends(confidence_Dt[order])
    right_Th = np.cumsum(right_Dt[order])[ends_Th]
    return Sweep(confidence_Dt[order][ends_Th], right_Th, ends_Th + 1 - right_Th, annotated)


def tie_ends(sorted_Dt: np.ndarray) -> np.ndarray:
    """Where each run of equal values ends."""
    return np.flatnonzero(np.append(sorted_Dt[1:] != sorted_Dt[:-1], [True] * min(1, len(sorted_Dt))))


def sweep_of_each(described: Matched) -> dict[str, Sweep]:
    """Annotated description → its sweep; its false positives are those predicted with this description."""
    ranking, right_Dt = described.ranking, described.right_Dt
    edges = np.searchsorted(ranking.category_Dt, np.arange(len(ranking.categories) + 1))
    counts = ranking.truth_counts()
    return {
        desc: sweep(ranking.confidence_Dt[start:stop], right_Dt[start:stop], int(counts[k]))
        for k, (desc, start, stop) in enumerate(zip(ranking.categories, edges[:-1], edges[1:], strict=True))
    }


def inspection_table(described: Matched, precision: float, fppi: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Annotated description → recall at ``precision``, and miss rate at each FPPI of the description's own.

    Threshold and recall are None where no threshold reaches the precision.
    """
    photos = len(described.ranking.flat.names)
    table: dict[str, dict[str, Any]] = {}
    for desc, curve in sweep_of_each(described).items():
        index = curve.at_precision(precision)
        table[desc] = {
            "threshold_at_precision": None if index is None else float(curve.thresholds_Th[index]),
            "recall_at_precision": curve.recall(index),
            **{miss_rate_key(limit): curve.miss_rate(limit * photos) for limit in fppi},
        }
    return table


def miss_rate_key(limit: float, suffix: str = "") -> str:
    """Metric key of the miss rate at ``limit`` FPPI."""
    return f"miss_rate{suffix}_at_{limit:g}"


def confusions(pairs: PairCounts) -> list[dict[str, Any]]:
    """Annotated and predicted description of every matched box, counted, most frequent first.

    ``predicted`` is None for a missed object.
    """
    order: list[Pair] = sorted(pairs, key=lambda pair: (-pairs[pair], pair[0], pair[1] is not None, pair[1] or ""))
    return [{"annotated": truth, "predicted": said, "count": pairs[truth, said]} for truth, said in order]


def duplicate_scores(shown: Matched, score_threshold: float) -> Mapping[str, float | None]:
    """Detections at or above the threshold on an object that a more confident one has taken, class-agnostic.

    Args:
        shown: class-agnostic matches, ranked by score.
    """
    ranking = shown.ranking
    overlapping = np.zeros(len(ranking.flat.photo_Dt), dtype=bool)
    overlapping[ranking.flat.pair_prediction_Op[ranking.flat.pair_iou_Op >= MATCH_IOU]] = True
    again_Dt = (ranking.confidence_Dt >= score_threshold) & ~shown.right_Dt & overlapping[ranking.prediction_Dt]
    count = int(again_Dt.sum())
    return {"duplicates": count, "duplicates_per_image": ratio(count, len(ranking.flat.names))}
