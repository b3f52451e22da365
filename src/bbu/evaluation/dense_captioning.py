"""Dense-captioning mAP: a box counts when it overlaps a region and its caption resembles a reference of the region.

The protocol of Visual Genome (Johnson, Karpathy and Fei-Fei 2016, DenseCap, arXiv:1511.07571, section 4.2, and its
published ``eval_utils.lua``), which later work follows (GRiT, arXiv:2212.00280):

1. annotated boxes of a photo with IoU ≥ 0.7 are merged into one region with several references (``merge_boxes``);
2. each prediction of a photo, most confident first, goes to the region it overlaps most. The first one takes the
   region, however small the overlap; later ones are wrong, even if another region is free;
3. at IoU t and METEOR m, a prediction is right if it took its region with IoU ≥ t and METEOR > m. The comparison is
   strict: at m = 0 a caption without a word in common is wrong;
4. average precision over all photos: mean over recall 0, 0.01, …, 0.99 of the best precision at that recall or above;
5. ``dense_map`` is the mean over 5 × 6 thresholds; ``dense_map_localisation`` the mean over 5 IoUs, class-agnostic.

Boxes are xyxy in displayed pixels.

Shapes: Gt ground-truth objects, Rg merged regions, Dt detections, Rc recall steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bbu.evaluation.meteor import exact_meteor
from bbu.evaluation.pairing import Photo, pair
from bbu.evaluation.phrase_similarity import CaptionPair, approximate_meteor
from bbu.evaluation.report import number
from bbu.geometry import iou_matrix
from bbu.records import PredictionRow, Row

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
MERGE_IOU = 0.7
RECALL_POINTS = 100  # 0.00 … 0.99: the published loop adds 0.01 up to 1, and rounding makes it stop before 1.00

Meteor = Literal["approximate", "exact"]
METEORS: dict[Meteor, Callable[[Sequence[CaptionPair]], list[float]]] = {
    "approximate": approximate_meteor,
    "exact": exact_meteor,
}


@dataclass(frozen=True)
class Region:
    """The mean of merged annotated boxes, and all their descriptions."""

    box: np.ndarray
    references: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A prediction: confidence, IoU with its region (0 if it took none), and its caption with the references."""

    score: float
    iou: float
    captions: CaptionPair


def dense_metrics(
    truth: Iterable[Row], predictions: Iterable[PredictionRow], *, meteor: Meteor = "approximate"
) -> dict[str, Any]:
    """Dense-captioning mAP of saved predictions, ranked by ``score``, without a limit on their number.

    Args:
        meteor: "approximate" (see ``phrase_similarity.py``) or "exact" (Java, English; see ``meteor.py``).

    Returns:
        JSON-able: ``dense_map``, ``dense_map_localisation``, ``dense_ap`` (IoU → METEOR → AP),
        ``dense_ap_localisation`` (IoU → AP), ``dense_regions`` (annotated boxes after merging), ``dense_meteor``.
        Fractions in [0, 1], None without annotated boxes. Independent of the order of rows and boxes.

    Raises:
        UserError: rows that cannot be paired, or a package or program that METEOR needs is missing.
    """
    photos = [(photo, merge_boxes(photo)) for photo in pair(truth, predictions).photos]
    regions = sum(len(merged) for _, merged in photos)
    candidates = [candidate for photo, merged in photos for candidate in take_regions(photo, merged)]
    candidates.sort(key=lambda candidate: -candidate.score)
    iou_Dt = np.array([candidate.iou for candidate in candidates])
    meteor_Dt = _meteor_of(candidates, meteor)
    table = {
        f"{iou:.1f}": {
            f"{least:.2f}": average_precision((iou_Dt >= iou) & (meteor_Dt > least), regions)
            for least in METEOR_THRESHOLDS
        }
        for iou in IOU_THRESHOLDS
    }
    boxes = {f"{iou:.1f}": average_precision(iou_Dt >= iou, regions) for iou in IOU_THRESHOLDS}
    return {
        "dense_meteor": meteor,
        "dense_regions": regions,
        "dense_map": _mean([value for row in table.values() for value in row.values()]),
        "dense_map_localisation": _mean(list(boxes.values())),
        "dense_ap": table,
        "dense_ap_localisation": boxes,
    }


