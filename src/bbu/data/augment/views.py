"""Turns, flips, zoom and crops: torchvision's transforms v2 move the pixels, affine maps the objects.

Both measure from the edge of the photo, not from the centre of its first pixel; tests/data/augment/test_augmenter.py
paints objects and checks where their pixels went.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bbu.config import AugmentConfig
from bbu.data.augment.draws import Draws
from bbu.data.augment.objects import Size, place_objects
from bbu.data.photo import Photo
from bbu.geometry import IDENTITY, MAX_ASPECT_RATIO, Affine, compose, exif_affine
from bbu.records import ObjectRow
from bbu.taxonomy import MirrorRules

# Fills the area that a rotated or shrunk photo leaves empty. The image processor subtracts the mean colour of CLIP's
# training photos (Radford et al. 2021: 0.481, 0.458, 0.408), so the model sees almost 0 here.
GROUND = (123, 117, 104)
_TRIES = 5  # attempts at a crop that keeps an object
_ASPECT = 4 / 3  # a crop's aspect ratio is the photo's times 3/4 to 4/3


@dataclass(frozen=True)
class Mirrors:
    """Which turns and flips a photo allows.

    Args:
        rules: the taxonomy's mirror rules.
        descs: descriptions that must allow it; of the whole sample where all its photos get the same view.
    """

    rules: MirrorRules
    descs: Sequence[str]

    def allow(self, changes: Iterable[str]) -> bool:
        return all(self.rules.allows(change, self.descs) for change in changes)


def change_view(photo: Photo, config: AugmentConfig, mirrors: Mirrors, draws: Draws, strength: float) -> Photo:
    """The photo randomly turned, flipped, zoomed and cropped; the same object where none applies."""
    photo = _turn_and_flip(photo, config, mirrors, draws, strength)
    if config.rotate or config.scale or config.crop or config.object_crop:
        photo = _zoom_and_crop(photo, config, draws, strength)
    return photo


# ---------------------------------------------------------------- turns and flips: lossless


def _turn_and_flip(photo: Photo, config: AugmentConfig, mirrors: Mirrors, draws: Draws, strength: float) -> Photo:
    quarters, rest = divmod(4 * draws.number("quarter_turns"), 1)
    if config.quarter_turns and quarters and rest < strength:
        # a half turn equals both flips; after a quarter turn top and bottom are sides, which no word swap can express
        changes = ("horizontal", "vertical") if quarters == 2 else ("turn",)
        if mirrors.allow(changes):
            photo = _turn(photo, int(quarters), changes, mirrors.rules)
    for mirror in ("horizontal", "vertical"):
        wanted = draws.number(f"flip_{mirror}") < getattr(config, f"flip_{mirror}") * strength
        if wanted and mirrors.allow([mirror]):
            photo = _flip(photo, mirror, mirrors.rules)
    return photo


def _turn(photo: Photo, quarters: int, changes: Iterable[str], rules: MirrorRules) -> Photo:
    """Rotated clockwise by ``quarters`` times 90 degrees."""
    from torchvision.transforms.v2 import functional

    image = functional.rotate(photo.image, -90 * quarters, expand=True)
    return _moved(photo, image, exif_affine({1: 6, 2: 3, 3: 8}[quarters], *photo.image.size), rules, changes)


def _flip(photo: Photo, mirror: str, rules: MirrorRules) -> Photo:
    from torchvision.transforms.v2 import functional

    flip, orientation = {
        "horizontal": (functional.horizontal_flip, 2),
        "vertical": (functional.vertical_flip, 4),
    }[mirror]
    return _moved(photo, flip(photo.image), exif_affine(orientation, *photo.image.size), rules, (mirror,))


def _moved(photo: Photo, image: Any, affine: Affine, rules: MirrorRules, changes: Iterable[str]) -> Photo:
    objects = place_objects(photo.objects, affine, image.size, 0.0)
    for mirror in changes:
        if mirror != "turn":
            objects = tuple(replace(item, desc=rules.swap(item.desc, mirror)) for item in objects)
    return _changed(photo, image, objects, affine)


def _changed(photo: Photo, image: Any, objects: tuple[ObjectRow, ...], affine: Affine) -> Photo:
    to_canvas = None if photo.to_canvas is None else compose(photo.to_canvas, affine)
    return replace(photo, image=image, objects=objects, to_canvas=to_canvas)


# ---------------------------------------------------------------- zoom and crop: objects may be lost


def _zoom_and_crop(photo: Photo, config: AugmentConfig, draws: Draws, strength: float) -> Photo:
    """Rotated by a few degrees and zoomed about the centre, then cropped; skips a step that would drop all objects.

    Objects are clipped once, by the last canvas, whose border lies inside all others.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    image, objects, affine = photo.image, photo.objects, IDENTITY
    angle = draws.spread("rotate", config.rotate * strength) if config.rotate else 0.0
    zoom = 1 + (draws.spread("scale", config.scale * strength) if config.scale else 0.0)
    warp = about_the_middle(image.size, angle, zoom)
    left = place_objects(objects, warp, image.size, config.min_visible)
    if (angle or zoom != 1) and (left or not objects):
        image = functional.affine(
            image, angle, [0, 0], zoom, [0, 0], interpolation=InterpolationMode.BILINEAR, fill=list(GROUND)
        )
        objects, affine = left, warp
    window = _draw_window(photo, affine, config, draws, strength)
    if window is not None:
        x, y, width, height = window
        image = functional.crop(image, y, x, height, width)
        affine = compose(affine, (1, 0, -x, 0, 1, -y))
        objects = place_objects(photo.objects, affine, (width, height), config.min_visible)
    return photo if image is photo.image else _changed(photo, image, objects, affine)


