"""Test-time augmentation: overlapping tiles for small objects, mirror images, and the merging of their detections.

Tiles beside the whole photo follow slicing-aided inference (SAHI, Akyol et al. 2022, arXiv:2202.06934). Boxes are xyxy
in displayed pixels, first of the view, then of the photo.

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bbu.geometry import iou, iou_matrix
from bbu.records import PredictedObject
from bbu.taxonomy import MirrorRules
from bbu.tiles import Size, Tiles, Window

if TYPE_CHECKING:
    from PIL import Image

SAME_IOU = 0.5  # boxes of two views with the same description and a higher IoU are one object
OTHER_IOU = 0.7  # the same for different descriptions; the higher score stays
CUT_PIXELS, CUT_SHARE = 4.0, 0.01  # a box within so many pixels, or this fraction of the side, of an inner border


@dataclass(frozen=True)
class View:
    """A window of a photo, possibly mirrored, as the model sees it.

    Args:
        window: the crop, in pixels of the photo.
        photo: width and height of the photo.
        mirrored: whether the crop is flipped left to right.
    """

    window: Window
    photo: Size
    mirrored: bool = False

    @property
    def size(self) -> Size:
        """Width and height of the window."""
        return self.window[2] - self.window[0], self.window[3] - self.window[1]

    def of(self, image: Image.Image) -> Image.Image:
        """The pixels of the view; the same image object if the view is the whole photo."""
        from PIL import ImageOps

        if self.window != (0, 0, *self.photo):
            image = image.crop(self.window)
        return ImageOps.mirror(image) if self.mirrored else image

    def to_photo(self, found: Sequence[PredictedObject]) -> list[PredictedObject]:
        """Boxes of the view → boxes of the photo. Boxes that touch an inner border are dropped; captions stay."""
        if not found:
            return []
        boxes = np.array([item.box for item in found], dtype=np.float64)
        left, top = self.window[:2]
        if self.mirrored:
            boxes = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + np.array([self.size[0], 0] * 2)
        cut, boxes = self._cut(boxes), boxes + np.array([left, top] * 2)
        return [
            replace(item, box=tuple(box.tolist()))
            for item, box, is_cut in zip(found, boxes, cut, strict=True)
            if not is_cut
        ]

    def _cut(self, boxes: np.ndarray) -> np.ndarray:
        """Which (n, 4) boxes of the unmirrored view touch a border that is not the photo's own."""
        left, top, right, bottom = self.window
        margins = np.maximum(CUT_PIXELS, CUT_SHARE * np.array(self.size))
        inner_low = np.array([left > 0, top > 0])
        inner_high = np.array([right < self.photo[0], bottom < self.photo[1]])
        low = (boxes[:, :2] <= margins) & inner_low
        high = (boxes[:, 2:] >= np.array(self.size) - margins) & inner_high
        return np.asarray((low | high).any(axis=1))


def views_of(size: Size, tiles: Tiles | None, flips: bool, max_pixels: int) -> list[View]:
    """The whole photo, then its tiles; with ``flips`` each of them also mirrored."""
    windows = [(0, 0, *size), *(tiles.windows(size, max_pixels) if tiles else ())]
    return [View(window, size, mirrored) for window in windows for mirrored in ((False, True) if flips else (False,))]


# ---------------------------------------------------------------- merging


def merge_views(
    views: Sequence[View], found: Sequence[Sequence[PredictedObject]], rules: MirrorRules
) -> list[PredictedObject]:
    """Merge the detections of a photo's views, in pixels of the photo, best score first.

    Args:
        found: detections of each view, in its own pixels.
        rules: how mirroring changes descriptions that name a side.
    """
    windows: dict[Window, list[list[PredictedObject]]] = {}
    for view, items in zip(views, found, strict=True):
        windows.setdefault(view.window, []).append(view.to_photo(items))
    return merge_windows(
        [fuse_mirrored(pair[0], pair[1], rules) if len(pair) > 1 else pair[0] for pair in windows.values()]
    )


