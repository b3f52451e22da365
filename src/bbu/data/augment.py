"""Random views of a training photo; boxes follow through the geometry's affine map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from bbu.config import AugmentConfig
from bbu.geometry import IDENTITY, Affine, compose, displayed_size, exif_affine

# The eight ways to turn and mirror a photo, numbered as EXIF orientations, as Pillow does them.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    6: Image.Transpose.ROTATE_270,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class View:
    """One random view: steps (EXIF numbers) done in order, and factors of brightness and contrast."""

    steps: tuple[int, ...] = ()
    brightness: float = 1.0
    contrast: float = 1.0

    def geometry(self, width: int, height: int) -> tuple[Affine, tuple[int, int]]:
        """Displayed → canvas map and the canvas's (width, height)."""
        affine, size = IDENTITY, (width, height)
        for step in self.steps:
            affine = compose(affine, exif_affine(step, *size))
            size = displayed_size(*size, step)
        return affine, size

    def apply(self, image: Image.Image) -> Image.Image:
        """The photo as this view shows it."""
        for step in self.steps:
            image = image.transpose(_TRANSPOSE[step])
        if self.brightness != 1.0:
            image = ImageEnhance.Brightness(image).enhance(self.brightness)
        if self.contrast != 1.0:
            image = ImageEnhance.Contrast(image).enhance(self.contrast)
        return image


def draw_view(config: AugmentConfig, seed: tuple[int, ...]) -> View:
    """The view for a seed such as (run seed, epoch, photo): the same on every worker and every rerun."""
    random = np.random.default_rng(seed)
    steps: list[int] = []
    turn, flip_x, flip_y, brightness, contrast = random.random(5)
    if config.quarter_turns and (number := int(turn * 4)):
        steps.append({1: 6, 2: 3, 3: 8}[number])
    if flip_x < config.flip_horizontal:
        steps.append(2)
    if flip_y < config.flip_vertical:
        steps.append(4)
    return View(tuple(steps), 1 + config.brightness * (2 * brightness - 1), 1 + config.contrast * (2 * contrast - 1))
