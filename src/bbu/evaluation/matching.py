"""Match detections to ground truth by COCO's rule, for all photos at once.

Within a photo and category, detections are visited in order of descending confidence. Each takes the free
ground-truth object with the highest IoU, if that reaches the threshold. Ignored objects (outside the area range) are
taken only when no other is left, and count neither as right nor as wrong. The match tables are kept, so bootstrap
samples only reweight photos and never match again.

Shapes: Gt ground-truth objects, Dt detections, Op overlapping pairs, De descriptions of a vocabulary,
U IoU thresholds, Ph photos, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from bbu.evaluation.pairing import INDEX, Photos, joined_ranges
from bbu.geometry import box_area

MATCH_IOU = 0.5  # the lowest IoU of a match anywhere in this package
CHUNK = 2_000_000  # numbers in one temporary array: 16 MB
MAX_DETECTIONS = 100  # COCO's limit per photo and category
RankBy = Literal["score", "objectness"]


@dataclass(frozen=True)
class FlatDetections:
    """Objects and detections of all photos in flat arrays, photo by photo in order of name.

    Attributes:
        vocabulary: every description annotated or predicted, sorted; ``*_desc_*`` index it.
        confidences: ``rank_by`` → (Dt,) confidence.
        pair_*_Op: pairs of an object and a detection with IoU ≥ MATCH_IOU, whatever their descriptions.
    """

    names: tuple[str, ...]
    vocabulary: tuple[str, ...]
    truth_photo_Gt: np.ndarray
    truth_desc_Gt: np.ndarray
    truth_area_Gt: np.ndarray
    photo_Dt: np.ndarray
    desc_Dt: np.ndarray
    area_Dt: np.ndarray
    confidences: Mapping[RankBy, np.ndarray]
    pair_truth_Op: np.ndarray
    pair_prediction_Op: np.ndarray
    pair_iou_Op: np.ndarray


def flatten(photos: Photos) -> FlatDetections:
    """Flatten photos and find the overlapping pairs."""
    truth_Op, prediction_Op, iou_Op = _overlaps(photos)
    return FlatDetections(
        names=photos.names,
        vocabulary=photos.vocabulary,
        truth_photo_Gt=_owners(photos.truth_start_Ph),
        truth_desc_Gt=photos.truth_desc_Gt,
        truth_area_Gt=box_area(photos.truth_boxes_Gt4),
        photo_Dt=_owners(photos.start_Ph),
        desc_Dt=photos.desc_Dt,
        area_Dt=box_area(photos.boxes_Dt4),
        confidences={"score": photos.scores_Dt, "objectness": photos.objectness_Dt},
        pair_truth_Op=truth_Op,
        pair_prediction_Op=prediction_Op,
        pair_iou_Op=iou_Op,
    )


def _overlaps(photos: Photos) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Op,) objects, detections and IoUs of the pairs of one photo with IoU ≥ MATCH_IOU, detection by detection."""
    photo_Dt = _owners(photos.start_Ph)
    first_Dt, count_Dt = photos.truth_start_Ph[photo_Dt], np.diff(photos.truth_start_Ph)[photo_Dt]
    pairs_before_Dt = np.append(0, np.cumsum(count_Dt))
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(*np.empty((2, 0), dtype=INDEX), np.empty(0))]
    start = 0
    while start < len(photo_Dt):
        stop = max(start + 1, int(np.searchsorted(pairs_before_Dt, pairs_before_Dt[start] + CHUNK, side="right")) - 1)
        truth_R = joined_ranges(first_Dt[start:stop], count_Dt[start:stop])
        prediction_R = np.repeat(np.arange(start, stop, dtype=INDEX), count_Dt[start:stop])
        iou_R = _coco_iou(photos.boxes_Dt4[prediction_R], photos.truth_boxes_Gt4[truth_R])
        close = np.flatnonzero(iou_R >= MATCH_IOU)
        kept.append((truth_R[close], prediction_R[close], iou_R[close]))
        start = stop
    truth_Op, prediction_Op, iou_Op = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return truth_Op, prediction_Op, iou_Op


