"""What an inspector asks: what is found at the precision I need, what is missed at the alarms I can bear.

A threshold cannot split equal confidences, so only distinct ones count, unlike in COCO's curves. The miss rate at so
many false alarms a photo is that of detection curves (Dollár et al. 2012, "Pedestrian Detection: An Evaluation of
the State of the Art"): the best that any threshold reaches without more alarms; 1 where none does.

Shape suffixes: those of ``matching``; S distinct confidences, highest first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bbu.evaluation.descriptions import Pair, ratio
from bbu.evaluation.matching import MATCH_IOU, Matched

SLACK = 1e-9  # so that 9 of 10 reach a precision of 0.9


@dataclass(frozen=True)
class Sweep:
    """What every threshold lets through.

    Attributes:
        thresholds_S: distinct confidences, highest first; predictions at or above one are let through.
        right_S, wrong_S: predictions let through that take an annotated box, and that do not.
        annotated: boxes to be found.
    """

    thresholds_S: np.ndarray
    right_S: np.ndarray
    wrong_S: np.ndarray
    annotated: int

    def at_precision(self, goal: float) -> int | None:
        """Index of the lowest threshold whose precision reaches the goal."""
        return _last(self.right_S >= goal * (self.right_S + self.wrong_S) - SLACK)

    def at_recall(self, goal: float) -> int | None:
        """Index of the highest threshold whose recall reaches the goal."""
        reached = np.flatnonzero(self.right_S >= goal * self.annotated - SLACK)
        return int(reached[0]) if self.annotated and reached.size else None

    def at_alarms(self, most: float) -> int | None:
        """Index of the lowest threshold with at most so many false alarms."""
        return _last(self.wrong_S <= most + SLACK)

    def recall(self, index: int | None) -> float | None:
        """Share of the annotated boxes found there; None when no threshold is given or nothing is annotated."""
        return None if index is None else ratio(int(self.right_S[index]), self.annotated)

    def precision(self, index: int) -> float:
        """Share of the predictions let through there that are right."""
        right = int(self.right_S[index])
        return right / (right + int(self.wrong_S[index]))

    def miss_rate(self, most_alarms: float) -> float | None:
        """Share of the annotated boxes missed with at most so many false alarms; None when nothing is annotated."""
        index = self.at_alarms(most_alarms)
        found = 0 if index is None else int(self.right_S[index])
        return ratio(self.annotated - found, self.annotated)


def _last(holds_S: np.ndarray) -> int | None:
    reached = np.flatnonzero(holds_S)
    return int(reached[-1]) if reached.size else None


def sweep(confidence_D: np.ndarray, right_D: np.ndarray, annotated: int) -> Sweep:
    """Count what each threshold lets through."""
    order = np.argsort(-confidence_D, kind="stable")
    ends_S = tie_ends(confidence_D[order])
    right_S = np.cumsum(right_D[order])[ends_S]
    return Sweep(confidence_D[order][ends_S], right_S, ends_S + 1 - right_S, annotated)


def tie_ends(sorted_D: np.ndarray) -> np.ndarray:
    """Where each run of equal values ends."""
    return np.flatnonzero(np.append(sorted_D[1:] != sorted_D[:-1], [True] * min(1, len(sorted_D))))


def sweep_of_each(described: Matched) -> dict[str, Sweep]:
    """Annotated description → its sweep; a false alarm is then one in these very words."""
    ranking, right_D = described.ranking, described.right_D
    edges = np.searchsorted(ranking.category_D, np.arange(len(ranking.categories) + 1))
    counts = ranking.truth_counts()
    return {
        desc: sweep(ranking.confidence_D[start:stop], right_D[start:stop], int(counts[k]))
        for k, (desc, start, stop) in enumerate(zip(ranking.categories, edges[:-1], edges[1:], strict=True))
    }


def inspection_table(described: Matched, precision: float, alarms: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Annotated description → recall at the wanted precision, and miss rate at so many of its own alarms a photo.

    The threshold and its recall are None where no threshold reaches the precision.
    """
    photos = len(described.ranking.album.names)
    table: dict[str, dict[str, Any]] = {}
    for desc, curve in sweep_of_each(described).items():
        index = curve.at_precision(precision)
        table[desc] = {
            "threshold_at_precision": None if index is None else float(curve.thresholds_S[index]),
            "recall_at_precision": curve.recall(index),
            **{miss_rate_key(limit): curve.miss_rate(limit * photos) for limit in alarms},
        }
    return table


def miss_rate_key(limit: float, suffix: str = "") -> str:
    """Name of the miss rate at so many false alarms a photo."""
    return f"miss_rate{suffix}_at_{limit:g}"


def confusions(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """How often each annotated description was given which words at a matched box, most often first.

    ``predicted`` is None where no box was matched: the part was missed.
    """
    counts = Counter(pairs)
    order: list[Pair] = sorted(counts, key=lambda pair: (-counts[pair], pair[0], pair[1] is not None, pair[1] or ""))
    return [{"annotated": truth, "predicted": said, "count": counts[truth, said]} for truth, said in order]


def duplicate_scores(shown: Matched, score_threshold: float) -> Mapping[str, float | None]:
    """Predictions at or above the threshold on a part that a surer one has taken already, whatever the words.

    Args:
        shown: all boxes as one category, ranked by score.
    """
    ranking = shown.ranking
    overlapping = np.zeros(len(ranking.album.photo_D), dtype=bool)
    overlapping[ranking.album.pair_prediction_E[ranking.album.pair_iou_E >= MATCH_IOU]] = True
    again_D = (ranking.confidence_D >= score_threshold) & ~shown.right_D & overlapping[ranking.prediction_D]
    count = int(again_D.sum())
    return {"duplicates": count, "duplicates_per_photo": ratio(count, len(ranking.album.names))}
