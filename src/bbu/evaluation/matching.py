"""Which prediction is right about which annotated box, for all photos at once.

The rule is COCO's: within a photo and category the surest prediction comes first, and each takes the free annotated
box that it overlaps most, if the overlap reaches the threshold. Boxes of other sizes than asked for are taken only
where no other is left, and count neither for nor against. The tables are kept, so that precision can be worked out
again for resampled photos without matching anew.

Shape suffixes: P photos, G annotated boxes and D predictions of all photos, E pairs of the two that overlap,
V descriptions, K annotated categories, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from bbu.evaluation.pairing import Photo

MATCH_IOU = 0.5  # least overlap of a match anywhere in this package
RankBy = Literal["scores_M", "objectness_M"]


@dataclass(frozen=True)
class Album:
    """All photos in flat arrays, photo by photo in order of name.

    Attributes:
        vocabulary: every description annotated or predicted, sorted; ``*_desc_*`` count in it.
        confidences: ``rank_by`` → (D,) confidence.
        pair_*_E: pairs of an annotated box and a prediction with IoU ≥ MATCH_IOU, whatever their words.
    """

    names: tuple[str, ...]
    vocabulary: tuple[str, ...]
    truth_photo_G: np.ndarray
    truth_desc_G: np.ndarray
    truth_area_G: np.ndarray
    photo_D: np.ndarray
    desc_D: np.ndarray
    area_D: np.ndarray
    confidences: Mapping[RankBy, np.ndarray]
    pair_truth_E: np.ndarray
    pair_prediction_E: np.ndarray
    pair_iou_E: np.ndarray


def collect(photos: Sequence[Photo]) -> Album:
    """Flatten photos and find the boxes that overlap."""
    vocabulary = tuple(sorted({desc for photo in photos for desc in (*photo.truth_descs, *photo.descs)}))
    codes = {desc: code for code, desc in enumerate(vocabulary)}
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    truths = predictions = 0
    for photo in photos:
        iou_MN = _coco_iou(photo.boxes_M4, photo.truth_boxes_N4)
        m, n = np.nonzero(iou_MN >= MATCH_IOU)
        pairs.append((n + truths, m + predictions, iou_MN[m, n]))
        truths, predictions = truths + len(photo.truth_descs), predictions + len(photo.descs)
    return Album(
        names=tuple(photo.name for photo in photos),
        vocabulary=vocabulary,
        truth_photo_G=_owners([len(photo.truth_descs) for photo in photos]),
        truth_desc_G=np.array([codes[desc] for photo in photos for desc in photo.truth_descs], dtype=np.int64),
        truth_area_G=_joined([_area(photo.truth_boxes_N4) for photo in photos]),
        photo_D=_owners([len(photo.descs) for photo in photos]),
        desc_D=np.array([codes[desc] for photo in photos for desc in photo.descs], dtype=np.int64),
        area_D=_joined([_area(photo.boxes_M4) for photo in photos]),
        confidences={
            "scores_M": _joined([photo.scores_M for photo in photos]),
            "objectness_M": _joined([photo.objectness_M for photo in photos]),
        },
        pair_truth_E=_joined([pair[0] for pair in pairs]).astype(np.int64),
        pair_prediction_E=_joined([pair[1] for pair in pairs]).astype(np.int64),
        pair_iou_E=_joined([pair[2] for pair in pairs]),
    )


def _coco_iou(boxes_M4: np.ndarray, truth_N4: np.ndarray) -> np.ndarray:
    """IoU rounded as COCO's tools do, which keep corner and size: a box at the threshold falls on the same side."""
    low_M2, size_M2 = boxes_M4[:, :2], boxes_M4[:, 2:] - boxes_M4[:, :2]
    low_N2, size_N2 = truth_N4[:, :2], truth_N4[:, 2:] - truth_N4[:, :2]
    high_MN2 = np.minimum((low_M2 + size_M2)[:, None], (low_N2 + size_N2)[None])
    shared_MN2 = np.maximum(high_MN2 - np.maximum(low_M2[:, None], low_N2[None]), 0.0)
    shared_MN = shared_MN2[..., 0] * shared_MN2[..., 1]
    together_MN = size_M2.prod(axis=1)[:, None] + size_N2.prod(axis=1)[None] - shared_MN
    return shared_MN / together_MN  # boxes are thickened on the way in, so that none is empty


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _owners(counts: Sequence[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), np.array(counts, dtype=np.int64))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0), *parts])


