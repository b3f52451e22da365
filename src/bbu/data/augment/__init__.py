"""Random views of training photos; every box, polygon, line and description changes with its pixels.

augmenter.py: what is done to which photo, and when. draws.py: random numbers. views.py: turns, flips, zoom, crops.
colours.py: light, colour, sharpness. mixing.py: mosaic and copy-paste. parts.py: where a part goes, and the rule for
parts at a border. See docs/augmentation.md.
"""

from bbu.data.augment.augmenter import Augmenter

__all__ = ["Augmenter"]
