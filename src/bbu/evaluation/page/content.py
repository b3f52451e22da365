"""What the page's script works on: boxes, words, curves and confusions, as one JSON-able dictionary.

The script recounts everything that depends on the threshold by the rules of ``bbu.evaluation.matching``: it gets the
overlaps as the scorer found them, so that no rounding can part the two. What does not depend on the threshold is
computed here, by the scorer's own code.

Shape suffixes as in ``matching``: D predictions of all photos, R recalls; P photos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bbu.evaluation.coco import tables_of
from bbu.evaluation.descriptions import level_count, prefix
from bbu.evaluation.matching import MATCH_IOU, Album, RankBy, Ranking, collect, rank
from bbu.evaluation.pairing import Photo
from bbu.records import Row

CURVES_SHOWN = 200  # of one level; the commonest descriptions

Curve = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """Paired photos and their overlapping boxes, matched once for everything on the page.

    Args:
        photos: in order of name.
        album: the same photos, flat.
        described: predictions that the scorer counts: the best ``max_detections`` of a photo and description.
        right_D: whether each of these takes an annotated box of its own description.
        threshold: score from which a prediction counts.
    """

    photos: tuple[Photo, ...]
    album: Album
    described: Ranking
    right_D: np.ndarray
    threshold: float

    @classmethod
    def of(cls, photos: Sequence[Photo], max_detections: int, threshold: float) -> Scored:
        album = collect(photos)
        described = rank(album, str, "scores_M", max_detections)
        return cls(tuple(photos), album, described, described.match((MATCH_IOU,))[0] >= 0, threshold)

    def worst_first(self) -> list[str]:
        """Names of the photos, those with most parts not found and false alarms first."""
        confident_D = self.described.confidence_D >= self.threshold
        found_D, alarm_D = confident_D & self.right_D, confident_D & ~self.right_D
        places = (self.album.truth_photo_G, self.described.photo_D[found_D], self.described.photo_D[alarm_D])
        truth_P, found_P, alarms_P = (np.bincount(where, minlength=len(self.photos)) for where in places)
        order = np.argsort(found_P - truth_P - alarms_P, kind="stable")
        return [self.photos[place].name for place in order]


def page_content(
    scored: Scored,
    rows: Mapping[str, Row],
    problems: Mapping[str, str],
    errors: Mapping[str, str],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Content of the page.

    Args:
        rows: photo name → annotated row, for outlines that are no boxes.
        problems: photo name → why it is not shown.
        errors: photo name → why it was not predicted.
        metrics: what ``evaluate`` returned.
    """
    number = {desc: code for code, desc in enumerate(scored.album.vocabulary)}
    reasons = {"problem": problems, "error": errors}
    photos = [
        _photo(photo, rows[photo.name], number)
        | {"found": found}
        | {key: texts[photo.name] for key, texts in reasons.items() if photo.name in texts}
        for photo, found in zip(scored.photos, _predictions(scored, number), strict=True)
    ]
    return {
        "threshold": metrics["score_threshold"],
        "descriptions": list(scored.album.vocabulary),
        "targetPrecision": metrics["target_precision"],
        "scored": {
            number[desc]: [row["AP50"], row["recall_at_precision"]] for desc, row in metrics["per_description"].items()
        },
        "photos": photos,
        "curves": curves(scored.album, metrics["max_detections"]),
        "calibration": metrics["calibration"],
        "confusions": [
            [number[row["annotated"]], -1 if row["predicted"] is None else number[row["predicted"]], row["count"]]
            for row in metrics["confusions"]
        ],
    }


def _photo(photo: Photo, row: Row, number: Mapping[str, int]) -> dict[str, Any]:
    """Name, size and annotated parts: [x1, y1, x2, y2, description]."""
    truth = zip(photo.truth_boxes_N4.tolist(), photo.truth_descs, strict=True)
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


def _predictions(scored: Scored, number: Mapping[str, int]) -> list[list[list[Any]]]:
    """Photo by photo: [x1, y1, x2, y2, description, score, [annotated boxes overlapped enough, best last]]."""
    album, truth_before, found_before = scored.album, 0, 0
    near: list[list[int]] = [[] for _ in album.photo_D]
    # of equal overlaps COCO takes the last box
    for pair in np.lexsort((album.pair_truth_E, album.pair_iou_E)):
        near[album.pair_prediction_E[pair]].append(int(album.pair_truth_E[pair]))
    content = []
    kept = set(scored.described.prediction_D.tolist())
    for photo in scored.photos:
        found: list[list[Any]] = []
        items = zip(photo.boxes_M4.tolist(), photo.descs, photo.scores_M.tolist(), strict=True)
        for place, (box, desc, score) in enumerate(items, start=found_before):
            if place in kept:
                found.append([*box, number[desc], score, [n - truth_before for n in near[place]]])
        content.append(found)
        truth_before, found_before = truth_before + len(photo.truth_descs), found_before + len(photo.descs)
    return content


def curves(album: Album, max_detections: int) -> list[Curve]:
    """Precision at 101 recalls, IoU ≥ 0.5: boxes alone, each level's mean, and each description of each level.

    ``points`` is None where nothing is annotated. The mean of a curve's points is its AP50.
    """
    truth = Counter(album.vocabulary[code] for code in album.truth_desc_G)
    boxes = _precision(album, lambda _: "part", "objectness_M", max_detections)
    found = [{"group": "", "name": "boxes alone", "points": _rounded(boxes["part"]) if boxes else None}]
    deepest = level_count(truth)
    levels: list[tuple[str, Callable[[str], str]]] = [
        ("first level" if level == 1 else f"first {level} levels", partial(prefix, level=level))
        for level in range(1, deepest)
    ]
    levels.append(("full description", str))
    for group, label in levels if deepest else ():
        precision = _precision(album, label, "scores_M", max_detections)
        mean = np.mean(list(precision.values()), axis=0)
        found.append({"group": "", "name": f"{group}, mean", "points": _rounded(mean)})
        count: Counter[str] = Counter()
        for desc, times in truth.items():
            count[label(desc)] += times
        commonest = sorted(count, key=lambda name: (-count[name], name))[:CURVES_SHOWN]
        found += [{"group": group, "name": name, "points": _rounded(precision[name])} for name in commonest]
    return found


def _precision(
    album: Album, label: Callable[[str], str], rank_by: RankBy, max_detections: int
) -> dict[str, np.ndarray]:
    """Annotated category → (R,) precision at IoU ≥ 0.5."""
    ranking = rank(album, label, rank_by, max_detections)
    tables = tables_of(ranking, max_detections, (MATCH_IOU,), ("all",))
    return {name: tables.precision_TRKAM[0, :, k, 0, -1] for k, name in enumerate(tables.categories)}


def _rounded(points_R: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in points_R]
