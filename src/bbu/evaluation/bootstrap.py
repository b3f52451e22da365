"""How much the headline figures would move with other photos of the same kind: percentile bootstrap over photos.

Photos are drawn with replacement (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13). What a
photo holds and what was matched in it stays the same, so it is matched once, and a resample is only a weight for each
photo: how often it was drawn. Weights of one give the figures themselves.

Shape suffixes: those of ``matching``; B weightings, X right predictions or matched boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bbu.evaluation.calibration import BINS, width_bin
from bbu.evaluation.coco import RECALLS, interpolate
from bbu.evaluation.inspection import SLACK, miss_rate_key, tie_ends
from bbu.evaluation.matching import Matched

CONFIDENCE = 0.95
CHUNK = 2_000_000  # numbers in one temporary array: 16 MB

Figures = dict[str, np.ndarray]  # name → (B,) values, NaN where undefined
Interval = list[float] | None


class Headlines:
    """The headline figures as functions of how often each photo counts.

    Args:
        described: matches by description, ranked by score, at COCO's thresholds.
        bare: matches of boxes whatever their words, ranked by objectness, at the same thresholds.
        alarms: false alarms a photo, for the miss rates.
    """

    def __init__(self, described: Matched, bare: Matched, alarms: Sequence[float]) -> None:
        self.photos = len(described.ranking.album.names)
        sizes = (described.ranking.prediction_D, bare.ranking.prediction_D, bare.ranking.truth_category_G)
        self.width = max(1, self.photos, *(len(size) for size in sizes))
        self.parts: list[Callable[[np.ndarray], Figures]] = [
            _Precision(described, "").figures,
            _Precision(bare, "_agnostic").figures,
            _MissRates(described, "", alarms).figures,
            _MissRates(bare, "_agnostic", alarms).figures,
            _Words(bare).figures,
            _Errors(described, "").figures,
            _Errors(bare, "_objectness").figures,
        ]

    def __call__(self, weights_BP: np.ndarray) -> Figures:
        """Figures for each weighting; weights are counts, as many in sum as there are photos."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: values for part in self.parts for name, values in part(weights_BP).items()}

    def point(self) -> dict[str, float | None]:
        """The figures of the photos as they are."""
        return {name: None if np.isnan(v[0]) else float(v[0]) for name, v in self(np.ones((1, self.photos))).items()}


def resample(headlines: Sequence[Headlines], bootstrap_samples: int, seed: int) -> list[Figures]:
    """Figures of resampled photos, the same draws for all ``headlines``, which are of the same photos."""
    random = np.random.default_rng(seed)
    chunks: list[list[Figures]] = [[] for _ in headlines]
    for weights_BP in _draws(random, headlines[0].photos, bootstrap_samples, max(item.width for item in headlines)):
        for found, item in zip(chunks, headlines, strict=True):
            found.append(item(weights_BP))
    return [{name: np.concatenate([chunk[name] for chunk in found]) for name in found[0]} for found in chunks]


