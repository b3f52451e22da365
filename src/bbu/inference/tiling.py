"""Several looks at one photo: overlapping tiles for small parts, mirror images for second thoughts, and one answer.

Tiles beside the whole photo follow slicing-aided inference (SAHI, Akyol et al. 2022, arXiv:2202.06934). Boxes are xyxy
in displayed pixels, first of the view, then of the photo.

Shapes: R rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bbu.errors import UserError
from bbu.geometry import iou, iou_matrix
from bbu.records import PredictedObject
from bbu.taxonomy import MirrorRules

if TYPE_CHECKING:
    from PIL import Image

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the photo
Size = tuple[int, int]  # width, height

SAME_IOU = 0.5  # two views' boxes with the same words that overlap by more are one part
OTHER_IOU = 0.7  # with different words: only boxes that hardly differ; the surer one stays
CUT_PIXELS, CUT_SHARE = 4.0, 0.01  # a box this near an inner border of its tile (or share of its side) is cut by it
SMALLEST_TILE = 56  # pixels a side


@dataclass(frozen=True)
class Tiles:
    """How a photo is cut; the whole photo is always looked at too.

    Args:
        columns, rows: of the grid; 0 and 0: as many as ``size`` asks for.
        size: pixels a side of a tile at most, for a grid that is not given; 0: as large as the model sees unshrunk.
        overlap: least share of a tile that its neighbour shows too; a part no longer than that is whole in one.

    Raises:
        UserError: a value that makes no tiles.
    """

    columns: int = 0
    rows: int = 0
    size: int = 0
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.5:
            raise UserError(f"tiles: overlap must lie in [0, 0.5], is {self.overlap}")
        if self.size and self.size < SMALLEST_TILE:
            raise UserError(f"tiles: a side must be at least {SMALLEST_TILE} pixels, is {self.size}")
        if min(self.columns, self.rows) < 0 or (self.columns == 0) != (self.rows == 0):
            raise UserError(f"tiles: a grid needs columns and rows from 1, is {self.columns}x{self.rows}")
        if self.size and self.columns:
            raise UserError("tiles: give either a grid or the size of a tile")

    @classmethod
    def parse(cls, text: str, size: int = 0, overlap: float = overlap) -> Tiles:
        """``auto`` or columns x rows, as in ``3x2``.

        Raises:
            UserError: neither, or a value that makes no tiles.
        """
        if text == "auto":
            return cls(size=size, overlap=overlap)
        found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
        if found is None:
            raise UserError(f"tiles {text!r}: must be auto, or columns x rows from 1 to 99, such as 3x2")
        return cls(int(found[1]), int(found[2]), size, overlap)

    def windows(self, size: Size, max_pixels: int) -> list[Window]:
        """The tiles of a photo, row by row; none where a single one would show all of it.

        Args:
            size: width and height of the photo.
            max_pixels: most pixels that the model sees of one view.
        """
        width, height = size
        if self.columns:
            across, down = (self._cut(length, n) for length, n in ((width, self.columns), (height, self.rows)))
        elif not self.size and width * height <= max_pixels:
            return []
        else:
            side = self.size or max(SMALLEST_TILE, math.isqrt(max_pixels))
            across, down = (self._spread(length, side) for length in (width, height))
        tiles = [(x1, y1, x2, y2) for y1, y2 in down for x1, x2 in across]
        return tiles if len(tiles) > 1 else []

    def _cut(self, length: int, count: int) -> list[tuple[int, int]]:
        """``count`` equal spans that share ``overlap`` of a span; fewer where a span would be too small."""
        count = max(1, min(count, length // SMALLEST_TILE))
        return _spans(length, count, math.ceil(length / (count - (count - 1) * self.overlap)))

    def _spread(self, length: int, side: int) -> list[tuple[int, int]]:
        """As few spans of ``side`` as cover the length with that overlap."""
        step = side * (1 - self.overlap)
        count = 1 if length <= side else 1 + math.ceil((length - side) / step)
        return _spans(length, count, min(side, length))


def _spans(length: int, count: int, side: int) -> list[tuple[int, int]]:
    """Spans of ``side``, the first and last flush with the ends."""
    starts = [0] if count == 1 else [round(number * (length - side) / (count - 1)) for number in range(count)]
    return [(start, start + side) for start in starts]


@dataclass(frozen=True)
class View:
    """A part of a photo as it is shown to the model.

    Args:
        window: what is cut out.
        photo: size of the photo.
        mirrored: whether it is then flipped left to right.
    """

    window: Window
    photo: Size
    mirrored: bool = False

    @property
    def size(self) -> Size:
        """Width and height of what is shown."""
        return self.window[2] - self.window[0], self.window[3] - self.window[1]

    def of(self, image: Image.Image) -> Image.Image:
        """The view of a photo; the photo itself where it shows all of it as it is."""
        from PIL import ImageOps

        if self.window != (0, 0, *self.photo):
            image = image.crop(self.window)
        return ImageOps.mirror(image) if self.mirrored else image

    def to_photo(self, found: Sequence[PredictedObject]) -> list[PredictedObject]:
        """Boxes of the view → boxes of the photo; words stay. Those that an inner border cuts are left out."""
        if not found:
            return []
        boxes = np.array([item.box for item in found], dtype=np.float64)
        left, top = self.window[:2]
        if self.mirrored:
            boxes = boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + np.array([self.size[0], 0] * 2)
        cut, boxes = self._cut(boxes), boxes + np.array([left, top] * 2)
        return [
            replace(item, box=tuple(box.tolist()))
            for item, box, gone in zip(found, boxes, cut, strict=True)
            if not gone
        ]

    def _cut(self, boxes: np.ndarray) -> np.ndarray:
        """Which (n, 4) boxes of the unmirrored view touch a border behind which the photo goes on."""
        left, top, right, bottom = self.window
        margins = np.maximum(CUT_PIXELS, CUT_SHARE * np.array(self.size))
        inner_low = np.array([left > 0, top > 0])
        inner_high = np.array([right < self.photo[0], bottom < self.photo[1]])
        low = (boxes[:, :2] <= margins) & inner_low
        high = (boxes[:, 2:] >= np.array(self.size) - margins) & inner_high
        return np.asarray((low | high).any(axis=1))


def views_of(size: Size, tiles: Tiles | None, flips: bool, max_pixels: int) -> list[View]:
    """What is looked at: the whole photo first, its tiles, and with ``flips`` each again as in a mirror."""
    windows = [(0, 0, *size), *(tiles.windows(size, max_pixels) if tiles else ())]
    return [View(window, size, mirrored) for window in windows for mirrored in ((False, True) if flips else (False,))]


# ---------------------------------------------------------------- one answer


def merge_views(
    views: Sequence[View], found: Sequence[Sequence[PredictedObject]], rules: MirrorRules
) -> list[PredictedObject]:
    """What all views of one photo show, in the photo's pixels, best score first.

    Args:
        found: boxes of each view, in its pixels.
        rules: what a mirror does to words.
    """
    windows: dict[Window, list[list[PredictedObject]]] = {}
    for view, items in zip(views, found, strict=True):
        windows.setdefault(view.window, []).append(view.to_photo(items))
    return merge_windows(
        [fuse_mirrored(looks[0], looks[1], rules) if len(looks) > 1 else looks[0] for looks in windows.values()]
    )


def fuse_mirrored(
    plain: Sequence[PredictedObject], mirrored: Sequence[PredictedObject], rules: MirrorRules
) -> list[PredictedObject]:
    """One list from a view and its mirror image, both in the photo's pixels, the latter with the words it was given.

    Weighted boxes fusion of two lists (Solovyev et al. 2021, arXiv:1910.13302): boxes with the same words that overlap
    by more than SAME_IOU, best overlap first and one to one, become their mean, weighted by score; confidences are
    means too, 0 standing for the look that does not see the part. Where ``unless_words`` keeps the photo from being
    mirrored, since a description names a side, the plain list is returned.
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
    """Boxes of ``one`` → boxes of ``other`` that are the same part."""
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
    """One part from two looks at it; whatever else is said of it is the surer one's."""
    total = one.score + other.score
    share = one.score / total if total > 0 else 0.5  # first, since products with a minute score lose digits
    box = (share * np.array(one.box) + (1 - share) * np.array(other.box)).tolist()
    surer = one if one.score >= other.score else other
    confidence = {name: (getattr(one, name) + getattr(other, name)) / 2 for name in ("score", "objectness")}
    return replace(surer, box=tuple(box), **confidence)


def merge_windows(groups: Sequence[Sequence[PredictedObject]]) -> list[PredictedObject]:
    """One list, best score first, from boxes of the same photo seen through several windows.

    A box goes where a surer one of another window overlaps it by more than SAME_IOU and has the same words, or by
    more than OTHER_IOU. Boxes of one window leave each other alone: there, the model has told the parts apart.
    """
    if len(groups) == 1:
        return sorted(groups[0], key=lambda item: -item.score)
    ranked = sorted(
        ((item, owner) for owner, group in enumerate(groups) for item in group), key=lambda pair: -pair[0].score
    )
    boxes = np.array([item.box for item, _ in ranked], dtype=np.float64).reshape(-1, 4)
    words = np.array([item.desc for item, _ in ranked], dtype=object)
    owners = np.array([owner for _, owner in ranked])
    stays = np.ones(len(ranked), dtype=bool)
    for index in range(len(ranked)):
        if stays[index]:
            rest = slice(index + 1, None)
            limit = np.where(words[rest] == words[index], SAME_IOU, OTHER_IOU)
            stays[rest] &= (iou(boxes[index], boxes[rest]) <= limit) | (owners[rest] == owners[index])
    return [item for (item, _), kept in zip(ranked, stays, strict=True) if kept]
