"""Choose a score threshold per description that reaches a precision, a recall or an FPPI.

Rule:
  - A description with at least ``minimum`` objects has a threshold of its own: for a precision or an FPPI the lowest
    that keeps to the goal, for a recall the highest that reaches it.
  - All other descriptions, also those without ground truth, share the threshold of the pool: the detections of these
    descriptions, or all detections if the pool has fewer than ``minimum`` objects. It is also the ``default``.
  - An FPPI is shared out: each description gets goal / descriptions of it, the pool one such share for each of its
    descriptions, at least one; together they keep to the goal. The pool then never widens to all detections.
  - ``reached`` is false where no threshold reaches the goal. Then a recall gets the description's lowest score, an
    FPPI its highest, and a precision the pool's threshold (the pool itself: the one with the best precision).

Precision and recall are measured on the photos that chose the thresholds: use photos that training has not seen, and
expect a little less on new ones.

Shapes: Dt detections, Gt ground-truth objects, Ca categories, Th score thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bbu.errors import UserError
from bbu.evaluation.descriptions import ratio
from bbu.evaluation.inspection import SLACK, Sweep, sweep, sweep_of_each
from bbu.evaluation.matching import Matched, flatten, rank
from bbu.evaluation.metrics import MAX_FPPI, check_between
from bbu.evaluation.pairing import pair
from bbu.evaluation.report import aligned, clip, number
from bbu.records import PredictionRow, Row

MINIMUM = 10  # objects for a threshold of its own
FORMAT = 1
GOALS = ("precision", "recall", "fppi")


def operating_points(
    truth: Iterable[Row],
    predictions: Iterable[PredictionRow],
    goal: str,
    value: float,
    *,
    minimum: int = MINIMUM,
) -> dict[str, Any]:
    """Choose a score threshold for every annotated description.

    Args:
        value: the precision or recall wanted, in [0, 1], or the FPPI allowed, 0 or more.
        minimum: objects that a description needs for a threshold of its own.

    Returns:
        ``goal``, ``minimum``, ``photos``, ``points`` (description → threshold, whether it is the pool's, whether
        the description reaches the goal there, objects, detections that pass, precision, recall and FPPI; None where
        undefined) and ``default``, the same for the pool.

    Raises:
        UserError: an unknown goal or one out of range, or no annotation or prediction to choose on.
    """
    if goal not in GOALS:
        raise UserError(f"thresholds: {goal!r} is not one of {', '.join(GOALS)}")
    check_between(goal, value, 0, MAX_FPPI if goal == "fppi" else 1)
    check_between("minimum", minimum, 1, float("inf"))
    described = Matched.at(rank(flatten(pair(truth, predictions).photos), str, "score"))
    curves, photos = sweep_of_each(described), len(described.ranking.flat.names)
    if not curves or not len(described.ranking.prediction_Dt):
        raise UserError("thresholds: nothing is annotated or nothing is predicted, so there is nothing to choose on")
    rare = {desc for desc, curve in curves.items() if curve.annotated < minimum}
    own_goal = pool_goal = value
    if goal == "fppi":
        own_goal = value * photos / max(len(curves), len(curves) - len(rare) + 1)
        pool_goal = own_goal * max(1, len(rare))
    pool = _pool(described, rare, widen=goal != "fppi", minimum=minimum)
    fallback = _choose(pool, goal, pool_goal)
    default = _point(pool, _most_precise(pool) if fallback is None else fallback, True, goal, pool_goal, photos)
    points = {}
    for desc, curve in sorted(curves.items(), key=lambda item: (-item[1].annotated, item[0])):
        own = None if desc in rare else _choose(curve, goal, own_goal)
        limit = pool_goal if desc in rare else own_goal
        points[desc] = _point(curve, default["threshold"] if own is None else own, own is None, goal, limit, photos)
    return {
        "format": FORMAT,
        "goal": {goal: value},
        "minimum": minimum,
        "photos": photos,
        "points": points,
        "default": default,
    }


def _pool(described: Matched, rare: set[str], widen: bool, minimum: int) -> Sweep:
    """The sweep of descriptions without a threshold of their own; of all descriptions if those have too few objects."""
    ranking = described.ranking
    known = len(ranking.categories)
    pooled_Ca = np.array([name in rare for name in ranking.categories] + [True])  # last: no ground truth
    inside_Dt = pooled_Ca[np.minimum(ranking.category_Dt, known)]
    annotated = int(ranking.truth_counts()[pooled_Ca[:known]].sum())
    if (widen and annotated < minimum) or not inside_Dt.any():
        inside_Dt, annotated = np.ones_like(inside_Dt), len(ranking.truth_category_Gt)
    return sweep(ranking.confidence_Dt[inside_Dt], described.right_Dt[inside_Dt], annotated)


def _choose(curve: Sweep, goal: str, value: float) -> float | None:
    """The threshold for a goal, or the nearest one; None where no threshold reaches a precision."""
    if not len(curve.thresholds_Th):
        return None
    index = {"precision": curve.at_precision, "recall": curve.at_recall, "fppi": curve.at_false_positives}[goal](value)
    if index is None and goal == "precision":
        return None
    nearest = -1 if goal == "recall" else 0
    return float(curve.thresholds_Th[nearest if index is None else index])


def _most_precise(curve: Sweep) -> float:
    """The lowest threshold with the highest precision."""
    precision_Th = curve.right_Th / (curve.right_Th + curve.wrong_Th)
    return float(curve.thresholds_Th[np.flatnonzero(precision_Th >= precision_Th.max() - SLACK)[-1]])


def _point(curve: Sweep, threshold: float, pooled: bool, goal: str, value: float, photos: int) -> dict[str, Any]:
    passed = int(np.count_nonzero(curve.thresholds_Th >= threshold))
    right, wrong = (int(counts_Th[passed - 1]) if passed else 0 for counts_Th in (curve.right_Th, curve.wrong_Th))
    precision, recall = ratio(right, right + wrong), ratio(right, curve.annotated)
    reached = {
        "precision": precision is not None and precision >= value - SLACK,
        "recall": recall is not None and recall >= value - SLACK,
        "fppi": wrong <= value + SLACK,
    }
    return {
        "threshold": threshold,
        "pooled": pooled,
        "reached": reached[goal],
        "truth": curve.annotated,
        "predicted": right + wrong,
        "precision": precision,
        "recall": recall,
        "fppi": wrong / photos,
    }


def operating_table(points: Mapping[str, Any]) -> str:
    """Plain text: a line per description, most frequent first, and one for the pool."""
    columns = ("threshold", "precision", "recall", "fppi", "truth")
    rows = [["description", *columns, "note"]]
    for desc, row in [*points["points"].items(), ("(all others)", points["default"])]:
        notes = ("pooled", row["pooled"]), ("missed goal", not row["reached"])
        note = " ".join(text for text, holds in notes if holds)
        rows.append([clip(desc), *(number(row[name]) for name in columns), note])
    return "\n".join(aligned(rows))
