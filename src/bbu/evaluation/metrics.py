"""``evaluate``: every metric of a set of saved predictions, in one JSON-able dictionary.

COCO's twelve metrics, AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR100 AR_small AR_medium AR_large,
  by description (the description must be exactly right; ranked by ``score``),
  class-agnostic (``AP_agnostic`` …; ranked by ``objectness``), and
  by the first levels of the path (``AP_level1`` …; ranked by ``score``)
Caption accuracy and false positives: ``descriptions.py``. Recall at a precision, miss rate at an FPPI, duplicates,
confusions: ``inspection.py``. Calibration: ``calibration.py``. Intervals: ``bootstrap.py``.

Shapes: Dt detections, Gt ground-truth objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from bbu.errors import UserError
from bbu.evaluation.bootstrap import Headlines, intervals
from bbu.evaluation.calibration import reliability
from bbu.evaluation.coco import AREAS, IOU_THRESHOLDS, RECALL_LIMITS, CocoTables, tables_of
from bbu.evaluation.descriptions import (
    description_counts,
    description_pairs,
    description_scores,
    description_table,
    false_positive_scores,
    level_count,
    most_frequent,
    prefix,
)
from bbu.evaluation.inspection import confusions, duplicate_scores, inspection_table
from bbu.evaluation.matching import MATCH_IOU, MAX_DETECTIONS, Matched, Ranking, any_object, flatten, rank
from bbu.evaluation.pairing import pair
from bbu.records import PredictionRow, Row

FPPI = (1.0, 0.1)  # false positives per image at which miss rates are reported
MAX_FPPI = 1e6
INSPECTION_PREFIXES = ("miss_rate", "ECE", "Brier")


def evaluate(
    truth: Iterable[Row],
    predictions: Iterable[PredictionRow],
    *,
    score_threshold: float = 0.3,
    train_descriptions: Mapping[str, int] | None = None,
    max_detections: int = MAX_DETECTIONS,
    precision: float = 0.9,
    fppi: Sequence[float] = FPPI,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare saved predictions with annotated rows.

    Args:
        truth: annotated photos, paired with predictions by their first image path. Polygons and lines count as
            their enclosing boxes; sides under 2 pixels are thickened on both sides of the comparison.
        predictions: like ``truth`` read once and not kept, so iterators over large files will do.
        score_threshold: ``score`` from which a prediction counts for false positives, vocabulary and duplicates;
            average precision and caption accuracy do not depend on it.
        train_descriptions: description → count in the training set, for the majority baseline and for predicted
            descriptions that training never showed. Without it the baseline comes from ``truth``.
        max_detections: the most confident predictions kept per photo (and description, where those count).
        precision: at which the recall of each description is reported.
        fppi: false positives per image at which miss rates are reported.
        bootstrap_samples: of the confidence intervals, drawn with ``seed``; 0 leaves intervals out.

    Returns:
        JSON-able metrics, fractions in [0, 1]; None where a value is undefined, such as AP without annotated
        boxes. Independent of the order of rows, objects and predictions.

    Raises:
        UserError: a photo listed twice, a prediction for an unknown photo or at another image size, or an
            argument out of range.
    """
    check_between("score_threshold", score_threshold, 0, 1)
    check_between("max_detections", max_detections, 1, math.inf)
    check_between("precision", precision, 0, 1)
    check_between("bootstrap_samples", bootstrap_samples, 0, math.inf)
    for limit in fppi:
        check_between("fppi", limit, 0, MAX_FPPI)
    paired = pair(truth, predictions)
    flat = flatten(paired.photos)
    coverage = {"photos_without_prediction": paired.without_prediction, "photos_failed": paired.failed}
    del paired  # the boxes: what follows needs their overlaps only
    by_description = rank(flat, str, "score", max_detections)
    by_box = rank(flat, any_object, "objectness", max_detections)
    coco, ap50 = _coco_figures(by_description, by_box, max_detections)
    described, class_agnostic = Matched.at(by_description, IOU_THRESHOLDS), Matched.at(by_box, IOU_THRESHOLDS)
    duplicates = duplicate_scores(Matched.at(rank(flat, any_object, "score", max_detections)), score_threshold)
    headlines = Headlines(described, class_agnostic, fppi)
    pairs = description_pairs(class_agnostic)
    counts = description_counts(pairs.items()) if train_descriptions is None else train_descriptions
    inspected = inspection_table(described, precision, fppi)
    calibration = {
        name: reliability(matched.ranking.confidence_Dt, matched.right_Dt)
        for name, matched in (("score", described), ("objectness", class_agnostic))
    }
    return {
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "match_iou": MATCH_IOU,
        "target_precision": precision,
        "fppi": list(fppi),
        "photos": len(flat.names),
        **coverage,
        "truth_boxes": len(flat.truth_desc_Gt),
        "predicted_boxes": len(flat.desc_Dt),
        **coco,
        **description_scores(pairs, most_frequent(counts)),
        **false_positive_scores(described, score_threshold, train_descriptions),
        **duplicates,
        **{name: value for name, value in headlines.point().items() if name.startswith(INSPECTION_PREFIXES)},
        "intervals": intervals(headlines, bootstrap_samples, seed),
        "bootstrap_samples": bootstrap_samples,
        "calibration": calibration,
        "per_description": {desc: {**row, **inspected[desc]} for desc, row in description_table(pairs, ap50).items()},
        "confusions": confusions(pairs),
    }


def _coco_figures(
    described: Ranking, class_agnostic: Ranking, max_detections: int
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """COCO's metrics under every labelling, and AP50 of each description; only one labelling's tables in memory."""
    tables = tables_of(described, max_detections)
    figures, ap50 = _coco_metrics(tables, ""), tables.precision_of_each(0.5)
    figures |= _coco_metrics(tables_of(class_agnostic, max_detections), "_agnostic")
    levels = level_count(described.categories)
    for level in range(1, levels + 1) if levels > 1 else ():
        by_level = rank(described.flat, partial(prefix, level=level), "score", max_detections)
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


def _coco_metrics(tables: CocoTables, suffix: str) -> dict[str, float | None]:
    """COCO's twelve metrics."""
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
