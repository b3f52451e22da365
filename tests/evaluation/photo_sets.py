"""Small annotated and predicted photos for tests: by hand, at random, and as hypothesis strategies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row

WIDTH, HEIGHT = 1000, 800
DESCRIPTIONS = ("screw/tight", "screw/loose", "label")


def photo(name: str, *objects: tuple[Sequence[float], str]) -> Row:
    """A row from (box, description) pairs."""
    rows = tuple(ObjectRow(desc, "bbox_2d", tuple(map(float, box))) for box, desc in objects)
    return Row((name,), rows, WIDTH, HEIGHT)


def guess(name: str, *objects: tuple[Any, ...]) -> PredictionRow:
    """A prediction row from (box, description, score[, objectness]) tuples."""
    found = []
    for box, desc, score, *rest in objects:
        x1, y1, x2, y2 = map(float, box)
        found.append(PredictedObject((x1, y1, x2, y2), desc, score, *(rest or (score,))))
    return PredictionRow((name,), WIDTH, HEIGHT, tuple(found))


def cell(n: int) -> tuple[int, int, int, int]:
    """The n-th of a row of boxes that do not touch."""
    return 100 * n, 0, 100 * n + 50, 50


def random_rows(seed: int, photos: int, most: int = 6) -> tuple[list[Row], list[PredictionRow]]:
    """Photos whose objects are found or not, once or twice, with right or wrong captions; no two scores alike."""
    draw = random.Random(seed)
    truth, found = [], []
    for number in range(photos):
        objects, guesses = [], []
        for n in range(draw.randrange(most + 1)):
            desc = draw.choice(DESCRIPTIONS)
            objects.append((cell(n), desc))
            for _ in range(draw.choice((0, 1, 1, 1, 2))):
                shift = draw.uniform(-12, 12)
                caption = desc if draw.random() < 0.7 else draw.choice((*DESCRIPTIONS, "noise"))
                x1, y1, x2, y2 = cell(n)
                guesses.append(((x1 + shift, y1, x2 + shift, y2), caption, draw.random(), draw.random()))
        if draw.random() < 0.3:
            guesses.append(((10, 300, 90, 390), draw.choice(DESCRIPTIONS), draw.random(), draw.random()))
        truth.append(photo(f"{number:04}.jpg", *objects))
        found.append(guess(f"{number:04}.jpg", *guesses))
    return truth, found


# Few positions, descriptions and scores: overlaps and ties must be common.
_side = st.integers(0, 6)
_boxes = st.tuples(_side, _side, st.integers(1, 4), st.integers(1, 4)).map(
    lambda b: (b[0] * 20, b[1] * 20, (b[0] + b[2]) * 20, (b[1] + b[3]) * 20)
)
_descriptions = st.sampled_from(DESCRIPTIONS)
_steps = st.integers(0, 4).map(lambda n: n / 4)
_truths = st.lists(st.tuples(_boxes, _descriptions), max_size=4)
_guesses = st.lists(st.tuples(_boxes, _descriptions | st.just("noise"), _steps, _steps), max_size=6)
photo_sets = st.lists(st.tuples(_truths, _guesses), min_size=1, max_size=3).map(
    lambda photo_set: (
        [photo(f"{index}.jpg", *objects) for index, (objects, _) in enumerate(photo_set)],
        [guess(f"{index}.jpg", *found) for index, (_, found) in enumerate(photo_set)],
    )
)
