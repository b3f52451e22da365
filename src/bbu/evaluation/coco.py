"""COCO average precision and recall, worked out from match tables.

Axes of the tables: T IoU thresholds, R 101 recall points, K categories, A box sizes, M detection limits. -1 stands
where a category has no annotated box; averages leave it out and are None where nothing is left.
In the curves X counts right predictions in order of category and confidence, B weightings of the photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bbu.evaluation.matching import Ranking

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
# Box areas in displayed pixels, as COCO bins them; a box on a border belongs to both bins.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
RECALLS = np.linspace(0, 1, 101)
RECALL_LIMITS = (1, 10, 100)  # detections a photo and category


@dataclass(frozen=True)
class CocoTables:
    """Precision (M: the highest limit alone) and recall of one evaluation, undefined entries at -1."""

    categories: tuple[str, ...]
    iou_thresholds: tuple[float, ...]
    areas: tuple[str, ...]
    limits: tuple[int, ...]
    precision_TRKAM: np.ndarray
    recall_TKAM: np.ndarray

    def average_precision(self, iou: float | None = None, area: str = "all") -> float | None:
        """Mean over recall, categories and (unless ``iou`` picks one) thresholds, at the highest limit."""
        return _mean(self.precision_TRKAM[self._thresholds(iou), :, :, self.areas.index(area), -1])

    def average_recall(self, limit: int, area: str = "all") -> float | None:
        """Mean recall over thresholds and categories with at most ``limit`` detections a photo and category."""
        return _mean(self.recall_TKAM[:, :, self.areas.index(area), self.limits.index(min(limit, self.limits[-1]))])

    def precision_of_each(self, iou: float) -> dict[str, float | None]:
        """Category → its average precision at one threshold."""
        (threshold,) = self._thresholds(iou)
        return {name: _mean(self.precision_TRKAM[threshold, :, k, 0, -1]) for k, name in enumerate(self.categories)}

    def _thresholds(self, iou: float | None) -> list[int]:
        return [i for i, value in enumerate(self.iou_thresholds) if iou is None or abs(value - iou) < 1e-9]


def tables_of(
    ranking: Ranking,
    max_detections: int,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    areas: Sequence[str] = tuple(AREAS),
) -> CocoTables:
    """COCO's box evaluation.

    Predictions of a category that no annotated box has are left out, as every COCO tool does; count them elsewhere.

    Args:
        max_detections: what the ranking was cut to, a photo and category.
        iou_thresholds: none under 0.5.
        areas: names from AREAS; "all" comes first.
    """
    limits = tuple(sorted({min(limit, max_detections) for limit in (*RECALL_LIMITS, max_detections)}))
    sizes = (len(iou_thresholds), len(ranking.categories), len(areas), len(limits))
    precision = np.full((sizes[0], len(RECALLS), *sizes[1:3], 1), -1.0)
    recall = np.full(sizes, -1.0)
    for a, (least, most) in enumerate(AREAS[area] for area in areas):
        truth_area_G, area_D = ranking.album.truth_area_G, ranking.album.area_D[ranking.prediction_D]
        ignored_G = (truth_area_G < least) | (truth_area_G > most)
        outside_D = (area_D < least) | (area_D > most)
        annotated_K = np.bincount(ranking.truth_category_G[~ignored_G], minlength=sizes[1])
        known_K = np.flatnonzero(annotated_K)
        for t, match_D in enumerate(ranking.match(iou_thresholds, ignored_G)):
            counted_D = ~np.where(match_D >= 0, np.append(ignored_G, False)[match_D], outside_D)
            right_X = np.flatnonzero(counted_D & (match_D >= 0))
            precision[t, :, known_K, a, 0] = _precision(ranking, right_X, counted_D, annotated_K)[known_K]
            for m, limit in enumerate(limits):
                within_X = right_X[ranking.rank_D[right_X] < limit]
                found_K = np.bincount(ranking.category_D[within_X], minlength=sizes[1])
                recall[t, known_K, a, m] = found_K[known_K] / annotated_K[known_K]
    return CocoTables(ranking.categories, tuple(iou_thresholds), tuple(areas), limits, precision, recall)


def _precision(ranking: Ranking, right_X: np.ndarray, counted_D: np.ndarray, annotated_K: np.ndarray) -> np.ndarray:
    """(K, R) interpolated precision."""
    category_X = ranking.category_D[right_X]
    first_K = np.searchsorted(ranking.category_D, np.arange(len(annotated_K)))
    seen_D = np.cumsum(np.append(0, counted_D))
    seen_X = seen_D[right_X + 1] - seen_D[first_K[category_X]]
    found_X = np.arange(len(right_X)) - np.searchsorted(category_X, category_X) + 1
    best, points = interpolate(found_X[None], seen_X[None], annotated_K[None], category_X)
    reached_K = np.bincount(category_X, weights=points[0], minlength=len(annotated_K))
    precision = np.zeros((len(annotated_K), len(RECALLS)))
    precision[np.arange(len(RECALLS)) < reached_K[:, None]] = np.repeat(best[0], points[0])
    return precision


def interpolate(
    found_BX: np.ndarray, seen_BX: np.ndarray, annotated_BK: np.ndarray, category_X: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's interpolated precision, at the right predictions, where alone it can rise.

    Args:
        found_BX: right predictions of the category up to and with each; seen_BX: all predictions up to there.
        category_X: sorted.

    Returns:
        (B, X) best precision at this recall or a higher one, and (B, X) how many of the RECALLS are first reached here.
    """
    precision = np.divide(found_BX, seen_BX, out=np.zeros(found_BX.shape), where=seen_BX > 0)
    # One running maximum serves all categories: each is lifted above those behind it.
    lift_X = 2.0 * (annotated_BK.shape[1] - category_X)
    best = np.maximum.accumulate((precision + lift_X)[:, ::-1], axis=1)[:, ::-1] - lift_X
    annotated_BX = annotated_BK[:, category_X]
    recall = np.divide(found_BX, annotated_BX, out=np.full(found_BX.shape, -1.0), where=annotated_BX > 0)
    reached = np.searchsorted(RECALLS, recall, side="right")
    before = np.zeros_like(reached)
    before[:, 1:] = np.where(category_X[1:] == category_X[:-1], reached[:, :-1], 0)
    return best, reached - before


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
