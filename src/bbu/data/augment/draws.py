"""Per-photo random streams: one for each operation, so that enabling an operation does not change the others' draws."""

from __future__ import annotations

from functools import cached_property

import numpy as np

# These five are always drawn together from one stream; each operation below has a stream of its own. Append only:
# changing a position or number changes the views of every run with a fixed seed.
_FIRST = ("quarter_turns", "flip_horizontal", "flip_vertical", "brightness", "contrast")
_STREAMS = {
    "saturation": 1, "hue": 2, "sharpness": 3, "blur": 4, "grey": 5, "jpeg": 6, "rotate": 7, "scale": 8, "crop": 9,
    "object_crop": 10, "mosaic": 11, "copy_paste": 12,
}  # fmt: skip


class Draws:
    """The random numbers of one photo.

    Args:
        key: run seed, stream number of augmentation, epoch, sample number, index of the photo in its sample.
    """

    def __init__(self, key: tuple[int, ...]) -> None:
        self.key = key

    def stream(self, operation: str) -> np.random.Generator:
        """A fresh generator at the start of the operation's stream."""
        return np.random.default_rng((*self.key, _STREAMS[operation]))

    def number(self, operation: str) -> float:
        """The operation's first number, in [0, 1)."""
        if operation in _STREAMS:
            return float(self.stream(operation).random())
        return float(self._first[_FIRST.index(operation)])

    def spread(self, operation: str, width: float) -> float:
        """``number`` mapped to [-width, width)."""
        return width * (2 * self.number(operation) - 1)

    @cached_property
    def _first(self) -> np.ndarray:
        return np.random.default_rng(self.key).random(len(_FIRST))
