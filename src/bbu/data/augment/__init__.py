"""Random views of training photos; every box, polygon, line and description changes with its pixels.

augmenter.py: augments the photos of a sample. draws.py: per-photo random streams. views.py: turns, flips, zoom, crops.
colours.py: light, colour, sharpness. mixing.py: mosaic and copy-paste. objects.py: where objects go, and the rule for
objects at a border. See docs/augmentation.md.
"""

from bbu.data.augment.augmenter import Augmenter

__all__ = ["Augmenter"]
