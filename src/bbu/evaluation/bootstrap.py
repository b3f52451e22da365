"""Confidence intervals of the headline metrics: percentile bootstrap over photos.

Photos are drawn with replacement (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13). A photo's
matches do not change, so each photo is matched once and a bootstrap sample is a weight per photo: how often it was
drawn. Weights of one give the metrics themselves.

Shapes: Bs bootstrap samples, Ph photos, Gt ground-truth objects, Dt detections, Tp true positives, Ca categories,
U IoU thresholds, Th score thresholds, Bn calibration bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from bbu.evaluation.calibration import BINS, width_bin
from bbu.evaluation.coco import RECALLS, interpolate
from bbu.evaluation.inspection import SLACK, miss_rate_key, tie_ends
from bbu.evaluation.matching import CHUNK, Matched
from bbu.evaluation.pairing import INDEX

CONFIDENCE = 0.95

Figures = dict[str, np.ndarray]  # metric → (Bs,) values, NaN where undefined
Interval = list[float] | None


class Headlines:
    """The headline metrics as functions of how often each photo counts.

    Args:
        described: matches by description, ranked by score, at COCO's IoU thresholds.
        class_agnostic: class-agnostic matches, ranked by objectness, at the same thresholds.
        fppi: false positives per image at which the miss rates are taken.
    """

    def __init__(self, described: Matched, class_agnostic: Matched, fppi: Sequence[float]) -> None:
        self.photos = len(described.ranking.flat.names)
        both = (described.ranking, class_agnostic.ranking)
        self.width = max(1, self.photos, len(both[0].truth_category_Gt), *(len(item.prediction_Dt) for item in both))
        self.metrics: list[Callable[[np.ndarray], Figures]] = [
            _Precision(described, "").figures,
            _Precision(class_agnostic, "_agnostic").figures,
            _MissRates(described, "", fppi).figures,
            _MissRates(class_agnostic, "_agnostic", fppi).figures,
            _CaptionAccuracy(class_agnostic).figures,
            _CalibrationErrors(described, "").figures,
            _CalibrationErrors(class_agnostic, "_objectness").figures,
        ]

    def __call__(self, weights_BsPh: np.ndarray) -> Figures:
        """Metrics for each row of weights; a row's counts sum to the number of photos."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: values for metric in self.metrics for name, values in metric(weights_BsPh).items()}

    def point(self) -> dict[str, float | None]:
        """The metrics of the photos themselves."""
        return {name: None if np.isnan(v[0]) else float(v[0]) for name, v in self(np.ones((1, self.photos))).items()}


