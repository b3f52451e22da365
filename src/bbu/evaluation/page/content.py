"""The data of the page's scripts: boxes, descriptions, curves and confusions, as one JSON-able dictionary.

The scripts recount everything that depends on the threshold by the rules of ``bbu.evaluation.matching``. They get the
scorer's own overlaps, so rounding cannot make the two disagree. Everything else is computed here, by the scorer's code.

Shapes: Dt detections, Gt ground-truth objects, Op overlapping pairs, Ph photos, Rc recall steps, U IoU thresholds,
Ca categories, A COCO area ranges, Li detection limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bbu.errors import UserError
from bbu.evaluation.coco import tables_of
from bbu.evaluation.descriptions import level_count, prefix
from bbu.evaluation.matching import MATCH_IOU, FlatDetections, Matched, RankBy, Ranking, any_object, rank
from bbu.evaluation.pairing import Photo
from bbu.records import Row

CURVES_SHOWN = 200  # of one level; the most frequent descriptions

Curve = dict[str, Any]


def worst_first(described: Matched, threshold: float) -> list[str]:
    """Names of the photos, those with most missed objects and false positives first.

    Args:
        described: the detections that the scorer counts, matched by description.
        threshold: score from which a detection counts.
    """
    ranking, right_Dt = described.ranking, described.right_Dt
    confident_Dt = ranking.confidence_Dt >= threshold
    found, wrong = (ranking.photo_Dt[confident_Dt & kind_Dt] for kind_Dt in (right_Dt, ~right_Dt))
    names, places = ranking.flat.names, (ranking.flat.truth_photo_Gt, found, wrong)
    truth_Ph, found_Ph, wrong_Ph = (np.bincount(where, minlength=len(names)) for where in places)
    return [names[place] for place in np.argsort(found_Ph - truth_Ph - wrong_Ph, kind="stable")]


def page_content(
    photos: Sequence[Photo],
    described: Matched,
    rows: Mapping[str, Row],
    problems: Mapping[str, str],
    errors: Mapping[str, str],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Content of the page.

    Args:
        photos: in order of name.
        described: the detections that the scorer counts, matched by description.
        rows: photo name → annotated row, for polygons and lines.
        problems: photo name → why it is not shown.
        errors: photo name → why it was not predicted.
        metrics: the result of ``evaluate``.
    """
    flat = described.ranking.flat
    number = {desc: code for code, desc in enumerate(flat.vocabulary)}
    reasons = {"problem": problems, "error": errors}
    shown = [
        _photo(photo, rows[photo.name], number)
        | {"found": found}
        | {key: texts[photo.name] for key, texts in reasons.items() if photo.name in texts}
        for photo, found in zip(photos, _predictions(photos, described.ranking, number), strict=True)
    ]
    return {
        "threshold": metrics["score_threshold"],
        "descriptions": list(flat.vocabulary),
        "targetPrecision": metrics["target_precision"],
        "scored": {
            number[desc]: [row["AP50"], row["recall_at_precision"]] for desc, row in metrics["per_description"].items()
        },
        "photos": shown,
        "curves": curves(flat, metrics["max_detections"]),
        "calibration": metrics["calibration"],
        "confusions": [
            [number[row["annotated"]], -1 if row["predicted"] is None else number[row["predicted"]], row["count"]]
            for row in metrics["confusions"]
        ],
    }


