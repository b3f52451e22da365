"""Compare two sets of predictions of the same photos: what B does better or worse than A, and on which photos.

Differences are paired: both sets see the same bootstrap samples, so photos that are hard for both cancel out.

Shapes: Gt ground-truth objects, Dt detections, U IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bbu.evaluation.bootstrap import Headlines, interval, resample
from bbu.evaluation.coco import IOU_THRESHOLDS
from bbu.evaluation.matching import FlatDetections, Matched, any_object, flatten, rank
from bbu.evaluation.metrics import FPPI, check_between
from bbu.evaluation.pairing import pair_each
from bbu.evaluation.report import aligned, clip, number
from bbu.records import PredictionRow, Row

CHANGES = ("found", "lost", "mended", "broken")
SHOWN_PHOTOS = 10  # in the printed table; the file lists all


def compare(
    truth: Iterable[Row],
    predictions_a: Iterable[PredictionRow],
    predictions_b: Iterable[PredictionRow],
    *,
    score_threshold: float = 0.3,
    bootstrap_samples: int = 1000,
) -> dict[str, Any]:
    """Compare predictions B with predictions A.

    Returns:
        ``figures``: metric → a, b, difference (b - a) and its 95 % interval (None with fewer than two photos or
        where a metric is undefined); ``photos``: photos where B found or lost an object, or mended or broke a caption,
        counting predictions at or above the threshold; worst first. Independent of the order of rows.

    Raises:
        UserError: as ``evaluate``.
    """
    check_between("score_threshold", score_threshold, 0, 1)
    check_between("bootstrap_samples", bootstrap_samples, 0, float("inf"))
    flats = [flatten(paired.photos) for paired in pair_each(truth, (predictions_a, predictions_b))]
    changes = _photo_changes(flats[0], *(_states(flat, score_threshold) for flat in flats))
    return {
        "photos_compared": len(flats[0].names),
        "score_threshold": score_threshold,
        "bootstrap_samples": bootstrap_samples,
        "figures": _differences([_headlines(flat) for flat in flats], bootstrap_samples),
        **{name: sum(row[name] for row in changes) for name in CHANGES},
        "photos": changes,
    }


def _headlines(flat: FlatDetections) -> Headlines:
    described = Matched.at(rank(flat, str, "score"), IOU_THRESHOLDS)
    return Headlines(described, Matched.at(rank(flat, any_object, "objectness"), IOU_THRESHOLDS), FPPI)


def _differences(headlines: Sequence[Headlines], bootstrap_samples: int) -> dict[str, dict[str, Any]]:
    before, after = (item.point() for item in headlines)
    drawn = resample(headlines, bootstrap_samples, seed=0) if bootstrap_samples and headlines[0].photos > 1 else None
    figures: dict[str, dict[str, Any]] = {}
    for name, a in before.items():
        row = figures[name] = {"a": a, "b": after[name], "difference": None, "interval": None}
        if a is not None and (b := after[name]) is not None:
            row["difference"] = b - a
            row["interval"] = interval(drawn[1][name] - drawn[0][name]) if drawn else None
    return figures


def _states(flat: FlatDetections, score_threshold: float) -> np.ndarray:
    """(Gt,) 0 missed, 1 found with a wrong caption, 2 found with the right one."""
    shown = Matched.at(rank(flat, any_object, "score"))
    places = np.flatnonzero(shown.right_Dt & (shown.ranking.confidence_Dt >= score_threshold))
    truth = shown.match_UDt[0, places]
    states = np.zeros(len(flat.truth_desc_Gt), dtype=np.int64)
    states[truth] = 1 + (flat.desc_Dt[shown.ranking.prediction_Dt[places]] == flat.truth_desc_Gt[truth])
    return states


def _photo_changes(flat: FlatDetections, before_Gt: np.ndarray, after_Gt: np.ndarray) -> list[dict[str, Any]]:
    """Photos with a change, ordered by lost + broken - found - mended, the highest first."""
    kinds = {
        "found": (before_Gt == 0) & (after_Gt > 0),
        "lost": (before_Gt > 0) & (after_Gt == 0),
        "mended": (before_Gt == 1) & (after_Gt == 2),
        "broken": (before_Gt == 2) & (after_Gt == 1),
    }
    photos = len(flat.names)
    tallies = (np.bincount(flat.truth_photo_Gt[hit_Gt], minlength=photos).tolist() for hit_Gt in kinds.values())
    by_photo = zip(flat.names, *tallies, strict=True)
    rows = [{"photo": name, **dict(zip(kinds, counts, strict=True))} for name, *counts in by_photo if any(counts)]
    return sorted(rows, key=_worst_first)


def _worst_first(row: Mapping[str, Any]) -> tuple[int, int, str]:
    better = row["found"] + row["mended"] - row["lost"] - row["broken"]
    return better, -sum(row[kind] for kind in CHANGES), row["photo"]


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Plain text: each metric of A and B with the difference and its interval, then the photos that lost most."""
    rows = [["", "A", "B", "B - A", "95 % interval"]]
    for name, row in comparison["figures"].items():
        span = "-" if row["interval"] is None else "{:+.3f} to {:+.3f}".format(*row["interval"])
        difference = "-" if row["difference"] is None else f"{row['difference']:+.3f}"
        rows.append([name, number(row["a"]), number(row["b"]), difference, span])
    totals = ", ".join(f"{comparison[kind]} {kind}" for kind in CHANGES)
    lines = [*aligned(rows), "", f"objects at score {comparison['score_threshold']:g}: {totals}"]
    changed = comparison["photos"]
    if changed:
        shown = [[clip(row["photo"]), *(str(row[kind]) for kind in CHANGES)] for row in changed[:SHOWN_PHOTOS]]
        lines += ["", *aligned([["photo, worst first", *CHANGES], *shown])]
        if len(changed) > SHOWN_PHOTOS:
            lines.append(f"and {len(changed) - SHOWN_PHOTOS} more photos that changed")
    return "\n".join(lines)
