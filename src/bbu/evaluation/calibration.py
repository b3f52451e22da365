"""Measure and fit score calibration: a score of 0.8 should mean a precision of 0.8.

A detection is right when it takes a free object of its own description at IoU ≥ 0.5. Expected calibration error (ECE)
and temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599). Isotonic
regression: Zadrozny and Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates".

Shapes: Dt detections, Ph photos.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bbu.errors import UserError, shown
from bbu.evaluation.descriptions import ratio
from bbu.evaluation.matching import Matched, flatten, rank
from bbu.evaluation.pairing import pair
from bbu.jsonl import decode_json, write_json
from bbu.records import PredictionRow, Row

CALIBRATION_FILE = "calibration.json"
FORMAT = 1
BINS = 10
TEMPERATURES = (0.05, 20.0)  # search interval
SCORE_MARGIN = 1e-6  # a wrong detection with a score of exactly 1 would make every temperature's loss infinite
KINDS = ("temperature", "isotonic")
FOLDS = 5  # of cross-fitting
FIGURES = ("ECE", "Brier")


# ---------------------------------------------------------------- measuring


def reliability(confidence_Dt: np.ndarray, right_Dt: np.ndarray) -> dict[str, Any]:
    """Gap between confidence and observed precision.

    Returns:
        ECE (equal-width bins), Brier score, count, and the bins: ``equal_width`` (all of them) and ``equal_mass``
        (counts as equal as ties allow). None without detections.
    """
    deciles = np.quantile(confidence_Dt, np.linspace(0, 1, BINS + 1)[1:-1]) if len(confidence_Dt) else np.empty(0)
    # Equal confidences share a bin, so the order of photos has no effect.
    by_mass = _bins(np.searchsorted(np.unique(deciles), confidence_Dt, side="right"), confidence_Dt, right_Dt)
    by_width = _bins(width_bin(confidence_Dt), confidence_Dt, right_Dt)
    for bin_, row in enumerate(by_width):
        row.update(low=bin_ / BINS, high=(bin_ + 1) / BINS)
    return {
        "count": len(confidence_Dt),
        "ECE": _expected_error(by_width),
        "ECE_equal_mass": _expected_error(by_mass),
        "Brier": float(((confidence_Dt - right_Dt) ** 2).mean()) if len(confidence_Dt) else None,
        "equal_width": by_width,
        "equal_mass": [row for row in by_mass if row["count"]],
    }


def width_bin(confidence_Dt: np.ndarray) -> np.ndarray:
    """Bin of each confidence among BINS of equal width; a confidence of 1 falls into the last."""
    return np.minimum((confidence_Dt * BINS).astype(np.int64), BINS - 1)


def _bins(bin_Dt: np.ndarray, confidence_Dt: np.ndarray, right_Dt: np.ndarray) -> list[dict[str, Any]]:
    count, confidence, right = (
        np.bincount(bin_Dt, weights=weights, minlength=BINS).tolist() for weights in (None, confidence_Dt, right_Dt)
    )
    return [
        {"count": int(n), "confidence": ratio(sum_, n), "accuracy": ratio(hits, n)}
        for n, sum_, hits in zip(count, confidence, right, strict=True)
    ]


def _expected_error(bins: Sequence[Mapping[str, Any]]) -> float | None:
    filled = [row for row in bins if row["count"]]
    gaps = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in filled)
    return ratio(gaps, sum(row["count"] for row in filled))


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Calibration:
    """A map from score to precision, stored beside a model as calibration.json.

    Attributes:
        temperature: divides the logit of a score, which keeps the ranking. None for isotonic.
        knots: (score, precision) pairs, both rising, interpolated linearly; empty for temperature.
        split, photos, count: what it was fitted on.
        before: ECE and Brier of that split.
        after: its ``reliability`` by cross-fitting: each fold of the photos is judged by a fit to the other folds, and
            photos of one group are in one fold. Of no detections where that is impossible.
    """

    kind: str
    temperature: float | None
    knots: tuple[tuple[float, float], ...]
    split: str
    photos: int
    count: int
    before: Mapping[str, float | None]
    after: Mapping[str, Any]

    def apply(self, scores: np.ndarray | Sequence[float]) -> np.ndarray:
        """Calibrated scores in [0, 1], in the shape given."""
        return _calibrated(np.asarray(scores, dtype=np.float64), self.temperature, self.knots)

    def summary(self) -> str:
        """One line: the kind of fit, and ECE before and after."""
        what = "isotonic" if self.temperature is None else f"temperature {self.temperature:.3f}"
        before, after = ("undefined" if e is None else f"{e:.3f}" for e in (self.before["ECE"], self.after["ECE"]))
        return f"{what}, {self.count} predictions of {self.photos} photos; ECE {before}, cross-fitted {after}"

    def to_json(self) -> dict[str, Any]:
        parameters: dict[str, Any] = {"temperature": self.temperature}
        if self.kind == "isotonic":
            parameters = {"scores": [knot[0] for knot in self.knots], "shares": [knot[1] for knot in self.knots]}
        return {
            "format": FORMAT,
            "kind": self.kind,
            "parameters": parameters,
            "split": self.split,
            "photos": self.photos,
            "count": self.count,
            **{f"{name}_before": self.before[name] for name in FIGURES},
            **{f"{name}_after": self.after[name] for name in FIGURES},
            "reliability_after": {name: value for name, value in self.after.items() if name not in FIGURES},
        }

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        value = self.to_json()
        write_json(path, value | {"sha256": _digest(value)})

    @classmethod
    def load(cls, path: str | Path) -> Calibration | None:
        """Read a model folder's calibration, or the file itself; None for a folder without one.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = Path(path)
        if path.is_dir():
            path = path / CALIBRATION_FILE
            if not path.is_file():
                return None
        try:
            value = decode_json(path.read_text(encoding="utf-8"), str(path))
            found = cls._parsed(value)
            if value.pop("sha256", None) not in (None, _digest(value)):  # earlier versions wrote none
                raise ValueError("it was damaged or changed (its SHA-256 differs)")
            return found
        except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"{path}: is not a calibration: {why}; fit it again with `bbu calibrate`") from None

    @classmethod
    def _parsed(cls, value: Any) -> Calibration:
        kind, parameters = value["kind"], value["parameters"]
        if value["format"] != FORMAT or kind not in KINDS:
            raise ValueError(f"format {shown(value['format'])}, kind {shown(kind)}")
        temperature = _number(parameters["temperature"]) if kind == "temperature" else None
        if temperature is not None and not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
            raise ValueError("temperature must lie in [{:g}, {:g}], is {:g}".format(*TEMPERATURES, temperature))
        pairs = zip(parameters["scores"], parameters["shares"], strict=True) if kind == "isotonic" else ()
        knots = tuple((_number(score), _number(share)) for score, share in pairs)
        with np.errstate(over="ignore"):
            steps = np.diff(knots, axis=0, prepend=((0, 0),), append=((1, 1),)) if knots else np.array(-1)
        if kind == "isotonic" and not (steps >= 0).all():
            raise ValueError("scores and shares must rise within [0, 1]")
        before, after = ({name: value[f"{name}_{when}"] for name in FIGURES} for when in ("before", "after"))
        after |= _checked_bins(value.get("reliability_after", {}))
        return cls(kind, temperature, knots, value["split"], value["photos"], value["count"], before, after)


