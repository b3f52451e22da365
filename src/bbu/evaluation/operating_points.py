"""Which score to ask for, description by description, to reach a precision, a recall or a number of false alarms.

Rule:
  - A description with at least ``minimum`` annotated boxes has a threshold of its own: for a precision, or for false
    alarms, the lowest that keeps to the goal; for a recall, the highest that reaches it.
  - All other descriptions, and words that no annotation has, share the threshold of the pool: of these predictions
    together, or, if fewer than ``minimum`` annotated boxes are among them, of all predictions of the set. It is also
    the ``default``.
  - False alarms are shared out: each description may make goal / descriptions of them a photo, the pool as many
    shares as it has descriptions, or one; so all together keep to the goal. The pool is never widened then.
  - ``reached`` is false where no threshold does. Then a recall is given the description's lowest score, alarms its
    highest, and a precision the pool's threshold (the pool itself: the one with the best precision).

Precision and recall are those of the set the thresholds were chosen on: use one that training has not seen, and
expect a little less on new photos.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bbu.errors import UserError
from bbu.evaluation.descriptions import ratio
from bbu.evaluation.inspection import SLACK, Sweep, sweep, sweep_of_each
from bbu.evaluation.matching import Matched, collect, rank
from bbu.evaluation.metrics import MOST_ALARMS, check_between
from bbu.evaluation.pairing import pair
from bbu.evaluation.report import aligned, clip, number, printable
from bbu.records import PredictionRow, Row

MINIMUM = 10  # annotated boxes for a threshold of its own
FORMAT = 1
GOALS = ("precision", "recall", "alarms")


def operating_points(
    truth: Iterable[Row],
    predictions: Iterable[PredictionRow],
    goal: str,
    value: float,
    *,
    minimum: int = MINIMUM,
    max_detections: int = 100,
) -> dict[str, Any]:
    """Choose a threshold for every annotated description.

    Args:
        value: the precision or recall wanted, in [0, 1], or false alarms a photo, 0 or more.
        minimum: annotated boxes that a description needs for a threshold of its own.

    Returns:
        ``goal``, ``minimum``, ``photos``, ``points`` (description → threshold, whether it is the pool's, whether
        the description reaches the goal there, annotated boxes, predictions let through, precision, recall and
        false alarms a photo; None where undefined) and ``default``, the same for the pool.

    Raises:
        UserError: an unknown goal or one out of range, or nothing annotated or predicted to choose on.
    """
    if goal not in GOALS:
        raise UserError(f"thresholds: {goal!r} is not one of {', '.join(GOALS)}")
    check_between(goal, value, 0, MOST_ALARMS if goal == "alarms" else 1)
    check_between("minimum", minimum, 1, float("inf"))
    described = Matched.at(rank(collect(pair(truth, predictions).photos), str, "scores_M", max_detections))
    curves, photos = sweep_of_each(described), len(described.ranking.album.names)
    if not curves or not len(described.ranking.prediction_D):
        raise UserError("thresholds: nothing is annotated or nothing is predicted, so there is nothing to choose on")
    rare = {desc for desc, curve in curves.items() if curve.annotated < minimum}
    own_goal = pool_goal = value
    if goal == "alarms":
        own_goal = value * photos / max(len(curves), len(curves) - len(rare) + 1)
        pool_goal = own_goal * max(1, len(rare))
    pool = _pool(described, rare, widen=goal != "alarms", minimum=minimum)
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
    """The predictions without a threshold of their own, or all where these hold too few annotated boxes."""
    ranking = described.ranking
    known = len(ranking.categories)
    pooled_K = np.array([name in rare for name in ranking.categories] + [True])  # last: words nothing has
    inside_D = pooled_K[np.minimum(ranking.category_D, known)]
    annotated = int(ranking.truth_counts()[pooled_K[:known]].sum())
    if (widen and annotated < minimum) or not inside_D.any():
        inside_D, annotated = np.ones_like(inside_D), len(ranking.truth_category_G)
    return sweep(ranking.confidence_D[inside_D], described.right_D[inside_D], annotated)


def _choose(curve: Sweep, goal: str, value: float) -> float | None:
    """The threshold for a goal, or the nearest to it; None where no threshold reaches a precision."""
    if not len(curve.thresholds_S):
        return None
    index = {"precision": curve.at_precision, "recall": curve.at_recall, "alarms": curve.at_alarms}[goal](value)
    if index is None and goal == "precision":
        return None
    nearest = -1 if goal == "recall" else 0
    return float(curve.thresholds_S[nearest if index is None else index])


def _most_precise(curve: Sweep) -> float:
    """The lowest threshold with the best precision there is."""
    precision_S = curve.right_S / (curve.right_S + curve.wrong_S)
    return float(curve.thresholds_S[np.flatnonzero(precision_S >= precision_S.max() - SLACK)[-1]])


def _point(curve: Sweep, threshold: float, pooled: bool, goal: str, value: float, photos: int) -> dict[str, Any]:
    passed = int(np.count_nonzero(curve.thresholds_S >= threshold))
    right, wrong = (int(counts_S[passed - 1]) if passed else 0 for counts_S in (curve.right_S, curve.wrong_S))
    precision, recall = ratio(right, right + wrong), ratio(right, curve.annotated)
    reached = {
        "precision": precision is not None and precision >= value - SLACK,
        "recall": recall is not None and recall >= value - SLACK,
        "alarms": wrong <= value + SLACK,
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
    """Plain text: a line for every description, most frequent first, and one for the pool."""
    columns = ("threshold", "precision", "recall", "fppi", "truth")
    rows = [["description", *columns, "note"]]
    for desc, row in [*points["points"].items(), ("(all others)", points["default"])]:
        note = " ".join(
            word for word, holds in (("pooled", row["pooled"]), ("missed goal", not row["reached"])) if holds
        )
        rows.append([clip(printable(desc)), *(number(row[name]) for name in columns), note])
    return "\n".join(aligned(rows))
