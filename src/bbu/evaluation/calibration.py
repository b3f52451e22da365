"""Does a score of 0.8 mean 8 right of 10, and how to make it so.

A prediction is right when it takes a free annotated box of its own description at IoU ≥ 0.5. Expected calibration
error and temperature: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599). Isotonic
regression: Zadrozny and Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bbu.errors import UserError
from bbu.evaluation.descriptions import ratio
from bbu.evaluation.matching import Matched, collect, rank
from bbu.evaluation.pairing import pair
from bbu.jsonl import decode_json, write_json
from bbu.records import PredictionRow, Row

CALIBRATION_FILE = "calibration.json"
FORMAT = 1
BINS = 10
TEMPERATURES = (0.05, 20.0)  # searched between; at an end the scores say next to nothing
SCORE_MARGIN = 1e-6  # a wrong score of exactly 1 would forbid every temperature
KINDS = ("temperature", "isotonic")


# ---------------------------------------------------------------- measuring


def reliability(confidence_D: np.ndarray, right_D: np.ndarray) -> dict[str, Any]:
    """How far confidences are from the share that is right.

    Returns:
        ECE (equal-width bins), Brier score, count, and the bins: ``equal_width`` (all of them) and ``equal_mass``
        (as near to equal counts as ties allow). None where there is no prediction.
    """
    deciles = np.quantile(confidence_D, np.linspace(0, 1, BINS + 1)[1:-1]) if len(confidence_D) else np.empty(0)
    # Equal confidences share a bin, so that the order of photos says nothing.
    by_mass = _bins(np.searchsorted(np.unique(deciles), confidence_D, side="right"), confidence_D, right_D)
    by_width = _bins(width_bin(confidence_D), confidence_D, right_D)
    for bin_, row in enumerate(by_width):
        row.update(low=bin_ / BINS, high=(bin_ + 1) / BINS)
    return {
        "count": len(confidence_D),
        "ECE": _expected_error(by_width),
        "ECE_equal_mass": _expected_error(by_mass),
        "Brier": float(((confidence_D - right_D) ** 2).mean()) if len(confidence_D) else None,
        "equal_width": by_width,
        "equal_mass": [row for row in by_mass if row["count"]],
    }


def width_bin(confidence_D: np.ndarray) -> np.ndarray:
    """Bin of each confidence among BINS of equal width; 1 belongs to the last."""
    return np.minimum((confidence_D * BINS).astype(np.int64), BINS - 1)


def _bins(bin_D: np.ndarray, confidence_D: np.ndarray, right_D: np.ndarray) -> list[dict[str, Any]]:
    count, confidence, right = (
        np.bincount(bin_D, weights=weights, minlength=BINS).tolist() for weights in (None, confidence_D, right_D)
    )
    return [
        {"count": int(n), "confidence": ratio(sum_, n), "accuracy": ratio(hits, n)}
        for n, sum_, hits in zip(count, confidence, right, strict=True)
    ]


def _expected_error(bins: Sequence[Mapping[str, Any]]) -> float | None:
    filled = [row for row in bins if row["count"]]
    gaps = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in filled)
    return ratio(gaps, sum(row["count"] for row in filled))


# ---------------------------------------------------------------- mending


@dataclass(frozen=True)
class Calibration:
    """A map from scores to shares that are right, kept beside a model as calibration.json.

    Attributes:
        temperature: divides the logit of a score; ranking stays as it is. None for isotonic.
        knots: (score, share) pairs, both rising, read linearly between; none for temperature.
        split, photos, count: what it was fitted on.
        before, after: ECE and Brier of that split; ``after`` by two-fold cross-fitting over photos, so that no
            photo judges what it has taught. None where a fold has nothing right or nothing wrong.
    """

    kind: str
    temperature: float | None
    knots: tuple[tuple[float, float], ...]
    split: str
    photos: int
    count: int
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]

    def apply(self, scores: np.ndarray | Sequence[float]) -> np.ndarray:
        """Calibrated scores in [0, 1], in the shape given."""
        return _mended(np.asarray(scores, dtype=np.float64), self.temperature, self.knots)

    def summary(self) -> str:
        """One line: what was fitted and what it brought."""
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
            **{f"{name}_before": value for name, value in self.before.items()},
            **{f"{name}_after": value for name, value in self.after.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Calibration | None:
        """The calibration in a model folder, or in the file itself; None for a folder without one.

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
            return cls._parsed(value)
        except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"{path}: is no calibration: {why}; fit it again with `bbu calibrate`") from None

    @classmethod
    def _parsed(cls, value: Any) -> Calibration:
        kind, parameters = value["kind"], value["parameters"]
        if value["format"] != FORMAT or kind not in KINDS:
            raise ValueError(f"format {value['format']}, kind {kind!r}")
        temperature = float(parameters["temperature"]) if kind == "temperature" else None
        if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be above 0, is {temperature}")
        pairs = zip(parameters["scores"], parameters["shares"], strict=True) if kind == "isotonic" else ()
        knots = tuple((float(score), float(share)) for score, share in pairs)
        flat = np.array(knots).reshape(-1, 2)
        if kind == "isotonic" and not (len(knots) and (np.diff(flat, axis=0) >= 0).all() and _within_unit(flat)):
            raise ValueError("scores and shares must rise within [0, 1]")
        before, after = ({name: value[f"{name}_{when}"] for name in ("ECE", "Brier")} for when in ("before", "after"))
        return cls(kind, temperature, knots, value["split"], value["photos"], value["count"], before, after)