def _checked_bins(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The bins of a file; earlier versions wrote none. A ValueError where one is no bin, as in a damaged file."""
    for row in (*found["equal_width"], *found["equal_mass"]) if found else ():
        shares = [row[name] for name in ("confidence", "accuracy") if row["count"]]
        if not (row["count"] >= 0 and all(0 <= share <= 1 for share in shares)):
            raise ValueError(f"{shown(row)} is not a bin")
    return found


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def calibrated_row(calibration: Calibration, row: PredictionRow) -> PredictionRow:
    """The row with calibrated scores; objectness is unchanged."""
    scores = calibration.apply([item.score for item in row.predictions]).tolist()
    items = zip(row.predictions, scores, strict=True)
    return replace(row, predictions=tuple(replace(item, score=score) for item, score in items))


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{shown(value)} is too large") from None


def fit_calibration(
    truth: Iterable[Row],
    predictions: Iterable[PredictionRow],
    *,
    kind: str = "temperature",
    split: str = "",
) -> Calibration:
    """Fit on saved predictions of a split that is used neither for training nor for the final score.

    Raises:
        UserError: an unknown kind, or all predictions are right, or all are wrong.
    """
    if kind not in KINDS:
        raise UserError(f"calibration: {kind!r} is not one of {', '.join(KINDS)}")
    groups: dict[str, str] = {}
    flat = flatten(pair(_noting_groups(truth, groups), predictions).photos)
    described = Matched.at(rank(flat, str, "score"))
    score_Dt, right_Dt = described.ranking.confidence_Dt, described.right_Dt
    if not 0 < right_Dt.sum() < len(right_Dt):
        raise UserError(
            f"calibration: {int(right_Dt.sum())} of {len(right_Dt)} predictions are right; it needs right and wrong "
            "ones; use more photos, or a model that has learned something"
        )
    temperature, knots = _fit(score_Dt, right_Dt, kind)
    before = reliability(score_Dt, right_Dt)
    fold_Ph = _folds([groups.get(name, name) for name in flat.names])
    return Calibration(
        kind=kind,
        temperature=temperature,
        knots=knots,
        split=split,
        photos=len(flat.names),
        count=len(score_Dt),
        before={name: before[name] for name in FIGURES},
        after=_cross_fitted(score_Dt, right_Dt, fold_Ph[described.ranking.photo_Dt], kind),
    )


def _noting_groups(rows: Iterable[Row], groups: dict[str, str]) -> Iterator[Row]:
    """The rows; ``groups`` gets photo → group of those that have one."""
    for row in rows:
        if row.group is not None:
            groups[row.images[0]] = f"group {row.group}"
        yield row


def _folds(owners: Sequence[str]) -> np.ndarray:
    """(Ph,) fold of each photo: owners (groups, or photos by themselves) go to the folds in turn."""
    turns = {owner: turn for turn, owner in enumerate(dict.fromkeys(owners))}
    return np.array([turns[owner] % FOLDS for owner in owners], dtype=np.int64)


def _fit(score_Dt: np.ndarray, right_Dt: np.ndarray, kind: str) -> tuple[float | None, tuple[tuple[float, float], ...]]:
    if kind == "temperature":
        return _fit_temperature(score_Dt, right_Dt), ()
    return None, _fit_isotonic(score_Dt, right_Dt)


def _fit_temperature(score_Dt: np.ndarray, right_Dt: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood; unique, as the loss is convex in 1 / temperature."""
    from scipy.optimize import minimize_scalar

    inside_Dt = np.clip(score_Dt, SCORE_MARGIN, 1 - SCORE_MARGIN)
    signed_Dt = np.log(inside_Dt / (1 - inside_Dt)) * np.where(right_Dt, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed_Dt / math.exp(log_temperature)).mean())

    bounds = [math.log(value) for value in TEMPERATURES]
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def _fit_isotonic(score_Dt: np.ndarray, right_Dt: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The rising step function with the least squared error, as the first and last score of each step."""
    from scipy.optimize import isotonic_regression

    scores, place = np.unique(score_Dt, return_inverse=True)
    counts = np.bincount(place)
    fitted = isotonic_regression(np.bincount(place, weights=right_Dt) / counts, weights=counts)
    shares, blocks = np.clip(fitted.x, 0, 1).tolist(), fitted.blocks.tolist()
    knots: list[tuple[float, float]] = []
    for start, stop in pairwise(blocks):
        knots += [(float(scores[at]), shares[start]) for at in sorted({start, stop - 1})]
    return tuple(knots)


def _calibrated(scores: np.ndarray, temperature: float | None, knots: Sequence[tuple[float, float]]) -> np.ndarray:
    if temperature is None:
        return np.interp(scores, [knot[0] for knot in knots], [knot[1] for knot in knots])
    # sigmoid(logit(p) / T), written without the logit, which is infinite at 0 and 1
    power, rest = scores ** (1 / temperature), (1 - scores) ** (1 / temperature)
    calibrated: np.ndarray = power / (power + rest)
    return calibrated


def _cross_fitted(score_Dt: np.ndarray, right_Dt: np.ndarray, fold_Dt: np.ndarray, kind: str) -> dict[str, Any]:
    """Reliability with each fold calibrated by the others; of no detections if they cannot be fitted.

    All folds share the bins: a fold's own bins would be so empty that chance alone made large gaps.
    """
    after_Dt = np.empty_like(score_Dt)
    for fold in np.unique(fold_Dt):
        judged_Dt = fold_Dt == fold
        fitted_Dt = ~judged_Dt
        if not 0 < right_Dt[fitted_Dt].sum() < fitted_Dt.sum():
            return reliability(score_Dt[:0], right_Dt[:0])
        after_Dt[judged_Dt] = _calibrated(score_Dt[judged_Dt], *_fit(score_Dt[fitted_Dt], right_Dt[fitted_Dt], kind))
    return reliability(after_Dt, right_Dt)