def fuse_mirrored(
    plain: Sequence[PredictedObject], mirrored: Sequence[PredictedObject], rules: MirrorRules
) -> list[PredictedObject]:
    """Weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302) of a view's detections and its mirror image's.

    Both are in pixels of the photo; ``mirrored`` still has the descriptions of the mirror image. Boxes with the same
    description and an IoU above SAME_IOU are paired, best IoU first, and become their mean, weighted by score. Scores
    are averaged, with 0 for a missing partner. If a description forbids mirroring (``unless_words``), ``plain`` is
    returned.
    """
    if not rules.allows("horizontal", (item.desc for item in (*plain, *mirrored))):
        return list(plain)
    turned = [replace(item, desc=rules.swap(item.desc, "horizontal")) for item in mirrored]
    pairs = _pairs(plain, turned)
    alone = [item for index, item in enumerate(plain) if index not in pairs]
    alone += [item for index, item in enumerate(turned) if index not in pairs.values()]
    halved = [replace(item, score=item.score / 2, objectness=item.objectness / 2) for item in alone]
    return [_mean(plain[a], turned[b]) for a, b in pairs.items()] + halved


def _pairs(one: Sequence[PredictedObject], other: Sequence[PredictedObject]) -> dict[int, int]:
    """Indices of ``one`` → indices of ``other`` that are the same object."""
    if not one or not other:
        return {}
    ones_R4, others_R4 = (np.array([item.box for item in items], dtype=np.float64) for items in (one, other))
    overlap_RR = iou_matrix(ones_R4, others_R4) * [[a.desc == b.desc for b in other] for a in one]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for place in np.argsort(-overlap_RR, axis=None, kind="stable"):
        a, b = divmod(int(place), len(other))
        if overlap_RR[a, b] <= SAME_IOU:
            break
        if a not in pairs and b not in taken:
            pairs[a] = b
            taken.add(b)
    return pairs


def _mean(one: PredictedObject, other: PredictedObject) -> PredictedObject:
    """One object from two detections of it; everything but box and scores is taken from the higher-scored one."""
    total = one.score + other.score
    weight = one.score / total if total > 0 else 0.5  # divide first: products with a tiny score lose digits
    box = (weight * np.array(one.box) + (1 - weight) * np.array(other.box)).tolist()
    best = one if one.score >= other.score else other
    confidence = {name: (getattr(one, name) + getattr(other, name)) / 2 for name in ("score", "objectness")}
    return replace(best, box=tuple(box), **confidence)


def merge_windows(groups: Sequence[Sequence[PredictedObject]]) -> list[PredictedObject]:
    """Merge detections of several windows of a photo, best score first.

    A box is suppressed by a higher-scored one of another window with the same description and an IoU above SAME_IOU, or
    with any description and an IoU above OTHER_IOU. Boxes of one window never suppress each other.
    """
    if len(groups) == 1:
        return sorted(groups[0], key=lambda item: -item.score)
    ranked = sorted(
        ((item, owner) for owner, group in enumerate(groups) for item in group), key=lambda pair: -pair[0].score
    )
    boxes = np.array([item.box for item, _ in ranked], dtype=np.float64).reshape(-1, 4)
    descs = np.array([item.desc for item, _ in ranked], dtype=object)
    owners = np.array([owner for _, owner in ranked])
    stays = np.ones(len(ranked), dtype=bool)
    for index in range(len(ranked)):
        if stays[index]:
            rest = slice(index + 1, None)
            limit = np.where(descs[rest] == descs[index], SAME_IOU, OTHER_IOU)
            stays[rest] &= (iou(boxes[index], boxes[rest]) <= limit) | (owners[rest] == owners[index])
    return [item for (item, _), kept in zip(ranked, stays, strict=True) if kept]