@dataclass(frozen=True)
class Ranking:
    """Predictions under one labelling, category by category and surest first, ready to be matched.

    Equal confidences stand in order of photo and box. D counts the predictions kept here.

    Attributes:
        categories: K annotated ones, sorted. Categories from K on are words that no annotated box has.
        prediction_D: place in the album.
        rank_D: place among the predictions of the same photo and category, from 0.
        truth_category_G: category of each annotated box.
    """

    album: Album
    categories: tuple[str, ...]
    prediction_D: np.ndarray
    photo_D: np.ndarray
    category_D: np.ndarray
    confidence_D: np.ndarray
    rank_D: np.ndarray
    truth_category_G: np.ndarray

    def truth_counts(self) -> np.ndarray:
        """(K,) annotated boxes."""
        return np.bincount(self.truth_category_G, minlength=len(self.categories))

    def match(self, thresholds: Sequence[float], ignored_G: np.ndarray | None = None) -> np.ndarray:
        """Match at each IoU threshold, none under MATCH_IOU.

        Args:
            ignored_G: annotated boxes that are taken only where no other is left.

        Returns:
            (T, D) index of the annotated box that each prediction takes, -1 for none.

        Raises:
            ValueError: a threshold under MATCH_IOU, whose pairs were not kept.
        """
        if min(thresholds) < MATCH_IOU:
            raise ValueError(f"IoU threshold {min(thresholds)} is under {MATCH_IOU}")
        least_T = np.minimum(np.array(thresholds), 1 - 1e-10)  # COCO's guard for a threshold of 1
        truths = len(self.truth_category_G)
        ignored_G = np.zeros(truths, dtype=bool) if ignored_G is None else ignored_G
        free_TG = np.ones((len(least_T), truths), dtype=bool)
        match_TD = np.full((len(least_T), len(self.prediction_D)), -1, dtype=np.int32)
        for truth_E, iou_E, starts, places in self._rounds:
            able_TE = free_TG[:, truth_E] & (iou_E >= least_T[:, None])
            # The last one able is the best: pairs of a prediction are sorted by overlap, ignored boxes come below.
            worth_E = np.arange(len(truth_E)) + len(truth_E) * ~ignored_G[truth_E]
            best = np.maximum.reduceat(np.where(able_TE, worth_E, -1), starts, axis=1)
            t, which = np.nonzero(best >= 0)
            taken = truth_E[best[t, which] % len(truth_E)]
            match_TD[t, places[which]] = taken
            free_TG[t, taken] = False
        return match_TD

    @cached_property
    def _rounds(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """The overlapping pairs cut into rounds: in each, every photo and category has at most one prediction.

        A round: annotated boxes, IoUs, where each prediction's pairs start, and the places (in D) of these.
        """
        album = self.album
        place = np.full(len(album.photo_D), -1)
        place[self.prediction_D] = np.arange(len(self.prediction_D))
        place_E = place[album.pair_prediction_E]
        kept_E = np.flatnonzero(
            (place_E >= 0) & (self.category_D[place_E] == self.truth_category_G[album.pair_truth_E])
            if len(self.prediction_D)
            else np.zeros(len(place_E), dtype=bool)
        )
        place_E, truth_E, iou_E = place_E[kept_E], album.pair_truth_E[kept_E], album.pair_iou_E[kept_E]
        candidates = np.unique(place_E)
        turn = np.zeros(len(self.prediction_D), dtype=np.int64)
        turn[candidates] = _turns(self.photo_D[candidates], self.category_D[candidates], self.rank_D[candidates])
        order = np.lexsort((truth_E, iou_E, place_E, turn[place_E]))
        place_E, truth_E, iou_E = place_E[order], truth_E[order], iou_E[order]
        edges = np.searchsorted(turn[place_E], np.arange(turn.max(initial=-1) + 2))
        rounds = []
        for start, stop in pairwise(edges):
            if stop > start:
                places, starts = np.unique(place_E[start:stop], return_index=True)
                rounds.append((truth_E[start:stop], iou_E[start:stop], starts, places))
        return rounds


@dataclass(frozen=True)
class Matched:
    """A ranking and its matches at several IoU thresholds, MATCH_IOU first.

    Attributes:
        right_D: whether each prediction takes an annotated box at MATCH_IOU.
    """

    ranking: Ranking
    match_TD: np.ndarray
    right_D: np.ndarray

    @classmethod
    def at(cls, ranking: Ranking, thresholds: Sequence[float] = (MATCH_IOU,)) -> Matched:
        """Match a ranking."""
        match_TD = ranking.match(thresholds)
        return cls(ranking, match_TD, match_TD[0] >= 0)


def _turns(*keys: np.ndarray) -> np.ndarray:
    """For each element its number among those that agree in all keys but the last, in order of the last."""
    order = np.lexsort(keys[::-1])
    numbers = np.arange(len(order))
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for key in keys[:-1]:
        new[1:] |= key[order][1:] != key[order][:-1]
    turns = np.empty(len(order), dtype=np.int64)
    turns[order] = numbers - np.maximum.accumulate(np.where(new, numbers, 0))
    return turns


def part(_: str) -> str:
    """The one category of boxes whose words play no part; for ``rank``."""
    return "part"


def rank(album: Album, label: Callable[[str], str], rank_by: RankBy, max_detections: int) -> Ranking:
    """Sort predictions for matching.

    Args:
        label: description → category.
        max_detections: surest predictions kept a photo and category.
    """
    names = [label(desc) for desc in album.vocabulary]
    annotated = sorted({names[code] for code in np.unique(album.truth_desc_G)})
    ids = {name: k for k, name in enumerate([*annotated, *sorted(set(names) - set(annotated))])}
    category_V = np.array([ids[name] for name in names], dtype=np.int64)
    confidence, category = album.confidences[rank_by], category_V[album.desc_D]
    rank_all = _turns(album.photo_D, category, -confidence)
    kept = np.flatnonzero(rank_all < max_detections)
    order = kept[np.lexsort((-confidence[kept], category[kept]))]
    return Ranking(
        album=album,
        categories=tuple(annotated),
        prediction_D=order,
        photo_D=album.photo_D[order],
        category_D=category[order],
        confidence_D=confidence[order],
        rank_D=rank_all[order],
        truth_category_G=category_V[album.truth_desc_G],
    )