def merge_boxes(photo: Photo) -> list[Region]:
    """Merge overlapping annotated boxes into regions, greedily.

    The box with most neighbours of IoU ≥ MERGE_IOU (the first of equals) and these neighbours become one region with
    their mean box; this repeats with the remaining boxes.
    """
    close_GtGt = iou_matrix(photo.truth_boxes_Gt4, photo.truth_boxes_Gt4) >= MERGE_IOU
    regions = []
    while close_GtGt.any():
        group_Gt = close_GtGt[close_GtGt.sum(axis=1).argmax()].copy()
        descs = {photo.truth_descs[n] for n in np.flatnonzero(group_Gt)}
        regions.append(Region(photo.truth_boxes_Gt4[group_Gt].mean(axis=0), tuple(sorted(descs))))
        close_GtGt[group_Gt] = False
        close_GtGt[:, group_Gt] = False
    return regions


def take_regions(photo: Photo, regions: Sequence[Region]) -> list[Candidate]:
    """The predictions of a photo, most confident first, each with the region it took, if any."""
    order_Dt = np.argsort(-photo.scores_Dt, kind="stable")
    boxes_Rg4 = np.array([region.box for region in regions]).reshape(-1, 4)
    iou_DtRg = iou_matrix(photo.boxes_Dt4[order_Dt], boxes_Rg4)
    taken: set[int] = set()
    candidates = []
    references: tuple[str, ...]
    for m, iou_Rg in zip(order_Dt, iou_DtRg, strict=True):
        overlap, references = 0.0, ()
        if iou_Rg.max(initial=0) > 0 and (nearest := int(iou_Rg.argmax())) not in taken:
            taken.add(nearest)
            overlap, references = float(iou_Rg[nearest]), regions[nearest].references
        candidates.append(Candidate(float(photo.scores_Dt[m]), overlap, (photo.descs[m], references)))
    return candidates


def average_precision(right_Dt: np.ndarray, regions: int) -> float | None:
    """Mean of the best precision at RECALL_POINTS recalls; None without regions.

    Args:
        right_Dt: whether each prediction of all photos is right, most confident first.
        regions: number of regions to find.
    """
    if regions == 0:
        return None
    found_Dt = np.cumsum(right_Dt)
    precision_Dt = found_Dt / np.arange(1, len(right_Dt) + 1)
    best_Dt = np.maximum.accumulate(precision_Dt[::-1])[::-1]
    # recall ≥ r / 100 in integers, so rounding has no say
    first_Rc = np.searchsorted(found_Dt * RECALL_POINTS, np.arange(RECALL_POINTS) * regions)
    return float(np.append(best_Dt, 0.0)[first_Rc].mean())


def _meteor_of(candidates: Sequence[Candidate], meteor: Meteor) -> np.ndarray:
    """(Dt,) METEOR of candidates above the lowest IoU threshold, else 0; each distinct pair is scored once."""
    able = [candidate.iou >= IOU_THRESHOLDS[0] for candidate in candidates]
    pairs = list(dict.fromkeys(item.captions for item, can in zip(candidates, able, strict=True) if can))
    scores = dict(zip(pairs, METEORS[meteor](pairs), strict=True))
    return np.array([scores[item.captions] if can else 0.0 for item, can in zip(candidates, able, strict=True)])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def dense_table(metrics: Mapping[str, Any]) -> str:
    """The numbers of ``dense_metrics`` for a terminal: both means, then AP by IoU (rows) and METEOR (columns)."""
    lines = [
        f"dense captioning, METEOR {metrics['dense_meteor']}, {metrics['dense_regions']} regions",
        f"mAP                  {number(metrics['dense_map']):>5}",
        f"class-agnostic mAP   {number(metrics['dense_map_localisation']):>5}",
        "AP by IoU and METEOR   boxes  " + "  ".join(f">{least:.2f}" for least in METEOR_THRESHOLDS),
    ]
    for iou, row in metrics["dense_ap"].items():
        values = [metrics["dense_ap_localisation"][iou], *row.values()]
        lines.append(f"  IoU ≥ {iou}            " + "  ".join(f"{number(value):>5}" for value in values))
    return "\n".join(lines)
