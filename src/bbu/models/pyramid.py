"""Adapters: project vision and language features to the detector's width and add features from the pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

Grid = tuple[int, int]  # rows and columns of tokens

FIRST_WIDTH = 64  # channels of the stem, whose map has twice the finest level's resolution


class ResidualMLP(nn.Module):
    """LayerNorm and a linear projection, then a residual two-layer MLP: (…, in_width) → (…, width)."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width)
        self.project = nn.Linear(in_width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected = self.project(self.norm(features))
        return projected + self.mlp(projected)  # type: ignore[no-any-return]


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of (I, D, Y, Z) maps, so a position's result depends on no other position."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvolutionBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            MapNorm(width), nn.Conv2d(width, inner, 3, padding=1), nn.GELU(), nn.Conv2d(inner, width, 3, padding=1)
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.layers(maps)  # type: ignore[no-any-return]


class LocalPyramid(nn.Module):
    """A convolutional pyramid beside the vision tower, from a photo's pixels to each level.

    Vision transformers lack a locality prior, and their patch tokens blur small objects. Convolutions supply both
    (the spatial prior module of ViT-Adapter, Chen et al. 2023, arXiv:2205.08534). Each level shrinks the map to
    its resolution and adds the tower's tokens of the same positions.

    Args:
        width: D.
        sides: pixels that a token of each level stands for, fine to coarse; the first is even, each divides the next.
    """

    def __init__(self, width: int, sides: Sequence[int]) -> None:
        super().__init__()
        half = sides[0] // 2
        steps = (2, *(coarse // fine for fine, coarse in pairwise(sides)))
        self.first = nn.Sequential(
            nn.Conv2d(3, FIRST_WIDTH, half, stride=half), ConvolutionBlock(FIRST_WIDTH, FIRST_WIDTH)
        )
        self.halve = nn.ModuleList(
            nn.Sequential(MapNorm(before), nn.Conv2d(before, width, 3, stride=step, padding=1))
            for before, step in zip((FIRST_WIDTH, *[width] * (len(sides) - 1)), steps, strict=True)
        )
        self.blocks = nn.ModuleList(ConvolutionBlock(width, width // 2) for _ in sides)

    def forward(
        self, pictures: Sequence[torch.Tensor], levels: Sequence[torch.Tensor], grids: Sequence[Sequence[Grid]]
    ) -> list[torch.Tensor]:
        """Add features from the pixels to each level's tokens; images of one size are batched.

        Args:
            pictures: (3, Y, Z) pixels of each image.
            levels: (S, D) tokens of each level, images end to end in raster order.
            grids: of each level and image.

        Returns:
            Same shapes and order as ``levels``.
        """
        tokens = [
            level.split([rows * columns for rows, columns in of_level])
            for level, of_level in zip(levels, grids, strict=True)
        ]
        same_size: dict[Grid, list[int]] = defaultdict(list)
        for image, grid in enumerate(grids[0]):
            same_size[grid].append(image)
        outputs: list[dict[int, torch.Tensor]] = [{} for _ in levels]
        for images in same_size.values():
            pixels = torch.stack([pictures[image] for image in images])
            maps = self.first(pixels.to(levels[0].dtype).contiguous(memory_format=torch.channels_last))
            for number, (halve, block) in enumerate(zip(self.halve, self.blocks, strict=True)):
                from_tower = torch.stack([tokens[number][image] for image in images])
                maps = halve(maps) + from_tower.unflatten(1, grids[number][images[0]]).permute(0, 3, 1, 2)
                maps = block(maps)
                outputs[number].update(zip(images, maps.flatten(2).transpose(1, 2), strict=True))
        return [torch.cat([of_level[image] for image in range(len(pictures))]) for of_level in outputs]
