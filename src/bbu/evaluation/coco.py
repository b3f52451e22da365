"""COCO average precision and recall, computed in memory by faster-coco-eval.

Axes of the library's tables: T IoU thresholds, R 101 recall points, K categories, A box sizes, M detection limits.
The library writes -1 where a category has no annotated box; here that is None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped,unused-ignore]

from bbu.evaluation.pairing import Photo

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Box areas in displayed pixels, as COCO bins them; a box on a border belongs to both bins.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
RECALL_POINTS = 101
RECALL_LIMITS = (1, 10, 100)  # detections a photo and category
CHUNK = 32  # categories evaluated together

Annotation = dict[str, Any]


@dataclass(frozen=True)
class CocoTables:
    """Precision and recall of one evaluation, undefined entries at -1."""

    categories: tuple[str, ...]
    iou_thresholds: tuple[float, ...]
    areas: tuple[str, ...]
    limits: tuple[int, ...]
    precision_TRKAM: np.ndarray
    recall_TKAM: np.ndarray

    def average_precision(self, iou: float | None = None, area: str = "all") -> float | None:
        """Mean over recall, categories and (unless ``iou`` picks one) thresholds, at the highest limit."""
        return _mean(self.precision_TRKAM[self._thresholds(iou), :, :, self.areas.index(area), -1])

    def average_recall(self, limit: int) -> float | None:
        """Mean recall over thresholds and categories with at most ``limit`` detections a photo and category."""
        return _mean(self.recall_TKAM[:, :, 0, self.limits.index(min(limit, self.limits[-1]))])

    def precision_of_each(self, iou: float) -> dict[str, float | None]:
        """Category → its average precision at one threshold."""
        (threshold,) = self._thresholds(iou)
        return {name: _mean(self.precision_TRKAM[threshold, :, k, 0, -1]) for k, name in enumerate(self.categories)}

    def _thresholds(self, iou: float | None) -> list[int]:
        return [i for i, value in enumerate(self.iou_thresholds) if iou is None or abs(value - iou) < 1e-9]


def coco_tables(
    photos: Sequence[Photo],
    *,
    label: Callable[[str], str],
    rank_by: Literal["scores_M", "objectness_M"],
    max_detections: int,
    iou_thresholds: Sequence[float] = tuple(IOU_THRESHOLDS),
    areas: Sequence[str] = ("all",),
) -> CocoTables:
    """Run COCO's box evaluation.

    Args:
        label: description → category. Predictions of a category that no annotated box has are left out, as every
            COCO tool does; count them elsewhere.
        rank_by: the confidence that orders detections.
        max_detections: best detections kept a photo and category.
        areas: names from AREAS; "all" comes first.
    """
    categories = tuple(sorted({label(desc) for photo in photos for desc in photo.truth_descs}))
    limits = tuple(sorted({min(limit, max_detections) for limit in (*RECALL_LIMITS, max_detections)}))
    sizes = (len(iou_thresholds), 0, len(areas), len(limits))
    precision, recall = [np.empty((sizes[0], RECALL_POINTS, *sizes[1:]))], [np.empty(sizes)]
    for truth, found in _datasets(photos, categories, label, rank_by):
        run = COCOeval_faster(truth, found, iouType="bbox", print_function=_silent)
        run.params.iouThrs = np.array(iou_thresholds)
        run.params.maxDets = list(limits)
        run.params.areaRng, run.params.areaRngLbl = [list(AREAS[area]) for area in areas], list(areas)
        run.evaluate()
        run.accumulate()
        precision.append(np.asarray(run.eval["precision"]))
        recall.append(np.asarray(run.eval["recall"]))
    return CocoTables(
        categories=categories,
        iou_thresholds=tuple(iou_thresholds),
        areas=tuple(areas),
        limits=limits,
        precision_TRKAM=np.concatenate(precision, axis=2),
        recall_TKAM=np.concatenate(recall, axis=1),
    )


def _datasets(
    photos: Sequence[Photo], categories: Sequence[str], label: Callable[[str], str], rank_by: str
) -> Iterator[tuple[COCO, COCO]]:
    """Annotated and predicted COCO data sets, CHUNK categories at a time.

    The library spends time and memory on every photo × category. Categories are independent of one another, so
    with a long tail of rare ones each chunk needs only the few photos that have something of it.
    """
    ids = {name: k for k, name in enumerate(categories, start=1)}
    truth: dict[int, list[Annotation]] = {chunk: [] for chunk in range(0, len(ids), CHUNK)}
    found: dict[int, list[Annotation]] = {chunk: [] for chunk in truth}
    for image_id, photo in enumerate(photos, start=1):
        for desc, box in zip(photo.truth_descs, photo.truth_boxes_N4.tolist(), strict=True):
            category = ids[label(desc)]
            truth[_chunk(category)].append(_annotation(image_id, category, box))
        ranking = getattr(photo, rank_by).tolist()
        for desc, box, score in zip(photo.descs, photo.boxes_M4.tolist(), ranking, strict=True):
            if label(desc) in ids:
                category = ids[label(desc)]
                found[_chunk(category)].append(_annotation(image_id, category, box) | {"score": score})
    for chunk in truth:
        images = {item["image_id"] for item in truth[chunk] + found[chunk]}
        names = categories[chunk : chunk + CHUNK]
        yield _coco(images, names, chunk + 1, truth[chunk]), _coco(images, names, chunk + 1, found[chunk])


def _chunk(category: int) -> int:
    return (category - 1) // CHUNK * CHUNK


def _annotation(image_id: int, category: int, box: Sequence[float]) -> Annotation:
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def _coco(images: Collection[int], names: Sequence[str], first_category: int, annotations: list[Annotation]) -> COCO:
    for identity, item in enumerate(annotations, start=1):  # from 1: an id of 0 means "unmatched" to COCO
        item["id"] = identity
    return COCO(
        {
            "images": [{"id": image_id} for image_id in sorted(images)],
            "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=first_category)],
            "annotations": annotations,
        }
    )


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _silent(*_: object) -> None:
    """The library reports its progress in prose; the caller prints its own table."""
