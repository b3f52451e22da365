"""``evaluate``: every number that describes a set of saved predictions, in one JSON-able dictionary.

By description (a box counts when its words are exactly right; ranked by ``score``):
  AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR100, and AP50_level1 … by the first levels of the path
Class-agnostic (words play no part; ranked by ``objectness``):
  AP_agnostic AP50_agnostic AP75_agnostic AR100_agnostic
Words at matched boxes, and alarms at the score threshold: see ``descriptions.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bbu.errors import UserError
from bbu.evaluation.coco import AREAS, CocoTables, coco_tables
from bbu.evaluation.descriptions import (
    MATCH_IOU,
    alarm_scores,
    description_scores,
    description_table,
    level_count,
    matched_pairs,
    most_frequent,
    prefix,
)
from bbu.evaluation.pairing import Pairing, Photo, pair
from bbu.records import PredictionRow, Row


def evaluate(
    truth: Sequence[Row],
    predictions: Sequence[PredictionRow],
    *,
    score_threshold: float = 0.3,
    train_descriptions: Mapping[str, int] | None = None,
    max_detections: int = 100,
) -> dict[str, Any]:
    """Compare saved predictions with annotated rows.

    Args:
        truth: annotated photos, paired with predictions by their first image path. Polygons and lines count as
            their enclosing boxes; sides under 2 pixels are thickened on both sides of the comparison.
        score_threshold: ``score`` from which a prediction counts as said aloud (false alarms, vocabulary);
            average precision and description accuracy do not depend on it.
        train_descriptions: description → count in the training set, for the majority baseline and for predicted
            words that training never showed. Without it the baseline comes from ``truth``.
        max_detections: best predictions kept a photo (and description, where those count).

    Returns:
        JSON-able metrics, fractions in [0, 1]; None where a value is undefined, such as AP without annotated
        boxes. Independent of the order of rows, objects and predictions.

    Raises:
        UserError: a photo listed twice, a prediction for an unknown photo or at another image size, or an
            argument out of range.
    """
    if not 0 <= score_threshold <= 1:
        raise UserError(f"score_threshold must lie in [0, 1], is {score_threshold}")
    if max_detections < 1:
        raise UserError(f"max_detections must be at least 1, is {max_detections}")
    paired = pair(truth, predictions)
    photos = paired.photos
    pairs = matched_pairs(photos, max_detections)
    counts = Counter(desc for desc, _ in pairs)
    by_description = coco_tables(
        photos, label=str, rank_by="scores_M", max_detections=max_detections, areas=tuple(AREAS)
    )
    return {
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "match_iou": MATCH_IOU,
        **_photo_counts(paired),
        **_description_metrics(by_description),
        **_level_metrics(photos, level_count(counts), max_detections),
        **_agnostic_metrics(photos, max_detections),
        **description_scores(pairs, most_frequent(counts if train_descriptions is None else train_descriptions)),
        **alarm_scores(photos, score_threshold, train_descriptions),
        "per_description": description_table(pairs, by_description.precision_of_each(0.5)),
    }


def _photo_counts(paired: Pairing) -> dict[str, int]:
    return {
        "photos": len(paired.photos),
        "photos_without_prediction": paired.without_prediction,
        "photos_failed": paired.failed,
        "truth_boxes": sum(len(photo.truth_descs) for photo in paired.photos),
        "predicted_boxes": sum(len(photo.descs) for photo in paired.photos),
    }


def _description_metrics(tables: CocoTables) -> dict[str, float | None]:
    return {
        "AP": tables.average_precision(),
        "AP50": tables.average_precision(0.5),
        "AP75": tables.average_precision(0.75),
        "AP_small": tables.average_precision(area="small"),
        "AP_medium": tables.average_precision(area="medium"),
        "AP_large": tables.average_precision(area="large"),
        "AR1": tables.average_recall(1),
        "AR10": tables.average_recall(10),
        "AR100": tables.average_recall(100),
    }


def _level_metrics(photos: Sequence[Photo], levels: int, max_detections: int) -> dict[str, float | None]:
    """AP50 when only the first k levels must be right; nothing to add when paths have one level."""
    metrics: dict[str, float | None] = {}
    for level in range(1, levels + 1) if levels > 1 else ():
        tables = coco_tables(
            photos,
            label=partial(prefix, level=level),
            rank_by="scores_M",
            max_detections=max_detections,
            iou_thresholds=(0.5,),
        )
        metrics[f"AP50_level{level}"] = tables.average_precision(0.5)
    return metrics


def _agnostic_metrics(photos: Sequence[Photo], max_detections: int) -> dict[str, float | None]:
    tables = coco_tables(photos, label=lambda _: "part", rank_by="objectness_M", max_detections=max_detections)
    return {
        "AP_agnostic": tables.average_precision(),
        "AP50_agnostic": tables.average_precision(0.5),
        "AP75_agnostic": tables.average_precision(0.75),
        "AR100_agnostic": tables.average_recall(100),
    }