def _coco_iou(boxes_R4: np.ndarray, truth_R4: np.ndarray) -> np.ndarray:
    """IoU of pairs from corner and size, as COCO's tools store boxes: rounding then agrees at the threshold."""
    low_R2, size_R2 = boxes_R4[:, :2], boxes_R4[:, 2:] - boxes_R4[:, :2]
    truth_low_R2, truth_size_R2 = truth_R4[:, :2], truth_R4[:, 2:] - truth_R4[:, :2]
    high_R2 = np.minimum(low_R2 + size_R2, truth_low_R2 + truth_size_R2)
    shared_R = np.maximum(high_R2 - np.maximum(low_R2, truth_low_R2), 0.0).prod(axis=1)
    together_R = size_R2.prod(axis=1) + truth_size_R2.prod(axis=1) - shared_R
    overlap_R: np.ndarray = shared_R / together_R  # pairing thickens flat boxes, so no union is empty
    return overlap_R


def _owners(start_Ph: np.ndarray) -> np.ndarray:
    """The photo of each object or detection."""
    return np.repeat(np.arange(len(start_Ph) - 1, dtype=INDEX), np.diff(start_Ph))


@dataclass(frozen=True)
class Ranking:
    """Detections sorted by category, then by descending confidence, ready to be matched.

    Ties keep the order of photo and box. Dt counts the detections kept here.

    Attributes:
        categories: the annotated categories, sorted. Category numbers beyond them are never annotated.
        prediction_Dt: index into the flat detections.
        rank_Dt: rank among the detections of the same photo and category, from 0.
        truth_category_Gt: category of each ground-truth object.
    """

    flat: FlatDetections
    categories: tuple[str, ...]
    prediction_Dt: np.ndarray
    photo_Dt: np.ndarray
    category_Dt: np.ndarray
    confidence_Dt: np.ndarray
    rank_Dt: np.ndarray
    truth_category_Gt: np.ndarray

    def truth_counts(self) -> np.ndarray:
        """(Ca,) number of ground-truth objects."""
        return np.bincount(self.truth_category_Gt, minlength=len(self.categories))

    def match(self, thresholds: Sequence[float], ignored_Gt: np.ndarray | None = None) -> np.ndarray:
        """Match at each IoU threshold, none under MATCH_IOU.

        Args:
            ignored_Gt: objects that are taken only when no other is left.

        Returns:
            (U, Dt) index of the object that each detection takes, -1 for none.

        Raises:
            ValueError: a threshold below MATCH_IOU; such pairs were not kept.
        """
        if min(thresholds) < MATCH_IOU:
            raise ValueError(f"IoU threshold {min(thresholds)} is under {MATCH_IOU}")
        least_U = np.minimum(np.array(thresholds), 1 - 1e-10)  # COCO's guard for a threshold of 1
        truths = len(self.truth_category_Gt)
        ignored_Gt = np.zeros(truths, dtype=bool) if ignored_Gt is None else ignored_Gt
        free_UGt = np.ones((len(least_U), truths), dtype=bool)
        match_UDt = np.full((len(least_U), len(self.prediction_Dt)), -1, dtype=np.int32)
        for truth_Op, iou_Op, starts, places in self._rounds:
            # A detection's pairs are sorted by IoU, and ignored objects rank below all others: the last is the best.
            worth_Op = np.arange(len(truth_Op)) + len(truth_Op) * ~ignored_Gt[truth_Op]
            at_once = max(1, CHUNK // len(truth_Op))
            for first in range(0, len(least_U), at_once):
                some = slice(first, first + at_once)
                able_UOp = free_UGt[some, truth_Op] & (iou_Op >= least_U[some, None])
                best = np.maximum.reduceat(np.where(able_UOp, worth_Op, -1), starts, axis=1)
                t, which = np.nonzero(best >= 0)
                taken = truth_Op[best[t, which] % len(truth_Op)]
                match_UDt[t + first, places[which]] = taken
                free_UGt[t + first, taken] = False
        return match_UDt

    @cached_property
    def _rounds(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """The overlapping pairs, cut into rounds with at most one detection per photo and category.

        A round is (objects, IoUs, where each detection's pairs start, indices of these detections).
        """
        flat = self.flat
        place = np.full(len(flat.photo_Dt), -1, dtype=INDEX)
        place[self.prediction_Dt] = np.arange(len(self.prediction_Dt))
        place_Op = place[flat.pair_prediction_Op]
        category_Op = np.append(self.category_Dt, -1)[place_Op]  # the last is of detections that are not kept
        kept_Op = np.flatnonzero(category_Op == self.truth_category_Gt[flat.pair_truth_Op])
        place_Op, truth_Op, iou_Op = place_Op[kept_Op], flat.pair_truth_Op[kept_Op], flat.pair_iou_Op[kept_Op]
        candidates = np.unique(place_Op)
        turn = np.zeros(len(self.prediction_Dt), dtype=INDEX)
        turn[candidates] = _turns(self.photo_Dt[candidates], self.category_Dt[candidates], self.rank_Dt[candidates])
        order = np.lexsort((truth_Op, iou_Op, place_Op, turn[place_Op]))
        place_Op, truth_Op, iou_Op = place_Op[order], truth_Op[order], iou_Op[order]
        edges = np.searchsorted(turn[place_Op], np.arange(turn.max(initial=-1) + 2))
        rounds = []
        for start, stop in pairwise(edges):
            if stop > start:
                places, starts = np.unique(place_Op[start:stop], return_index=True)
                rounds.append((truth_Op[start:stop], iou_Op[start:stop], starts, places))
        return rounds


@dataclass(frozen=True)
class Matched:
    """A ranking and its matches at several IoU thresholds, MATCH_IOU first.

    Attributes:
        right_Dt: whether each detection takes an object at MATCH_IOU.
    """

    ranking: Ranking
    match_UDt: np.ndarray
    right_Dt: np.ndarray

    @classmethod
    def at(cls, ranking: Ranking, thresholds: Sequence[float] = (MATCH_IOU,)) -> Matched:
        """Match a ranking."""
        match_UDt = ranking.match(thresholds)
        return cls(ranking, match_UDt, match_UDt[0] >= 0)


def _turns(*keys: np.ndarray) -> np.ndarray:
    """Rank of each element, by the last key, among the elements that agree in all other keys."""
    order = np.lexsort(keys[::-1])
    numbers = np.arange(len(order), dtype=INDEX)
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for key in keys[:-1]:
        new[1:] |= key[order][1:] != key[order][:-1]
    turns = np.empty(len(order), dtype=INDEX)
    turns[order] = numbers - np.maximum.accumulate(np.where(new, numbers, 0))
    return turns


def any_object(_: str) -> str:
    """The one category of class-agnostic matching, as a label for ``rank``."""
    return "object"


def rank(
    flat: FlatDetections, label: Callable[[str], str], rank_by: RankBy, max_detections: int = MAX_DETECTIONS
) -> Ranking:
    """Sort detections for matching.

    Args:
        label: description → category.
        max_detections: the most confident detections kept per photo and category.
    """
    names = [label(desc) for desc in flat.vocabulary]
    annotated = sorted({names[code] for code in np.unique(flat.truth_desc_Gt)})
    ids = {name: k for k, name in enumerate([*annotated, *sorted(set(names) - set(annotated))])}
    category_De = np.array([ids[name] for name in names], dtype=INDEX)
    confidence, category = flat.confidences[rank_by], category_De[flat.desc_Dt]
    rank_all = _turns(flat.photo_Dt, category, -confidence)
    kept = np.flatnonzero(rank_all < max_detections)
    order = kept[np.lexsort((-confidence[kept], category[kept]))].astype(INDEX)
    return Ranking(
        flat=flat,
        categories=tuple(annotated),
        prediction_Dt=order,
        photo_Dt=flat.photo_Dt[order],
        category_Dt=category[order],
        confidence_Dt=confidence[order],
        rank_Dt=rank_all[order],
        truth_category_Gt=category_De[flat.truth_desc_Gt],
    )
