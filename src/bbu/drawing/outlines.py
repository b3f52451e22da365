"""Outlines of objects: solid or dashed, with a dark rim that shows on any photo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import ImageDraw

from bbu.drawing.palette import Colour
from bbu.drawing.tags import Box, Point

Dash = tuple[float, float]  # pixels on, pixels off


def corners(box: Box) -> tuple[Point, ...]:
    """Outline of an xyxy box."""
    x1, y1, x2, y2 = box
    return (x1, y1), (x2, y1), (x2, y2), (x1, y2)


def draw_path(
    draw: ImageDraw.ImageDraw,
    path: Sequence[Point],
    colour: Colour,
    dash: Dash | None = None,
    *,
    width: int = 3,
    rim: int = 2,
    phase: float = 0,
) -> None:
    """Draw a line.

    Args:
        rim: how much wider the dark line below it is, in pixels; 0 leaves it out.
        phase: where the dashes of each side start, in pixels.
    """
    pieces = _dashed(path, dash, phase)
    for piece in pieces if rim else ():
        draw.line(piece, fill=(0, 0, 0), width=width + rim)
    for piece in pieces:
        draw.line(piece, fill=colour, width=width)


def _dashed(path: Sequence[Point], dash: Dash | None, phase: float) -> list[list[Point]]:
    """Cut a path into dashes; None leaves it whole."""
    if dash is None:
        return [list(path)]
    pieces = []
    for (x1, y1), (x2, y2) in pairwise(path):
        length = math.hypot(x2 - x1, y2 - y1)
        if length == 0:
            continue
        for start in np.arange(phase, length, sum(dash)):
            a, b = start / length, min(start + dash[0], length) / length
            pieces.append([(x1 + (x2 - x1) * t, y1 + (y2 - y1) * t) for t in (a, b)])
    return pieces
