"""Photometric augmentation: light, colour, sharpness and JPEG artefacts. Boxes do not move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import ImageFilter

from bbu.config import AugmentConfig
from bbu.data.augment.draws import Draws

if TYPE_CHECKING:
    from PIL import Image

_ADJUSTED = ("brightness", "contrast", "saturation", "sharpness")  # by a factor around 1


def change_colours(image: Image.Image, config: AugmentConfig, draws: Draws, strength: float) -> Image.Image:
    """The photo with random photometric changes; the same image object where none applies.

    The order is that of a camera: light, lens, file.
    """
    from torchvision.transforms.v2 import functional

    for name in _ADJUSTED:
        if width := getattr(config, name) * strength:
            image = getattr(functional, f"adjust_{name}")(image, 1 + draws.spread(name, width))
    if width := config.hue * strength:
        image = functional.adjust_hue(image, draws.spread("hue", width))
    if config.grey and draws.number("grey") < config.grey * strength:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    if config.blur and (random := draws.stream("blur")).random() < config.blur * strength:
        # Pillow blurs in integers: the same result with any number of threads, and faster than v2's convolution
        least, most = config.blur_sigma
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(least, most)))
    if config.jpeg and (random := draws.stream("jpeg")).random() < config.jpeg * strength:
        worst, best = config.jpeg_quality
        image = functional.jpeg(image, int(random.integers(worst, best + 1)))
    return image
