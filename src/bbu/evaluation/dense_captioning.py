"""Dense-captioning mAP: a box counts when it lies right and its words resemble those annotated there.

The protocol of Visual Genome (Johnson, Karpathy and Fei-Fei 2016, DenseCap, arXiv:1511.07571, section 4.2, and its
published ``eval_utils.lua``), which later work follows (GRiT, arXiv:2212.00280):

1. annotated boxes of a photo that overlap by IoU ≥ 0.7 become one with several references (``merge_boxes``);
2. predictions of a photo, most confident first, each go to the box they overlap most. The first to come takes it,
   however little it overlaps; whoever comes later is wrong, also where another box would be free;
3. for IoU t and METEOR m a prediction is right if it took its box, overlaps it by IoU ≥ t and has METEOR > m.
   Greater, not equal: at m = 0 a phrase without any word in common is wrong;
4. average precision over all photos: mean, over recall 0, 0.01, …, 0.99, of the best precision at that recall or more;
5. ``dense_map`` is the mean over 5 × 6 thresholds; ``dense_map_localisation`` that over 5, words playing no part.

Shape suffixes: N annotated boxes of one photo, G merged ones, M predictions of one photo, P of all photos, R points
of recall, 4 = xyxy in displayed pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bbu.evaluation.meteor import exact_meteor
from bbu.evaluation.pairing import Photo, pair
from bbu.evaluation.phrase_similarity import CaptionPair, approximate_meteor
from bbu.geometry import iou_matrix
from bbu.records import PredictionRow, Row

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
MERGE_IOU = 0.7
RECALL_POINTS = 100  # 0.00 … 0.99: the published loop adds 0.01 until it passes 1, and rounding keeps it from 1.00

Meteor = Literal["approximate", "exact"]
METEORS: dict[Meteor, Callable[[Sequence[CaptionPair]], list[float]]] = {
    "approximate": approximate_meteor,
    "exact": exact_meteor,
}


@dataclass(frozen=True)
class Region:
    """An annotated place: the mean of merged boxes, and all their descriptions."""

    box: np.ndarray
    references: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A prediction: confidence, IoU with the region it overlaps most (0 if it did not take it), and the words."""

    score: float
    iou: float
    words: CaptionPair


def dense_metrics(
    truth: Sequence[Row], predictions: Sequence[PredictionRow], *, meteor: Meteor = "approximate"
) -> dict[str, Any]:
    """Dense-captioning mAP of saved predictions, ranked by ``score``; all predictions count.

    Args:
        meteor: "approximate" (see ``phrase_similarity.py``) or "exact" (Java, English; see ``meteor.py``).

    Returns:
        JSON-able: ``dense_map``, ``dense_map_localisation``, ``dense_ap`` (IoU → METEOR → AP),
        ``dense_ap_localisation`` (IoU → AP), ``dense_regions`` (annotated boxes after merging), ``dense_meteor``.
        Fractions in [0, 1], None without annotated boxes. Independent of the order of rows and boxes.

    Raises:
        UserError: rows that cannot be paired, or a similarity that cannot be had here.
    """
    photos = [(photo, merge_boxes(photo)) for photo in pair(truth, predictions).photos]
    regions = sum(len(merged) for _, merged in photos)
    candidates = [candidate for photo, merged in photos for candidate in take_regions(photo, merged)]
    candidates.sort(key=lambda candidate: -candidate.score)
    iou_P = np.array([candidate.iou for candidate in candidates])
    meteor_P = _meteor_of(candidates, meteor)
    table = {
        f"{iou:.1f}": {
            f"{least:.2f}": average_precision((iou_P >= iou) & (meteor_P > least), regions)
            for least in METEOR_THRESHOLDS
        }
        for iou in IOU_THRESHOLDS
    }
    boxes = {f"{iou:.1f}": average_precision(iou_P >= iou, regions) for iou in IOU_THRESHOLDS}
    return {
        "dense_meteor": meteor,
        "dense_regions": regions,
        "dense_map": _mean([value for row in table.values() for value in row.values()]),
        "dense_map_localisation": _mean(list(boxes.values())),
        "dense_ap": table,
        "dense_ap_localisation": boxes,
    }


