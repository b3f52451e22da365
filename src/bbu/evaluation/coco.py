"""COCO average precision and recall from match tables.

An entry is -1 where a category has no ground truth. Averages skip it and are None when nothing is left. True
positives are sorted by category and confidence.

Shapes: U IoU thresholds, Rc recall steps, Ca categories, A COCO area ranges, Li detection limits, Dt detections,
Gt ground-truth objects, Tp true positives, Bs bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bbu.evaluation.matching import Ranking

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
# Box areas in displayed pixels, COCO's bins; a box on a border belongs to both.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
RECALLS = np.linspace(0, 1, 101)
RECALL_LIMITS = (1, 10, 100)  # detections per photo and category


@dataclass(frozen=True)
class CocoTables:
    """Precision (at the highest detection limit only) and recall; undefined entries are -1."""

    categories: tuple[str, ...]
    iou_thresholds: tuple[float, ...]
    areas: tuple[str, ...]
    limits: tuple[int, ...]
    precision_URcCaALi: np.ndarray
    recall_UCaALi: np.ndarray

    def average_precision(self, iou: float | None = None, area: str = "all") -> float | None:
        """Mean over recall, categories and IoU thresholds (or the one that ``iou`` picks), at the highest limit."""
        chosen_U = [iou is None or math.isclose(value, iou) for value in self.iou_thresholds]
        return _mean(self.precision_URcCaALi[chosen_U, :, :, self.areas.index(area), -1])

    def average_recall(self, limit: int, area: str = "all") -> float | None:
        """Mean recall over thresholds and categories with at most ``limit`` detections per photo and category."""
        return _mean(self.recall_UCaALi[:, :, self.areas.index(area), self.limits.index(min(limit, self.limits[-1]))])

    def precision_of_each(self, iou: float) -> dict[str, float | None]:
        """Category → average precision at one IoU threshold."""
        u = next(number for number, value in enumerate(self.iou_thresholds) if math.isclose(value, iou))
        return {name: _mean(self.precision_URcCaALi[u, :, k, 0, -1]) for k, name in enumerate(self.categories)}


def tables_of(
    ranking: Ranking,
    max_detections: int,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    areas: Sequence[str] = tuple(AREAS),
) -> CocoTables:
    """COCO's box evaluation.

    Detections of a category without ground truth are left out, as in every COCO tool; the vocabulary metrics count
    them.

    Args:
        max_detections: the limit per photo and category that the ranking was cut to.
        iou_thresholds: each at least 0.5.
        areas: names from AREAS, "all" first.
    """
    limits = tuple(sorted({min(limit, max_detections) for limit in (*RECALL_LIMITS, max_detections)}))
    sizes = (len(iou_thresholds), len(ranking.categories), len(areas), len(limits))
    precision = np.full((sizes[0], len(RECALLS), *sizes[1:3], 1), -1.0)
    recall = np.full(sizes, -1.0)
    for a, (least, most) in enumerate(AREAS[area] for area in areas):
        truth_area_Gt, area_Dt = ranking.flat.truth_area_Gt, ranking.flat.area_Dt[ranking.prediction_Dt]
        ignored_Gt = (truth_area_Gt < least) | (truth_area_Gt > most)
        outside_Dt = (area_Dt < least) | (area_Dt > most)
        annotated_Ca = np.bincount(ranking.truth_category_Gt[~ignored_Gt], minlength=sizes[1])
        known_Ca = np.flatnonzero(annotated_Ca)
        for t, match_Dt in enumerate(ranking.match(iou_thresholds, ignored_Gt)):
            counted_Dt = ~np.where(match_Dt >= 0, np.append(ignored_Gt, False)[match_Dt], outside_Dt)
            right_Tp = np.flatnonzero(counted_Dt & (match_Dt >= 0))
            precision[t, :, known_Ca, a, 0] = _precision(ranking, right_Tp, counted_Dt, annotated_Ca)[known_Ca]
            for m, limit in enumerate(limits):
                within_Tp = right_Tp[ranking.rank_Dt[right_Tp] < limit]
                found_Ca = np.bincount(ranking.category_Dt[within_Tp], minlength=sizes[1])
                recall[t, known_Ca, a, m] = found_Ca[known_Ca] / annotated_Ca[known_Ca]
    return CocoTables(ranking.categories, tuple(iou_thresholds), tuple(areas), limits, precision, recall)


def _precision(ranking: Ranking, right_Tp: np.ndarray, counted_Dt: np.ndarray, annotated_Ca: np.ndarray) -> np.ndarray:
    """(Ca, Rc) interpolated precision."""
    category_Tp = ranking.category_Dt[right_Tp]
    first_Ca = np.searchsorted(ranking.category_Dt, np.arange(len(annotated_Ca)))
    seen_Dt = np.cumsum(np.append(0, counted_Dt))
    seen_Tp = seen_Dt[right_Tp + 1] - seen_Dt[first_Ca[category_Tp]]
    found_Tp = np.arange(len(right_Tp)) - np.searchsorted(category_Tp, category_Tp) + 1
    best, points = interpolate(found_Tp[None], seen_Tp[None], annotated_Ca[None], category_Tp)
    reached_Ca = np.bincount(category_Tp, weights=points[0], minlength=len(annotated_Ca))
    precision = np.zeros((len(annotated_Ca), len(RECALLS)))
    precision[np.arange(len(RECALLS)) < reached_Ca[:, None]] = np.repeat(best[0], points[0])
    return precision


def interpolate(
    found_BsTp: np.ndarray, seen_BsTp: np.ndarray, annotated_BsCa: np.ndarray, category_Tp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's interpolated precision, evaluated at the true positives, the only places where precision can rise.

    Args:
        found_BsTp: cumulative true positives of the category; seen_BsTp: cumulative detections at the same places.
        category_Tp: sorted.

    Returns:
        (Bs, Tp) best precision at this recall or above, and (Bs, Tp) how many of RECALLS are first reached here.
    """
    precision = np.divide(found_BsTp, seen_BsTp, out=np.zeros(found_BsTp.shape), where=seen_BsTp > 0)
    # One running maximum serves all categories: each category is lifted above those after it.
    lift_Tp = 2.0 * (annotated_BsCa.shape[1] - category_Tp)
    best = np.maximum.accumulate((precision + lift_Tp)[:, ::-1], axis=1)[:, ::-1] - lift_Tp
    annotated_BsTp = annotated_BsCa[:, category_Tp]
    recall = np.divide(found_BsTp, annotated_BsTp, out=np.full(found_BsTp.shape, -1.0), where=annotated_BsTp > 0)
    reached = np.searchsorted(RECALLS, recall, side="right")
    before = np.zeros_like(reached)
    before[:, 1:] = np.where(category_Tp[1:] == category_Tp[:-1], reached[:, :-1], 0)
    return best, reached - before


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
