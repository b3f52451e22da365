"""Compute cost of a sample, for balancing packs over ranks. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class CostModel:
    """Forward FLOPs of a sample; the backward pass takes twice as many, so ratios are the same (docs/packing.md).

    cost = token · T + token_pair · T² + Σ over photos (photo + patch · p + patch_pair · p²) for T tokens and p patches.
    """

    token: float
    token_pair: float
    patch: float
    patch_pair: float
    photo: float = 0.0  # for each photo, whatever its size

    def text(self, tokens: np.ndarray) -> np.ndarray:
        """FLOPs of the language model for samples with this many tokens."""
        return self.token * tokens + self.token_pair * tokens.astype("float64") ** 2

    def photos(self, patches: np.ndarray) -> np.ndarray:
        """FLOPs of vision tower and merger for photos with this many patches."""
        return self.photo + self.patch * patches + self.patch_pair * patches.astype("float64") ** 2
