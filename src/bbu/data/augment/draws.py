"""Random numbers for one photo: a stream for each operation, so that turning one on leaves the others' draws alone."""

from __future__ import annotations

from functools import cached_property

import numpy as np

# These five are drawn together, always all of them; the operations below have a stream each. Append only:
# another place or number is another view for every run that names a seed.
_FIRST = ("quarter_turns", "flip_horizontal", "flip_vertical", "brightness", "contrast")
_STREAMS = {
    "saturation": 1, "hue": 2, "sharpness": 3, "blur": 4, "grey": 5, "jpeg": 6, "rotate": 7, "scale": 8, "crop": 9,
    "object_crop": 10, "mosaic": 11, "copy_paste": 12,
}  # fmt: skip


class Draws:
    """What chance says about one photo.

    Args:
        key: run seed, the augmentation's own number, epoch, sample number, place in the sample.
    """

    def __init__(self, key: tuple[int, ...]) -> None:
        self.key = key

    def stream(self, operation: str) -> np.random.Generator:
        """The operation's random numbers, from their beginning."""
        return np.random.default_rng((*self.key, _STREAMS[operation]))

    def number(self, operation: str) -> float:
        """The operation's first number, in [0, 1)."""
        if operation in _STREAMS:
            return float(self.stream(operation).random())
        return float(self._first[_FIRST.index(operation)])

    def spread(self, operation: str, width: float) -> float:
        """The same number, spread over [-width, width)."""
        return width * (2 * self.number(operation) - 1)

    @cached_property
    def _first(self) -> np.ndarray:
        return np.random.default_rng(self.key).random(len(_FIRST))
