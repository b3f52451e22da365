"""Placement of number tags: near their objects, clear of each other, inside the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def place_tags(anchors: Sequence[Box], sizes: Sequence[tuple[int, int]], field: Box) -> list[Box]:
    """A spot for each tag, near its anchor, inside ``field`` and clear of all other tags.

    The nearest spot wins, then the one that hides least of other anchors. Tags overlap only if ``field`` has no room
    left, and never leave it.

    Args:
        anchors: (n) xyxy boxes that the tags belong to.
        sizes: (n) width and height of the tags.
        field: xyxy that the tags must stay in; larger than any tag.
    """
    placed: list[Box] = []
    for index, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
        others = [box for at, box in enumerate(anchors) if at != index]
        free = _first_free(_rings(anchor, size), size, field, placed)
        placed.append(min(free, key=partial(_cost, anchor=anchor, others=others)))
    return placed


def _first_free(
    rings: Iterable[Sequence[Point]], size: tuple[int, int], field: Box, placed: Sequence[Box]
) -> list[Box]:
    """The clear spots of the nearest ring that has some; if no ring has, all spots of the nearest."""
    nearest: list[Box] = []
    for ring in rings:
        spots = [_inside(spot, size, field) for spot in ring]
        nearest = nearest or spots
        clear = [spot for spot in spots if not any(shared_area(spot, tag) for tag in placed)]
        if clear:
            return clear
    return nearest


def _rings(anchor: Box, size: tuple[int, int]) -> Iterator[list[Point]]:
    """Top-left corners to try: first around the anchor, then on rings of growing distance."""
    (x1, y1, x2, y2), (width, height) = anchor, size
    left, right = x1 - width, x2 - width
    corners = [(x1, y1 - height), (right, y1 - height), (x1, y2), (right, y2)]
    sides = [(left, y1), (x2, y1), (left, y2 - height), (x2, y2 - height)]
    inside = [(x1, y1), (right, y1), (x1, y2 - height), (right, y2 - height)]
    yield corners + sides + inside
    middle_x, middle_y = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
    turns = [turn * math.pi / 8 for turn in range(16)]
    for reach in range(height, 80 * height, height):
        yield [(middle_x + reach * math.cos(turn), middle_y + reach * math.sin(turn)) for turn in turns]


def _inside(spot: Point, size: tuple[int, int], field: Box) -> Box:
    x = min(max(round(spot[0]), field[0]), field[2] - size[0])
    y = min(max(round(spot[1]), field[1]), field[3] - size[1])
    return x, y, x + size[0], y + size[1]


def shared_area(a: Box, b: Box) -> float:
    """Area common to two xyxy boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _cost(spot: Box, anchor: Box, others: Sequence[Box]) -> float:
    """Distance to the anchor, plus the hidden area of the anchor and its neighbours."""
    away_x = max(anchor[0] - spot[2], spot[0] - anchor[2], 0.0)
    away_y = max(anchor[1] - spot[3], spot[1] - anchor[3], 0.0)
    size = (spot[2] - spot[0]) * (spot[3] - spot[1])
    # a box that encloses this one (a unit around its screws) is hidden by every choice
    hidden = sum(shared_area(spot, box) for box in others if shared_area(box, anchor) < shared_area(anchor, anchor))
    return math.hypot(away_x, away_y) + 30 * hidden / size + 15 * shared_area(spot, anchor) / size