def merge_boxes(photo: Photo) -> list[Region]:
    """Annotated boxes that lie on one another become one region, greedily.

    The box that overlaps most others by IoU ≥ MERGE_IOU (the first of equals) is merged with them, into their mean;
    all of them are put aside, and so on until none is left.
    """
    close_NN = iou_matrix(photo.truth_boxes_N4, photo.truth_boxes_N4) >= MERGE_IOU
    regions = []
    while close_NN.any():
        group_N = close_NN[close_NN.sum(axis=1).argmax()].copy()
        descs = {photo.truth_descs[n] for n in np.flatnonzero(group_N)}
        regions.append(Region(photo.truth_boxes_N4[group_N].mean(axis=0), tuple(sorted(descs))))
        close_NN[group_N] = False
        close_NN[:, group_N] = False
    return regions


def take_regions(photo: Photo, regions: Sequence[Region]) -> list[Candidate]:
    """The predictions of a photo, most confident first, each with the region it overlaps most, if it took it."""
    order_M = np.argsort(-photo.scores_M, kind="stable")
    boxes_G4 = np.array([region.box for region in regions]).reshape(-1, 4)
    iou_MG = iou_matrix(photo.boxes_M4[order_M], boxes_G4)
    taken: set[int] = set()
    candidates = []
    for rank, m in enumerate(order_M):
        g = int(iou_MG[rank].argmax()) if regions else -1
        mine = g >= 0 and iou_MG[rank, g] > 0 and g not in taken
        if mine:
            taken.add(g)
        references = regions[g].references if mine else ()
        overlap = float(iou_MG[rank, g]) if mine else 0.0
        candidates.append(Candidate(float(photo.scores_M[m]), overlap, (photo.descs[m], references)))
    return candidates


def average_precision(right_P: np.ndarray, regions: int) -> float | None:
    """Mean of the best precision at RECALL_POINTS recalls; None without regions.

    Args:
        right_P: (P,) whether each prediction of all photos is right, most confident first.
        regions: how many there are to find.
    """
    if regions == 0:
        return None
    found_P = np.cumsum(right_P)
    precision_P = found_P / np.arange(1, len(right_P) + 1)
    best_P = np.maximum.accumulate(precision_P[::-1])[::-1]
    # recall ≥ r / 100 in whole numbers: no rounding decides
    first_R = np.searchsorted(found_P * RECALL_POINTS, np.arange(RECALL_POINTS) * regions)
    return float(np.append(best_P, 0.0)[first_R].mean())


def _meteor_of(candidates: Sequence[Candidate], meteor: Meteor) -> np.ndarray:
    """(P,) METEOR of the candidates that some threshold could count, 0 for the others; each pair is scored once."""
    able = [candidate.iou >= IOU_THRESHOLDS[0] for candidate in candidates]
    pairs = list(dict.fromkeys(item.words for item, can in zip(candidates, able, strict=True) if can))
    scores = dict(zip(pairs, METEORS[meteor](pairs), strict=True))
    return np.array([scores[item.words] if can else 0.0 for item, can in zip(candidates, able, strict=True)])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def dense_table(metrics: Mapping[str, Any]) -> str:
    """The numbers of ``dense_metrics`` for a terminal: both means, then AP by IoU (rows) and METEOR (columns)."""
    lines = [
        f"dense captioning, METEOR {metrics['dense_meteor']}, {metrics['dense_regions']} regions",
        f"mAP                 {_number(metrics['dense_map'])}",
        f"mAP of boxes alone  {_number(metrics['dense_map_localisation'])}",
        "AP by IoU and METEOR   boxes  " + "  ".join(f">{least:.2f}" for least in METEOR_THRESHOLDS),
    ]
    for iou, row in metrics["dense_ap"].items():
        values = [metrics["dense_ap_localisation"][iou], *row.values()]
        lines.append(f"  IoU ≥ {iou}            " + "  ".join(_number(value) for value in values))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "    -" if value is None else f"{value:.3f}"