def resample(headlines: Sequence[Headlines], bootstrap_samples: int, seed: int) -> list[Figures]:
    """Metrics of the bootstrap samples; all ``headlines`` are of the same photos and see the same draws."""
    random, photos = np.random.default_rng(seed), headlines[0].photos
    draws = (np.bincount(random.integers(photos, size=photos), minlength=photos) for _ in range(bootstrap_samples))
    at_once = max(1, CHUNK // max(item.width for item in headlines))
    chunks: list[list[Figures]] = []
    while some := list(islice(draws, at_once)):  # the draws do not depend on the size of a chunk
        weights_BsPh = np.array(some, dtype=np.float64)
        chunks.append([item(weights_BsPh) for item in headlines])
    return [
        {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} for rows in zip(*chunks, strict=True)
    ]


def interval(values_Bs: np.ndarray) -> Interval:
    """The middle 95 % of the defined values; None when no value is defined."""
    defined = values_Bs[~np.isnan(values_Bs)]
    if not defined.size:
        return None
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return [low, high]


def intervals(headlines: Headlines, bootstrap_samples: int, seed: int) -> dict[str, Interval]:
    """Metric → its interval; None with fewer than two photos."""
    point = headlines.point()
    if not bootstrap_samples:
        return {}
    if headlines.photos < 2:
        return dict.fromkeys(point)
    (drawn,) = resample([headlines], bootstrap_samples, seed)
    return {name: None if point[name] is None else interval(drawn[name]) for name in point}


# ---------------------------------------------------------------- the metrics


@dataclass(frozen=True)
class _Right:
    """The true positives at one IoU threshold, sorted by category and confidence.

    Attributes:
        place_Tp: index among the detections of annotated descriptions.
        first_Ca: index of the first true positive of each category; count_Ca: how many it has.
    """

    place_Tp: np.ndarray
    first_Ca: np.ndarray
    count_Ca: np.ndarray


class _Precision:
    """COCO's AP and AP50, evaluated at the true positives, the only places where precision can rise."""

    def __init__(self, matched: Matched, suffix: str) -> None:
        ranking = matched.ranking
        categories = np.arange(len(ranking.categories))
        known = int(np.searchsorted(ranking.category_Dt, len(categories)))  # beyond: never annotated
        self.suffix, self.photo_Dt = suffix, ranking.photo_Dt[:known]
        self.first_Ca = np.searchsorted(ranking.category_Dt[:known], categories)
        by_category = np.argsort(ranking.truth_category_Gt, kind="stable")
        self.truth_photo_Gt = ranking.flat.truth_photo_Gt[by_category]
        self.truth_first_Ca = np.searchsorted(ranking.truth_category_Gt[by_category], categories)
        self.right_U = []
        for match_Dt in matched.match_UDt:
            place_Tp = np.flatnonzero(match_Dt[:known] >= 0).astype(INDEX)
            count_Ca = np.bincount(ranking.category_Dt[place_Tp], minlength=len(categories))
            self.right_U.append(_Right(place_Tp, np.cumsum(count_Ca) - count_Ca, count_Ca))

    def figures(self, weights_BsPh: np.ndarray) -> Figures:
        gt_BsCa = np.add.reduceat(weights_BsPh[:, self.truth_photo_Gt], self.truth_first_Ca, axis=1)
        seen_BsDt = _running(weights_BsPh, self.photo_Dt)
        by_threshold = [self._mean(right, weights_BsPh, seen_BsDt, gt_BsCa) for right in self.right_U]
        return {f"AP{self.suffix}": np.mean(by_threshold, axis=0), f"AP50{self.suffix}": by_threshold[0]}

    def _mean(self, right: _Right, weights_BsPh: np.ndarray, seen_BsDt: np.ndarray, gt_BsCa: np.ndarray) -> np.ndarray:
        """(Bs,) mean over the categories that have ground truth."""

        def of_its_category(values_BsCa: np.ndarray) -> np.ndarray:
            return np.repeat(values_BsCa, right.count_Ca, axis=1)

        found_BsTp = _running(weights_BsPh, self.photo_Dt[right.place_Tp])
        found_BsTp = found_BsTp[:, 1:] - of_its_category(found_BsTp.take(right.first_Ca, axis=1))
        seen_BsTp = seen_BsDt.take(right.place_Tp + 1, axis=1) - of_its_category(seen_BsDt.take(self.first_Ca, axis=1))
        category_Tp = np.repeat(np.arange(len(right.count_Ca)), right.count_Ca)
        best_BsTp, points_BsTp = interpolate(found_BsTp, seen_BsTp, gt_BsCa, category_Tp)
        # A category without ground truth in a bootstrap sample has no recall, so it reaches no recall step.
        mean_Bs: np.ndarray = (best_BsTp * points_BsTp).sum(axis=1) / len(RECALLS) / (gt_BsCa > 0).sum(axis=1)
        return mean_Bs


class _MissRates:
    """Miss rate at each FPPI, with one score threshold for all descriptions."""

    def __init__(self, matched: Matched, suffix: str, fppi: Sequence[float]) -> None:
        ranking = matched.ranking
        order = np.argsort(-ranking.confidence_Dt, kind="stable")
        self.photo_Dt, self.right_Dt = ranking.photo_Dt[order], matched.right_Dt[order]
        self.ends_Th = np.append(0, tie_ends(ranking.confidence_Dt[order]) + 1)
        self.truth_photo_Gt = ranking.flat.truth_photo_Gt
        self.fppi, self.suffix = fppi, suffix
        # Few bootstrap samples need more detections than twice the FPPI asked for lets through; those get all.
        wrong_Th = self.ends_Th - np.append(0, np.cumsum(self.right_Dt))[self.ends_Th]
        most = 2 * max(fppi, default=0) * len(ranking.flat.names)
        self.enough = min(int(np.searchsorted(wrong_Th, most, side="right")) + 1, len(self.ends_Th))

    def figures(self, weights_BsPh: np.ndarray) -> Figures:
        right_BsTh, wrong_BsTh = self._running(weights_BsPh, self.enough)
        least_Bs = wrong_BsTh[:, -1]
        if self.enough < len(self.ends_Th) and (least_Bs <= max(self.fppi, default=0) * weights_BsPh.shape[1]).any():
            right_BsTh, wrong_BsTh = self._running(weights_BsPh, len(self.ends_Th))
        annotated_Bs = weights_BsPh[:, self.truth_photo_Gt].sum(axis=1)
        rows, figures = np.arange(len(weights_BsPh)), {}
        for limit in self.fppi:
            last_Bs = (wrong_BsTh <= limit * weights_BsPh.shape[1] + SLACK).sum(axis=1) - 1
            figures[miss_rate_key(limit, self.suffix)] = 1 - right_BsTh[rows, last_Bs] / annotated_Bs
        return figures

    def _running(self, weights_BsPh: np.ndarray, ends: int) -> tuple[np.ndarray, np.ndarray]:
        """(Bs, ends) true and false positives at each of the first ``ends`` score thresholds."""
        ends_Th = self.ends_Th[:ends]
        photo_Dt, right_Dt = self.photo_Dt[: ends_Th[-1]], self.right_Dt[: ends_Th[-1]]
        all_BsTh = _running(weights_BsPh, photo_Dt).take(ends_Th, axis=1)
        before_Th = np.append(0, np.cumsum(right_Dt))[ends_Th]
        right_BsTh = _running(weights_BsPh, photo_Dt[right_Dt]).take(before_Th, axis=1)
        return right_BsTh, all_BsTh - right_BsTh


class _CaptionAccuracy:
    """Caption accuracy (exact match) on matched boxes, micro and macro average."""

    def __init__(self, class_agnostic: Matched) -> None:
        ranking, flat = class_agnostic.ranking, class_agnostic.ranking.flat
        place_Tp = np.flatnonzero(class_agnostic.right_Dt)
        truth_Tp = class_agnostic.match_UDt[0, place_Tp]
        by_desc = np.argsort(flat.truth_desc_Gt[truth_Tp], kind="stable")
        place_Tp, truth_Tp = place_Tp[by_desc], truth_Tp[by_desc]
        desc_Tp = flat.truth_desc_Gt[truth_Tp]
        self.photo_Tp = flat.truth_photo_Gt[truth_Tp]
        self.right_Tp = desc_Tp == flat.desc_Dt[ranking.prediction_Dt[place_Tp]]
        self.first_Ca = np.flatnonzero(np.append([True] * min(1, len(desc_Tp)), desc_Tp[1:] != desc_Tp[:-1]))

    def figures(self, weights_BsPh: np.ndarray) -> Figures:
        weights_BsTp = weights_BsPh[:, self.photo_Tp]
        total_BsCa = np.add.reduceat(weights_BsTp, self.first_Ca, axis=1)
        right_BsCa = np.add.reduceat(weights_BsTp * self.right_Tp, self.first_Ca, axis=1)
        share_BsCa = np.divide(right_BsCa, total_BsCa, out=np.zeros_like(right_BsCa), where=total_BsCa > 0)
        return {
            "description_accuracy": right_BsCa.sum(axis=1) / total_BsCa.sum(axis=1),
            "description_macro_accuracy": share_BsCa.sum(axis=1) / (total_BsCa > 0).sum(axis=1),
        }


class _CalibrationErrors:
    """ECE with bins of equal width, and Brier score. Both are sums over photos, so one matrix product each."""

    def __init__(self, matched: Matched, suffix: str) -> None:
        ranking, right_Dt = matched.ranking, matched.right_Dt
        photos = len(ranking.flat.names)
        cell_Dt = ranking.photo_Dt * np.int64(BINS) + width_bin(ranking.confidence_Dt)

        def sums(values_Dt: np.ndarray) -> np.ndarray:
            return np.bincount(cell_Dt, weights=values_Dt, minlength=photos * BINS).reshape(photos, BINS)

        self.count_Ph = np.bincount(ranking.photo_Dt, minlength=photos).astype(np.float64)
        self.gap_PhBn = sums(ranking.confidence_Dt - right_Dt)
        self.square_PhBn = sums((ranking.confidence_Dt - right_Dt) ** 2)
        self.suffix = suffix

    def figures(self, weights_BsPh: np.ndarray) -> Figures:
        count_Bs = weights_BsPh @ self.count_Ph
        return {
            f"ECE{self.suffix}": np.abs(weights_BsPh @ self.gap_PhBn).sum(axis=1) / count_Bs,
            f"Brier{self.suffix}": (weights_BsPh @ self.square_PhBn).sum(axis=1) / count_Bs,
        }


def _running(weights_BsPh: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """(Bs, n + 1) cumulative weights of the first 0, 1, … n entries of ``photo``."""
    result = np.zeros((len(weights_BsPh), len(photo) + 1))
    np.cumsum(weights_BsPh.take(photo, axis=1), axis=1, out=result[:, 1:])
    return result


def wilson(hits: int, count: int) -> list[float] | None:
    """Wilson's interval (1927) of a share, at CONFIDENCE; None without any."""
    if not count:
        return None
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return [float(found.low), float(found.high)]
