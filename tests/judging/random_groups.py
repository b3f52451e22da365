"""Groups, rules and verdicts drawn at random, and small ones by hand."""

from __future__ import annotations

import random

from bbu.judging.groups import Group
from bbu.judging.rules import Rule
from bbu.records import PredictedObject, PredictionRow

DESCRIPTIONS = ("screw/loose", "screw/tight", "label", "label/torn", "baffle")


def seen(image: str, *objects: tuple[str, float]) -> PredictionRow:
    """A photo with these descriptions and scores."""
    boxes = [(10.0 * n, 0.0, 10.0 * n + 8, 8.0) for n in range(len(objects))]
    items = [PredictedObject(box, desc, score, score) for box, (desc, score) in zip(boxes, objects, strict=True)]
    return PredictionRow((image,), 640, 480, tuple(items))


def failed(image: str) -> PredictionRow:
    return PredictionRow((image,), error="is damaged")


def group(name: str, *photos: PredictionRow) -> Group:
    return Group(name, photos)


def random_rule(draw: random.Random, name: str) -> Rule:
    at_least, at_most = draw.choice([(None, 0), (None, 2), (1, None), (3, None), (1, 1), (2, 4)])
    return Rule(
        name,
        draw.choice(["screw", *DESCRIPTIONS]),
        at_least,
        at_most,
        draw.choice(["photo", "group"]),
        draw.choice([None, None, 0.5]),
    )


def random_groups(seed: int, count: int = 12) -> list[Group]:
    """Groups of 1 to 4 photos; scores are few, so that they tie."""
    draw = random.Random(seed)
    groups = []
    for n in range(count):
        photos = [
            seen(
                f"{n:02}-{photo}.jpg",
                *((draw.choice(DESCRIPTIONS), draw.randint(0, 10) / 10) for _ in range(draw.randint(0, 6))),
            )
            if draw.random() < 0.95
            else failed(f"{n:02}-{photo}.jpg")
            for photo in range(draw.randint(1, 4))
        ]
        groups.append(group(f"site-{n:02}", *photos))
    return groups