def _draws(random: np.random.Generator, photos: int, bootstrap_samples: int, width: int) -> Iterator[np.ndarray]:
    """(B, P) weights, a few bootstrap_samples at a time; what is drawn does not depend on how many."""
    step = max(1, CHUNK // width)
    for start in range(0, bootstrap_samples, step):
        counts = [
            np.bincount(random.integers(photos, size=photos), minlength=photos)
            for _ in range(min(step, bootstrap_samples - start))
        ]
        yield np.array(counts, dtype=np.float64)


def interval(values_B: np.ndarray) -> Interval:
    """The middle 95 % of the defined values; None when there is none."""
    defined = values_B[~np.isnan(values_B)]
    if not defined.size:
        return None
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return [low, high]


def intervals(headlines: Headlines, bootstrap_samples: int, seed: int) -> dict[str, Interval]:
    """Figure → its interval; None from fewer than two photos, which say nothing about others."""
    point = headlines.point()
    if not bootstrap_samples:
        return {}
    if headlines.photos < 2:
        return dict.fromkeys(point)
    (drawn,) = resample([headlines], bootstrap_samples, seed)
    return {name: None if point[name] is None else interval(drawn[name]) for name in point}


# ---------------------------------------------------------------- the figures


@dataclass(frozen=True)
class _Right:
    """The right predictions of one IoU threshold, by category and confidence.

    Attributes:
        place_X: place among the predictions of annotated descriptions.
        first_X: place of the first right prediction of the same category, in X.
        first_place_X: place of its first prediction of all.
    """

    place_X: np.ndarray
    photo_X: np.ndarray
    category_X: np.ndarray
    first_X: np.ndarray
    first_place_X: np.ndarray


class _Precision:
    """COCO's AP and AP50, worked out at the right predictions, where alone precision can rise."""

    def __init__(self, matched: Matched, suffix: str) -> None:
        ranking = matched.ranking
        categories = np.arange(len(ranking.categories))
        known = int(np.searchsorted(ranking.category_D, len(categories)))  # behind: words that nothing annotated has
        self.suffix, self.photo_D = suffix, ranking.photo_D[:known]
        first_K = np.searchsorted(ranking.category_D[:known], categories)
        by_category = np.argsort(ranking.truth_category_G, kind="stable")
        self.truth_photo_G = ranking.album.truth_photo_G[by_category]
        self.truth_first_K = np.searchsorted(ranking.truth_category_G[by_category], categories)
        self.right_T = []
        for match_D in matched.match_TD:
            place_X = np.flatnonzero(match_D[:known] >= 0)
            category_X = ranking.category_D[place_X]
            first_X = np.searchsorted(category_X, category_X)
            self.right_T.append(_Right(place_X, self.photo_D[place_X], category_X, first_X, first_K[category_X]))

    def figures(self, weights_BP: np.ndarray) -> Figures:
        names = (f"AP{self.suffix}", f"AP50{self.suffix}")
        if not len(self.truth_first_K):
            return {name: np.full(len(weights_BP), np.nan) for name in names}
        annotated_BK = np.add.reduceat(weights_BP[:, self.truth_photo_G], self.truth_first_K, axis=1)
        seen_BD = _running(weights_BP, self.photo_D)
        by_threshold = [self._mean(right, weights_BP, seen_BD, annotated_BK) for right in self.right_T]
        return dict(zip(names, (np.mean(by_threshold, axis=0), by_threshold[0]), strict=True))

    def _mean(self, right: _Right, weights_BP: np.ndarray, seen_BD: np.ndarray, annotated_BK: np.ndarray) -> np.ndarray:
        """(B,) mean over the categories that have an annotated box."""
        found_BX = _running(weights_BP, right.photo_X)
        found_BX = found_BX[:, 1:] - found_BX.take(right.first_X, axis=1)
        seen_BX = seen_BD.take(right.place_X + 1, axis=1) - seen_BD.take(right.first_place_X, axis=1)
        best_BX, points_BX = interpolate(found_BX, seen_BX, annotated_BK, right.category_X)
        # A category without annotated boxes in a resample has no recall, so it reaches no point.
        mean_B: np.ndarray = (best_BX * points_BX).sum(axis=1) / len(RECALLS) / (annotated_BK > 0).sum(axis=1)
        return mean_B


class _MissRates:
    """Share of parts missed at so many false alarms a photo, one threshold for all descriptions."""

    def __init__(self, matched: Matched, suffix: str, alarms: Sequence[float]) -> None:
        ranking = matched.ranking
        order = np.argsort(-ranking.confidence_D, kind="stable")
        self.photo_D, self.right_D = ranking.photo_D[order], matched.right_D[order]
        self.ends_S = np.append(0, tie_ends(ranking.confidence_D[order]) + 1)
        self.truth_photo_G = ranking.album.truth_photo_G
        self.alarms, self.suffix = alarms, suffix
        # Few bootstrap_samples need more predictions than twice the alarms asked for; those few are given all.
        wrong_S = self.ends_S - np.append(0, np.cumsum(self.right_D))[self.ends_S]
        most = 2 * max(alarms, default=0) * len(ranking.album.names)
        self.enough = min(int(np.searchsorted(wrong_S, most, side="right")) + 1, len(self.ends_S))

    def figures(self, weights_BP: np.ndarray) -> Figures:
        right_BS, wrong_BS = self._running(weights_BP, self.enough)
        least_B = wrong_BS[:, -1]
        if self.enough < len(self.ends_S) and (least_B <= max(self.alarms, default=0) * weights_BP.shape[1]).any():
            right_BS, wrong_BS = self._running(weights_BP, len(self.ends_S))
        annotated_B = weights_BP[:, self.truth_photo_G].sum(axis=1)
        rows, figures = np.arange(len(weights_BP)), {}
        for limit in self.alarms:
            last_B = (wrong_BS <= limit * weights_BP.shape[1] + SLACK).sum(axis=1) - 1
            figures[miss_rate_key(limit, self.suffix)] = 1 - right_BS[rows, last_B] / annotated_B
        return figures

    def _running(self, weights_BP: np.ndarray, ends: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, ends) right and wrong predictions that each of so many thresholds lets through."""
        ends_S = self.ends_S[:ends]
        photo_D, right_D = self.photo_D[: ends_S[-1]], self.right_D[: ends_S[-1]]
        all_BS = _running(weights_BP, photo_D).take(ends_S, axis=1)
        before_S = np.append(0, np.cumsum(right_D))[ends_S]
        right_BS = _running(weights_BP, photo_D[right_D]).take(before_S, axis=1)
        return right_BS, all_BS - right_BS


class _Words:
    """Accuracy of the words at matched boxes, plain and as the mean of descriptions."""

    def __init__(self, bare: Matched) -> None:
        ranking, album = bare.ranking, bare.ranking.album
        place_X = np.flatnonzero(bare.right_D)
        truth_X = bare.match_TD[0, place_X]
        by_desc = np.argsort(album.truth_desc_G[truth_X], kind="stable")
        place_X, truth_X = place_X[by_desc], truth_X[by_desc]
        desc_X = album.truth_desc_G[truth_X]
        self.photo_X = album.truth_photo_G[truth_X]
        self.right_X = desc_X == album.desc_D[ranking.prediction_D[place_X]]
        self.first_K = np.flatnonzero(np.append([True] * min(1, len(desc_X)), desc_X[1:] != desc_X[:-1]))

    def figures(self, weights_BP: np.ndarray) -> Figures:
        if not len(self.first_K):
            nothing = np.full(len(weights_BP), np.nan)
            return {"description_accuracy": nothing, "description_macro_accuracy": nothing}
        weights_BX = weights_BP[:, self.photo_X]
        total_BK = np.add.reduceat(weights_BX, self.first_K, axis=1)
        right_BK = np.add.reduceat(weights_BX * self.right_X, self.first_K, axis=1)
        share_BK = np.divide(right_BK, total_BK, out=np.zeros_like(right_BK), where=total_BK > 0)
        return {
            "description_accuracy": right_BK.sum(axis=1) / total_BK.sum(axis=1),
            "description_macro_accuracy": share_BK.sum(axis=1) / (total_BK > 0).sum(axis=1),
        }


class _Errors:
    """Calibration error in bins of equal width, and Brier score: sums over photos, so one product each."""

    def __init__(self, matched: Matched, suffix: str) -> None:
        ranking, right_D = matched.ranking, matched.right_D
        photos = len(ranking.album.names)
        cell_D = ranking.photo_D * BINS + width_bin(ranking.confidence_D)

        def sums(values_D: np.ndarray) -> np.ndarray:
            return np.bincount(cell_D, weights=values_D, minlength=photos * BINS).reshape(photos, BINS)

        self.count_PW = sums(np.ones(len(cell_D)))
        self.gap_PW = sums(ranking.confidence_D - right_D)
        self.square_PW = sums((ranking.confidence_D - right_D) ** 2)
        self.suffix = suffix

    def figures(self, weights_BP: np.ndarray) -> Figures:
        count_B = (weights_BP @ self.count_PW).sum(axis=1)
        return {
            f"ECE{self.suffix}": np.abs(weights_BP @ self.gap_PW).sum(axis=1) / count_B,
            f"Brier{self.suffix}": (weights_BP @ self.square_PW).sum(axis=1) / count_B,
        }


def _running(weights_BP: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """(B, n + 1) summed weights of the first 0, 1, … n of the photos."""
    result = np.zeros((len(weights_BP), len(photo) + 1))
    np.cumsum(weights_BP.take(photo, axis=1), axis=1, out=result[:, 1:])
    return result
