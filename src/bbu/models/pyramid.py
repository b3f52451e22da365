"""Adapters: bring vision and language features of any width to the detector's width, and pixels to them.

Shape legend: n images of one size, P patch rows, X numbers of a patch, N tokens of a level of all images, D width,
H, V height and width in pixels or tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn

Grid = tuple[int, int]  # rows and columns of tokens

FIRST_WIDTH = 64  # of the map before the first level, which has two tokens for each of the level's, both ways
MERGE = 2  # patch rows come 2 x 2 by 2 x 2


class ResidualMLP(nn.Module):
    """LayerNorm → linear → plus a two-layer MLP of the result, (…, in_width) → (…, width)."""

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
    """Over the channels of (n, D, H, V), place by place: neither images nor sizes mix."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvolutionBlock(nn.Module):
    """A map plus two 3 x 3 convolutions of it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            MapNorm(width), nn.Conv2d(width, inner, 3, padding=1), nn.GELU(), nn.Conv2d(inner, width, 3, padding=1)
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.layers(maps)  # type: ignore[no-any-return]


class LocalPyramid(nn.Module):
    """Convolutions beside the tower, from a photo's pixels to each of its levels.

    That neighbours belong together a vision transformer has to learn, and its tokens of 14 pixels blur small parts.
    Convolutions start out knowing the one and see the other (the spatial prior of ViT-Adapter, Chen et al. 2023,
    arXiv:2205.08534). Level by level they halve the resolution, and the tower's tokens of the same places join in.

    Args:
        width: D.
        levels: how many, fine to coarse; the finest has one token a patch, each other half as many both ways.
        patch_size: side of a patch in pixels, even.
    """

    def __init__(self, width: int, levels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        half = patch_size // 2
        self.first = nn.Sequential(
            nn.Conv2d(3, FIRST_WIDTH, half, stride=half), ConvolutionBlock(FIRST_WIDTH, FIRST_WIDTH)
        )
        self.halve = nn.ModuleList(
            nn.Sequential(MapNorm(before), nn.Conv2d(before, width, 3, stride=2, padding=1))
            for before in (FIRST_WIDTH, *[width] * (levels - 1))
        )
        self.blocks = nn.ModuleList(ConvolutionBlock(width, width // 2) for _ in range(levels))

    def forward(
        self, patches: Sequence[torch.Tensor], levels: Sequence[torch.Tensor], grids: Sequence[Sequence[Grid]]
    ) -> list[torch.Tensor]:
        """Images of one size go through together.

        Args:
            patches: (P, 3 · frames · patch²) rows of each image, as the image processor orders them.
            levels: (N, D) tokens of each level, images end to end in raster order.
            grids: of each level and image.

        Returns:
            As ``levels``.
        """
        tokens = [
            level.split([rows * columns for rows, columns in of_level])
            for level, of_level in zip(levels, grids, strict=True)
        ]
        alike: dict[Grid, list[int]] = defaultdict(list)
        for image, grid in enumerate(grids[0]):
            alike[grid].append(image)
        found: list[dict[int, torch.Tensor]] = [{} for _ in levels]
        for images in alike.values():
            pixels = torch.stack([self.picture(patches[image], grids[0][image]) for image in images])
            maps = self.first(pixels.to(levels[0].dtype).contiguous(memory_format=torch.channels_last))
            for number, (halve, block) in enumerate(zip(self.halve, self.blocks, strict=True)):
                joining = torch.stack([tokens[number][image] for image in images])
                maps = halve(maps) + joining.unflatten(1, grids[number][images[0]]).permute(0, 3, 1, 2)
                maps = block(maps)
                found[number].update(zip(images, maps.flatten(2).transpose(1, 2), strict=True))
        return [torch.cat([of_level[image] for image in range(len(patches))]) for of_level in found]

    def picture(self, rows_PX: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Patch rows of an image → (3, H, V) pixels; the frames of a photo are all the same."""
        rows, columns = grid
        side = self.patch_size
        by_unit = rows_PX.view(rows // MERGE, columns // MERGE, MERGE, MERGE, 3, -1, side, side)[:, :, :, :, :, 0]
        return by_unit.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)
