"""Protected fibre runs: arcs in a corrugated tube or in spiral armour.

Shapes: R rows.
"""

from __future__ import annotations

import math

import numpy as np

from data_conversion.cabinet.brush import Brush, Point, pick, shade

TUBES = [(214, 214, 210), (44, 44, 48), (206, 120, 44), (128, 132, 138)]
STEELS = [(150, 154, 160), (112, 116, 124), (178, 172, 150), (70, 74, 82)]
VERTICES = 9  # annotated points along a run


def arc(rng: np.random.Generator, radius: float) -> list[Point]:
    """A compact bend around (0, 0) of VERTICES points: a hook, a half loop or most of a ring."""
    sweep = rng.uniform(0.7, 1.45) * math.pi
    start, squash = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1.0)
    steps = np.linspace(start, start + sweep, VERTICES)
    points_R2 = np.stack((radius * np.cos(steps), radius * squash * np.sin(steps)), axis=1)
    points_R2 -= (points_R2.min(axis=0) + points_R2.max(axis=0)) / 2
    return [(float(x), float(y)) for x, y in points_R2]


def _dense(points: list[Point], step: float) -> list[tuple[float, float, float]]:
    """x, y and direction every ``step`` pixels along a smooth curve through the vertices."""
    path_R2 = np.asarray(points)
    knots = np.linspace(0, 1, len(path_R2))
    fine = np.linspace(0, 1, 200)
    curve_R2 = np.stack([_smooth(fine, knots, path_R2[:, axis]) for axis in (0, 1)], axis=1)
    lengths = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(curve_R2, axis=0).T))))
    at = np.arange(0, lengths[-1], step)
    x, y = np.interp(at, lengths, curve_R2[:, 0]), np.interp(at, lengths, curve_R2[:, 1])
    return list(zip(x, y, np.arctan2(np.gradient(y), np.gradient(x)), strict=True))


def _smooth(at: np.ndarray, knots: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Cubic Hermite curve through ``values`` with central-difference slopes."""
    slopes = np.gradient(values, knots)
    i = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    span = knots[i + 1] - knots[i]
    t = (at - knots[i]) / span
    return np.asarray(
        (1 + 2 * t) * (1 - t) ** 2 * values[i]
        + t * (1 - t) ** 2 * span * slopes[i]
        + t * t * (3 - 2 * t) * values[i + 1]
        - t * t * (1 - t) * span * slopes[i + 1]
    )


def _reach(points: list[Point], thick: float) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return max(abs(x) for x in xs) + thick, max(abs(y) for y in ys) + thick


def corrugated_tube(rng: np.random.Generator, points: list[Point], thick: float) -> Brush:
    """Rounded rings across the run, which give a scalloped outline.

    Args:
        points: centre line of the run, in part pixels.
        thick: outer diameter in photo pixels.
    """
    colour = pick(rng, TUBES)
    brush = Brush(*_reach(points, thick))
    dark, light = shade(colour, 0.35) if sum(colour) > 240 else (14, 14, 16), shade(colour, 1.4)
    for x, y, turn in _dense(points, 1.5):
        brush.oval(x, y, 1.6, thick * 0.36, dark, turn)
    for x, y, turn in _dense(points, max(4.6, thick * 0.42)):
        brush.oval(x, y, thick * 0.15, thick * 0.5, colour, turn)
        brush.oval(x, y, thick * 0.06, thick * 0.28, light, turn)
    return brush


def spiral_armour(rng: np.random.Generator, points: list[Point], thick: float) -> Brush:
    """Slanting steel bands between two smooth edges. Arguments as corrugated_tube."""
    colour = pick(rng, STEELS)
    brush = Brush(*_reach(points, thick))
    for breadth, tone in ((0.4, 0.4), (0.31, 1.1)):
        for x, y, turn in _dense(points, 1.0):
            brush.oval(x, y, 1.2, thick * breadth, shade(colour, tone), turn)
    for x, y, turn in _dense(points, thick * 0.62)[1:-1]:
        slant = turn + math.radians(50)
        dx, dy = math.cos(slant) * thick * 0.46, math.sin(slant) * thick * 0.46
        brush.stroke([(x - dx, y - dy), (x + dx, y + dy)], shade(colour, 0.25), thick * 0.13)
        ox, oy = math.cos(turn) * thick * 0.16, math.sin(turn) * thick * 0.16
        light = [(x - dx * 0.6 + ox, y - dy * 0.6 + oy), (x + dx * 0.6 + ox, y + dy * 0.6 + oy)]
        brush.stroke(light, shade(colour, 1.6), thick * 0.1)
    return brush