def _within_unit(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def calibrated_row(calibration: Calibration, row: PredictionRow) -> PredictionRow:
    """The row with calibrated scores; objectness stays."""
    scores = calibration.apply([item.score for item in row.predictions]).tolist()
    items = zip(row.predictions, scores, strict=True)
    return replace(row, predictions=tuple(replace(item, score=score) for item, score in items))


def fit_calibration(
    truth: Iterable[Row],
    predictions: Iterable[PredictionRow],
    *,
    kind: str = "temperature",
    split: str = "",
    max_detections: int = 100,
) -> Calibration:
    """Fit on saved predictions, best of a split that was neither trained nor is scored on.

    Raises:
        UserError: an unknown kind; or no prediction is right, or none is wrong: nothing can be learned from that.
    """
    if kind not in KINDS:
        raise UserError(f"calibration: {kind!r} is not one of {', '.join(KINDS)}")
    album = collect(pair(truth, predictions).photos)
    described = Matched.at(rank(album, str, "scores_M", max_detections))
    score_D, right_D = described.ranking.confidence_D, described.right_D
    if not 0 < right_D.sum() < len(right_D):
        raise UserError(
            f"calibration: {int(right_D.sum())} of {len(right_D)} predictions are right; it needs right and wrong "
            "ones, so use a model that has learned something, on more photos"
        )
    temperature, knots = _fit(score_D, right_D, kind)
    before = reliability(score_D, right_D)
    after = _cross_fitted(score_D, right_D, described.ranking.photo_D % 2 == 0, kind)
    return Calibration(
        kind=kind,
        temperature=temperature,
        knots=knots,
        split=split,
        photos=len(album.names),
        count=len(score_D),
        before={name: before[name] for name in ("ECE", "Brier")},
        after={name: None if after is None else after[name] for name in ("ECE", "Brier")},
    )


def _fit(score_D: np.ndarray, right_D: np.ndarray, kind: str) -> tuple[float | None, tuple[tuple[float, float], ...]]:
    if kind == "temperature":
        return _fit_temperature(score_D, right_D), ()
    return None, _fit_isotonic(score_D, right_D)


def _fit_temperature(score_D: np.ndarray, right_D: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood; convex in 1 / temperature, so there is one."""
    from scipy.optimize import minimize_scalar

    inside_D = np.clip(score_D, SCORE_MARGIN, 1 - SCORE_MARGIN)
    signed_D = np.log(inside_D / (1 - inside_D)) * np.where(right_D, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed_D / math.exp(log_temperature)).mean())

    bounds = [math.log(value) for value in TEMPERATURES]
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def _fit_isotonic(score_D: np.ndarray, right_D: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The rising steps with the least squared error, as the first and last score of each."""
    from scipy.optimize import isotonic_regression

    scores, place = np.unique(score_D, return_inverse=True)
    counts = np.bincount(place)
    fitted = isotonic_regression(np.bincount(place, weights=right_D) / counts, weights=counts)
    shares, blocks = np.clip(fitted.x, 0, 1).tolist(), fitted.blocks.tolist()
    knots: list[tuple[float, float]] = []
    for start, stop in pairwise(blocks):
        knots += [(float(scores[at]), shares[start]) for at in sorted({start, stop - 1})]
    return tuple(knots)


def _mended(scores: np.ndarray, temperature: float | None, knots: Sequence[tuple[float, float]]) -> np.ndarray:
    if temperature is None:
        return np.interp(scores, [knot[0] for knot in knots], [knot[1] for knot in knots])
    # sigmoid(logit(p) / T), without a logit that is infinite at 0 and 1.
    power, rest = scores ** (1 / temperature), (1 - scores) ** (1 / temperature)
    mended: np.ndarray = power / (power + rest)
    return mended


def _cross_fitted(score_D: np.ndarray, right_D: np.ndarray, first_D: np.ndarray, kind: str) -> dict[str, Any] | None:
    """Reliability where each half of the photos is calibrated by the other; None if one half cannot teach."""
    after_D = np.empty_like(score_D)
    for taught_D in (first_D, ~first_D):
        teaching_D = ~taught_D
        if not 0 < right_D[teaching_D].sum() < teaching_D.sum():
            return None
        after_D[taught_D] = _mended(score_D[taught_D], *_fit(score_D[teaching_D], right_D[teaching_D], kind))
    return reliability(after_D, right_D)