def verdict_rows(verdicts: Sequence[Mapping[str, Any]], places: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each verdict with the photos that made it, or all of its group where none did: [number of the photo, its boxes].

    Args:
        verdicts: lines of ``bbu judge``.
        places: photo name → number on the page.

    Raises:
        UserError: a photo that is not on the page.
    """
    rows = []
    for verdict in verdicts:
        boxes: dict[str, list[list[float]]] = {}
        for part in verdict["evidence"]:
            for photo in part["photos"]:
                boxes.setdefault(photo["image"], []).extend(box["bbox_2d"] for box in photo.get("boxes", ()))
        photos = sorted(boxes) or verdict["images"]
        for name in photos:
            if name not in places:
                raise UserError(
                    f"verdict on {verdict['group']!r}: its photo {name!r} is not among the annotated photos; judge the "
                    "predictions of this page"
                )
        told = {name: verdict[name] for name in ("group", "verdict", "reason")}
        shown = [[places[name], boxes.get(name, [])] for name in photos]
        rows.append({**told, "truth": verdict.get("truth"), "photos": shown})
    return rows


def _photo(photo: Photo, row: Row, number: Mapping[str, int]) -> dict[str, Any]:
    """Name, size and annotated objects: [x1, y1, x2, y2, number of the description]."""
    truth = zip(photo.truth_boxes_Gt4.tolist(), photo.truth_descs, strict=True)
    content: dict[str, Any] = {
        "name": photo.name,
        "width": row.width,
        "height": row.height,
        "truth": [[*box, number[desc]] for box, desc in truth],
    }
    objects = sorted(row.objects, key=lambda item: (item.box, item.desc))  # as pairing sorts the boxes
    outlines = {str(n): [item.kind, *item.points] for n, item in enumerate(objects) if item.kind != "bbox_2d"}
    if outlines:
        content["outlines"] = outlines
    return content


def _predictions(photos: Sequence[Photo], ranking: Ranking, number: Mapping[str, int]) -> list[list[list[Any]]]:
    """Per photo and detection: [x1, y1, x2, y2, number of the description, score, [overlapped objects, best last]]."""
    flat, truth_before, found_before = ranking.flat, 0, 0
    near: list[list[int]] = [[] for _ in flat.photo_Dt]
    # among equal overlaps COCO takes the last box
    for pair in np.lexsort((flat.pair_truth_Op, flat.pair_iou_Op)):
        near[flat.pair_prediction_Op[pair]].append(int(flat.pair_truth_Op[pair]))
    content = []
    kept = set(ranking.prediction_Dt.tolist())
    for photo in photos:
        found: list[list[Any]] = []
        items = zip(photo.boxes_Dt4.tolist(), photo.descs, photo.scores_Dt.tolist(), strict=True)
        for place, (box, desc, score) in enumerate(items, start=found_before):
            if place in kept:
                found.append([*box, number[desc], score, [n - truth_before for n in near[place]]])
        content.append(found)
        truth_before, found_before = truth_before + len(photo.truth_descs), found_before + len(photo.descs)
    return content


def curves(flat: FlatDetections, max_detections: int) -> list[Curve]:
    """Precision at 101 recalls, IoU ≥ 0.5: class-agnostic, the macro average of each level, and each description.

    ``points`` is None without ground truth. The mean of a curve's points is its AP50.
    """
    truth = Counter(flat.vocabulary[code] for code in flat.truth_desc_Gt)
    boxes = [_rounded(points) for points in _precision(flat, any_object, "objectness", max_detections).values()]
    found = [{"group": "", "name": "class-agnostic", "points": boxes[0] if boxes else None}]
    deepest = level_count(truth)
    levels: list[tuple[str, Callable[[str], str]]] = [
        ("first level" if level == 1 else f"first {level} levels", partial(prefix, level=level))
        for level in range(1, deepest)
    ]
    levels.append(("full description", str))
    for group, label in levels if deepest else ():
        precision = _precision(flat, label, "score", max_detections)
        mean = np.mean(list(precision.values()), axis=0)
        found.append({"group": "", "name": f"{group}, macro average", "points": _rounded(mean)})
        count: Counter[str] = Counter()
        for desc, times in truth.items():
            count[label(desc)] += times
        frequent = sorted(count, key=lambda name: (-count[name], name))[:CURVES_SHOWN]
        found += [{"group": group, "name": name, "points": _rounded(precision[name])} for name in frequent]
    return found


def _precision(
    flat: FlatDetections, label: Callable[[str], str], rank_by: RankBy, max_detections: int
) -> dict[str, np.ndarray]:
    """Annotated category → (Rc,) precision at IoU ≥ 0.5."""
    ranking = rank(flat, label, rank_by, max_detections)
    tables = tables_of(ranking, max_detections, (MATCH_IOU,), ("all",))
    return {name: tables.precision_URcCaALi[0, :, k, 0, -1] for k, name in enumerate(tables.categories)}


def _rounded(points_Rc: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in points_Rc]