def about_the_middle(size: Size, degrees: float, zoom: float) -> Affine:
    """Affine map of a clockwise rotation and a zoom about the centre of a photo."""
    x, y = size[0] / 2, size[1] / 2
    cos, sin = zoom * math.cos(math.radians(degrees)), zoom * math.sin(math.radians(degrees))
    return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _draw_window(
    photo: Photo, affine: Affine, config: AugmentConfig, draws: Draws, strength: float
) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of a crop that keeps an object if there is one; None for no crop."""
    around_object, anywhere = draws.stream("object_crop"), draws.stream("crop")
    if around_object.random() < config.object_crop * strength and photo.objects:
        random, centred = around_object, True
    elif anywhere.random() < config.crop * strength:
        random, centred = anywhere, False
    else:
        return None
    for _ in range(_TRIES):
        held = None
        if centred:
            chosen = photo.objects[int(random.integers(len(photo.objects)))]
            placed = place_objects([chosen], affine, photo.image.size, config.min_visible)
            if not placed:
                continue
            held = placed[0].box
        x, y, width, height = _window(random, photo.image.size, config.crop_area, held)
        shifted = compose(affine, (1, 0, -x, 0, 1, -y))
        if not photo.objects or place_objects(photo.objects, shifted, (width, height), config.min_visible):
            return x, y, width, height
    return None


def _window(
    random: np.random.Generator, size: Size, area: Sequence[float], around: tuple[float, ...] | None
) -> tuple[int, int, int, int]:
    """A random window of the photo that contains the whole box ``around``."""
    fraction, shape = random.uniform(area[0], area[1]), _ASPECT ** random.uniform(-1, 1)
    wanted = np.array(size) * np.sqrt([fraction * shape, fraction / shape])
    low, high = np.array(size), np.zeros(2, dtype=int)  # no box to contain
    if around is not None:
        low = np.floor(around[:2]).astype(int).clip(0, size)
        high = np.ceil(around[2:]).astype(int).clip(0, size)
    sides = np.ceil(np.maximum(wanted, high - low)).astype(int).clip(1, size)
    sides = np.maximum(sides, -(-sides[::-1] // MAX_ASPECT_RATIO)).clip(1, size)  # keep rounding within the ratio
    x, y = random.integers(np.maximum(high - sides, 0), np.minimum(low, size - sides) + 1)
    return int(x), int(y), int(sides[0]), int(sides[1])
