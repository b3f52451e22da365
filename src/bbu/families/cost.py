"""What a sample costs, by which packs are balanced over ranks. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class CostModel:
    """Forward FLOPs of a sample; the backward pass takes twice as many, so shares stay the same (docs/packing.md).

    cost = token · T + token_pair · T² + Σ over photos (photo + patch · p + patch_pair · p²) for T tokens and p patches.
    """

    token: float
    token_pair: float
    patch: float
    patch_pair: float
    photo: float = 0.0  # of a photo of any size

    def text(self, tokens: np.ndarray) -> np.ndarray:
        """Language model, for samples of so many tokens."""
        return self.token * tokens + self.token_pair * tokens.astype("float64") ** 2

    def photos(self, patches: np.ndarray) -> np.ndarray:
        """Vision tower and merger, for photos of so many patches."""
        return self.photo + self.patch * patches + self.patch_pair * patches.astype("float64") ** 2
