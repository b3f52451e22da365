"""``evaluate``: every number that describes a set of saved predictions, in one JSON-able dictionary.

COCO's twelve figures, AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR100 AR_small AR_medium AR_large,
  by description (a box counts when its words are exactly right; ranked by ``score``),
  class-agnostic (``AP_agnostic`` …; words play no part; ranked by ``objectness``), and
  by the first levels of the path (``AP_level1`` …; ranked by ``score``)
Words at matched boxes, and alarms at the score threshold: see ``descriptions.py``.
Recall at a precision, miss rate at so many alarms, duplicates, confusions: ``inspection.py``.
Calibration: ``calibration.py``. Intervals: ``bootstrap.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from bbu.errors import UserError
from bbu.evaluation.bootstrap import Headlines, intervals
from bbu.evaluation.calibration import reliability
from bbu.evaluation.coco import AREAS, IOU_THRESHOLDS, RECALL_LIMITS, CocoTables, tables_of
from bbu.evaluation.descriptions import (
    alarm_scores,
    description_scores,
    description_table,
    level_count,
    most_frequent,
    pairs_of,
    prefix,
)
from bbu.evaluation.inspection import confusions, duplicate_scores, inspection_table
from bbu.evaluation.matching import MATCH_IOU, Matched, Ranking, collect, part, rank
from bbu.evaluation.pairing import Pairing, pair
from bbu.records import PredictionRow, Row

ALARMS = (1.0, 0.1)  # false alarms a photo
MOST_ALARMS = 1e6
INSPECTION_PREFIXES = ("miss_rate", "ECE", "Brier")


def evaluate(
    truth: Iterable[Row],
    predictions: Iterable[PredictionRow],
    *,
    score_threshold: float = 0.3,
    train_descriptions: Mapping[str, int] | None = None,
    max_detections: int = 100,
    precision: float = 0.9,
    alarms: Sequence[float] = ALARMS,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare saved predictions with annotated rows.

    Args:
        truth: annotated photos, paired with predictions by their first image path. Polygons and lines count as
            their enclosing boxes; sides under 2 pixels are thickened on both sides of the comparison.
        predictions: read once, so that an iterator over a large file will do.
        score_threshold: ``score`` from which a prediction counts as said aloud (false alarms, vocabulary,
            duplicates); average precision and description accuracy do not depend on it.
        train_descriptions: description → count in the training set, for the majority baseline and for predicted
            words that training never showed. Without it the baseline comes from ``truth``.
        max_detections: best predictions kept a photo (and description, where those count).
        precision: at which the recall of each description is wanted.
        alarms: false alarms a photo at which the miss rates are wanted.
        bootstrap_samples: of the bootstrap intervals, drawn with ``seed``; 0 leaves intervals out.

    Returns:
        JSON-able metrics, fractions in [0, 1]; None where a value is undefined, such as AP without annotated
        boxes. Independent of the order of rows, objects and predictions.

    Raises:
        UserError: a photo listed twice, a prediction for an unknown photo or at another image size, or an
            argument out of range.
    """
    _check_arguments(score_threshold, max_detections, precision, alarms, bootstrap_samples)
    paired = pair(truth, predictions)
    album = collect(paired.photos)
    described = rank(album, str, "scores_M", max_detections)
    bare = rank(album, part, "objectness_M", max_detections)
    coco, ap50 = _coco_figures(described, bare, max_detections)
    by_words, by_box = Matched.at(described, IOU_THRESHOLDS), Matched.at(bare, IOU_THRESHOLDS)
    shown = Matched.at(rank(album, part, "scores_M", max_detections))
    headlines = Headlines(by_words, by_box, alarms)
    pairs = pairs_of(by_box)
    counts = Counter(desc for desc, _ in pairs) if train_descriptions is None else train_descriptions
    inspected = inspection_table(by_words, precision, alarms)
    calibration = {
        name: reliability(matched.ranking.confidence_D, matched.right_D)
        for name, matched in (("score", by_words), ("objectness", by_box))
    }
    return {
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "match_iou": MATCH_IOU,
        "target_precision": precision,
        "fppi": list(alarms),
        **_photo_counts(paired),
        **coco,
        **description_scores(pairs, most_frequent(counts)),
        **alarm_scores(by_words, score_threshold, train_descriptions),
        **duplicate_scores(shown, score_threshold),
        **{name: value for name, value in headlines.point().items() if name.startswith(INSPECTION_PREFIXES)},
        "intervals": intervals(headlines, bootstrap_samples, seed),
        "bootstrap_samples": bootstrap_samples,
        "calibration": calibration,
        "per_description": {desc: {**row, **inspected[desc]} for desc, row in description_table(pairs, ap50).items()},
        "confusions": confusions(pairs),
    }


def _coco_figures(
    described: Ranking, bare: Ranking, max_detections: int
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """COCO's figures under every labelling, and AP50 of each description; one labelling's tables at a time."""
    tables = tables_of(described, max_detections)
    figures, ap50 = _coco_metrics(tables, ""), tables.precision_of_each(0.5)
    figures |= _coco_metrics(tables_of(bare, max_detections), "_agnostic")
    levels = level_count(described.categories)
    for level in range(1, levels + 1) if levels > 1 else ():
        by_level = rank(described.album, partial(prefix, level=level), "scores_M", max_detections)
        figures |= _coco_metrics(tables_of(by_level, max_detections), f"_level{level}")
    return figures, ap50


def check_between(name: str, value: float, least: float, most: float) -> None:
    """Refuse a value outside [least, most], NaN too.

    Raises:
        UserError: the name, the range and the value.
    """
    if not least <= value <= most:
        where = f"lie in [{least:g}, {most:g}]" if most < math.inf else f"be at least {least:g}"
        raise UserError(f"{name} must {where}, is {value}")


def _check_arguments(
    score_threshold: float, max_detections: int, precision: float, alarms: Sequence[float], bootstrap_samples: int
) -> None:
    check_between("score_threshold", score_threshold, 0, 1)
    check_between("max_detections", max_detections, 1, math.inf)
    check_between("precision", precision, 0, 1)
    check_between("bootstrap_samples", bootstrap_samples, 0, math.inf)
    for limit in alarms:
        check_between("alarms", limit, 0, MOST_ALARMS)


def _photo_counts(paired: Pairing) -> dict[str, int]:
    return {
        "photos": len(paired.photos),
        "photos_without_prediction": paired.without_prediction,
        "photos_failed": paired.failed,
        "truth_boxes": sum(len(photo.truth_descs) for photo in paired.photos),
        "predicted_boxes": sum(len(photo.descs) for photo in paired.photos),
    }


def _coco_metrics(tables: CocoTables, suffix: str) -> dict[str, float | None]:
    """COCO's twelve figures."""
    metrics = {
        f"AP{suffix}": tables.average_precision(),
        f"AP50{suffix}": tables.average_precision(0.5),
        f"AP75{suffix}": tables.average_precision(0.75),
    }
    sizes = [area for area in AREAS if area != "all"]
    metrics |= {f"AP_{area}{suffix}": tables.average_precision(area=area) for area in sizes}
    metrics |= {f"AR{limit}{suffix}": tables.average_recall(limit) for limit in RECALL_LIMITS}
    metrics |= {f"AR_{area}{suffix}": tables.average_recall(RECALL_LIMITS[-1], area) for area in sizes}
    return metrics
