"""How photos become patch rows: resize rule, grid, token counts, patches. Imports torch only to make patches."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu.geometry import MAX_ASPECT_RATIO, Grid, ImageGeometry

if TYPE_CHECKING:
    import torch
    from PIL import Image


class PhotoPlan(ABC):
    """A family's photo preprocessing: sizes and token counts follow from a photo's size alone.

    Can be pickled for loader processes.

    Attributes:
        min_pixels, max_pixels: limits of a resized photo's area.
        patch_size: side of a patch in pixels of the resized photo.
        patch_width: values in a patch row.
        token_size: side in pixels of the square that a token of the coarsest vision level covers.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int
    patch_width: int
    token_size: int

    @abstractmethod
    def plan(self, width: int, height: int) -> ImageGeometry:
        """How a photo of this size is resized for the model.

        Raises:
            ValueError: the model cannot process such a photo.
        """

    @abstractmethod
    def grid(self, geometry: ImageGeometry) -> Grid:
        """Patch grid (frames, rows, columns) of a planned photo."""

    @abstractmethod
    def text_tokens(self, patches: Any) -> Any:
        """Number of image tokens in the text for this many patches of a photo: int, array or tensor, elementwise."""

    @abstractmethod
    def most_patches(self, width: int, height: int) -> int:
        """Upper bound of the patches of any crop of a photo of this size, also after a quarter turn."""

    @abstractmethod
    def longest_side(self, width: int, height: int, *, cropped: bool) -> int:
        """Longest side of such a photo after the resize, in pixels; with ``cropped`` a bound for any crop of it."""

    @abstractmethod
    def patchify(
        self, images: Sequence[Image.Image], geometries: Sequence[ImageGeometry]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Photos → (P, patch_width) float32 patch rows, (I, 3) int64 patch grid of each."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """All settings that patch values depend on besides the photo and its size."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the preprocessor files of a model folder."""

    def with_max_pixels(self, max_pixels: int) -> PhotoPlan:
        """A copy with another area limit, for estimates."""
        other = copy.copy(self)
        other.max_pixels = max_pixels
        return other


class MergedPlan(PhotoPlan):
    """Resizes photos to multiples of patch × merge; merge × merge patches make a token (Qwen2-VL and successors).

    Args:
        image_processor: transformers' Qwen2VLImageProcessor, or one with the same interface; its size limits are set.
    """

    def __init__(self, image_processor: Any, min_pixels: int, max_pixels: int) -> None:
        image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        self.image_processor, self.min_pixels, self.max_pixels = image_processor, min_pixels, max_pixels
        self.patch_size, self.merge = int(image_processor.patch_size), int(image_processor.merge_size)
        self.token_size = self.patch_size * self.merge
        self.patch_width = 3 * int(image_processor.temporal_patch_size) * self.patch_size**2

    def plan(self, width: int, height: int) -> ImageGeometry:
        return plan_resize(
            width, height, factor=self.token_size, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )

    def grid(self, geometry: ImageGeometry) -> Grid:
        return 1, geometry.model_height // self.patch_size, geometry.model_width // self.patch_size

    def text_tokens(self, patches: Any) -> Any:
        return patches // self.merge**2

    def most_patches(self, width: int, height: int) -> int:
        """A quarter turn does not change the number; a crop may have more than the shrunk whole photo."""
        factor = self.token_size
        plan = self.plan(width, height)
        tokens = plan.model_width * plan.model_height // factor**2
        rounded = max(1, round(width / factor)) * max(1, round(height / factor))
        return int(max(tokens, min(rounded, self._largest), self._grown)) * self.merge**2

    @property
    def _largest(self) -> int:
        """Most tokens of any photo that is shrunk to max_pixels; a very long one may be a single row of tokens."""
        line = math.sqrt(self.max_pixels * MAX_ASPECT_RATIO) / self.token_size
        return math.floor(max(self.max_pixels / self.token_size**2, line))

    @property
    def _grown(self) -> int:
        """Most tokens of any photo that is enlarged to min_pixels; sides are rounded up, hence (a + 1)(b + 1)."""
        side, shape = math.sqrt(max(self.min_pixels, 1)) / self.token_size, math.sqrt(MAX_ASPECT_RATIO)
        return math.floor(side**2 + side * (shape + 1 / shape) + 1)

    def longest_side(self, width: int, height: int, *, cropped: bool) -> int:
        plan, factor = self.plan(width, height), self.token_size
        longest = max(plan.model_width, plan.model_height)
        if not cropped:
            return longest
        # a crop that is not shrunk, or a very long one that is enlarged to min_pixels
        sliver = math.sqrt(self.min_pixels * MAX_ASPECT_RATIO) + factor
        return max(longest, width + factor, height + factor, math.ceil(sliver))

    def patchify(
        self, images: Sequence[Image.Image], geometries: Sequence[ImageGeometry]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._patchifier(images, geometries)  # type: ignore[no-any-return]

    @cached_property
    def _patchifier(self) -> Any:
        from bbu.families.patches import Patchifier

        return Patchifier(self.image_processor)

    def facts(self) -> dict[str, str]:
        names = (
            "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std", "rescale_factor", "resample",
        )  # fmt: skip
        return {name: str(getattr(self.image_processor, name, None)) for name in names}

    def save(self, folder: Path) -> None:
        self.image_processor.save_pretrained(folder)


def plan_resize(width: int, height: int, *, factor: int, min_pixels: int, max_pixels: int) -> ImageGeometry:
    """Geometry of a photo under ``smart_resize``."""
    model_height, model_width = smart_resize(height, width, factor, min_pixels, max_pixels)
    return ImageGeometry(width, height, model_width, model_height)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Model size of an image: sides are multiples of ``factor`` (patch × merge), area in [min_pixels, max_pixels].

    Must equal the rule of transformers' image processor, which makes the patches.

    Returns:
        (height, width) in pixels.

    Raises:
        ValueError: an empty image, or one with an aspect ratio over MAX_ASPECT_RATIO.
    """
    if min(height, width) < 1:
        raise ValueError(f"image size {width}x{height} has no pixels")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"image size {width}x{height}: aspect ratio is over {MAX_ASPECT_RATIO}; crop it or split it into tiles"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < max(min_pixels, 1):  # including sides below factor / 2, which round to 0
        grow = math.sqrt(max(min_pixels, 1) / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width
