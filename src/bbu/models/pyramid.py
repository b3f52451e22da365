"""Adapters: project vision and language features to the detector's width and add features from the pixels.

Shapes: D feature width, S image tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import nn

from bbu.layers.transfer import together

Grid = tuple[int, int]  # rows and columns of tokens

# Devices that take images of all sizes at once, and how many times their own area the canvas may then have.
CANVAS = ("cuda",)
MOST_CANVAS = 1.5
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

    def forward(self, maps: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
        """(I, D, Y, Z) → the same; what lies outside the images, where they differ in size, has no influence."""
        norm, first, activation, second = self.layers
        hidden = activation(first(_masked(norm(maps), inside)))
        return maps + second(_masked(hidden, inside))  # type: ignore[no-any-return]


def _masked(maps: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """Zeros outside the images, as convolutions pad them; None = nothing is outside."""
    return maps if inside is None else maps * inside


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
        """Add features from the pixels to each level's tokens.

        Images of one size are batched; on a GPU, where each operation costs a launch, all are, on a canvas.

        Args:
            pictures: (3, Y, Z) pixels of each image.
            levels: (S, D) tokens of each level, images end to end in raster order.
            grids: of each level and image.

        Returns:
            Same shapes and order as ``levels``.
        """
        groups = _groups(grids[0], levels[0].device)
        outputs: list[list[torch.Tensor]] = [[] for _ in levels]
        for images in groups:
            twice = [(2 * rows, 2 * columns) for rows, columns in grids[0]]
            stem, *canvases = _canvases([twice, *grids], images, levels[0])
            inside = stem.inside
            maps = self._stem(_on_canvas([pictures[image] for image in images], levels[0].dtype), inside)
            for level, canvas, halve, block, of_level in zip(
                levels, canvases, self.halve, self.blocks, outputs, strict=True
            ):
                norm, shrink = halve.children()
                maps = shrink(_masked(norm(maps), inside)) + canvas.put(level)
                inside = canvas.inside
                maps = block(maps, inside)
                of_level.append(maps.permute(0, 2, 3, 1).flatten(0, 2))
        orders = [_order(groups, of_level) for of_level in grids]
        joined = [found[0] if len(found) == 1 else torch.cat(found) for found in outputs]
        if all(len(rows) == len(all_rows) for rows, all_rows in zip(orders, joined, strict=True)) and len(groups) == 1:
            return joined
        rows_S = together(orders, levels[0].device, torch.long)
        return [found.index_select(0, rows) for found, rows in zip(joined, rows_S, strict=True)]

    def _stem(self, pixels: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        convolution, block = self.first
        maps: torch.Tensor = block(convolution(pixels.contiguous(memory_format=torch.channels_last)), inside)
        return maps


def _groups(grids: Sequence[Grid], device: torch.device) -> list[list[int]]:
    """Images that are taken at once: those of one size, or all on a device of CANVAS unless too much lay outside."""
    same_size: dict[Grid, list[int]] = defaultdict(list)
    for image, grid in enumerate(grids):
        same_size[grid].append(image)
    canvas = len(grids) * max(rows for rows, _ in grids) * max(columns for _, columns in grids)
    if device.type in CANVAS and canvas <= MOST_CANVAS * sum(rows * columns for rows, columns in grids):
        return [list(range(len(grids)))]
    return list(same_size.values())


def _on_canvas(pictures: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """(3, Y, Z) each → (I, 3, Y, Z), with zeros below and to the right of the smaller ones."""
    if len({picture.shape for picture in pictures}) == 1:
        return torch.stack(list(pictures)).to(dtype)
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    canvas = torch.zeros(len(pictures), 3, height, width, dtype=dtype, device=pictures[0].device)
    for place, picture in zip(canvas, pictures, strict=True):
        place[:, : picture.shape[1], : picture.shape[2]] = picture
    return canvas


@dataclass
class _Canvas:
    """Where the tokens of a group's images lie on its map of a level.

    Args:
        sides: of the map, as many images of Y rows and Z columns.
        rows: of each place's token among the level's; None = all of them in order.
        inside: (I, 1, Y, Z), 1 inside the images and 0 outside; None = nothing is outside.
    """

    sides: tuple[int, int, int]
    rows: torch.Tensor | None
    inside: torch.Tensor | None

    def put(self, tokens_SD: torch.Tensor) -> torch.Tensor:
        """A level's tokens → (I, D, Y, Z)."""
        chosen = tokens_SD if self.rows is None else tokens_SD.index_select(0, self.rows)
        return chosen.unflatten(0, self.sides).permute(0, 3, 1, 2)


def _canvases(levels: Sequence[Sequence[Grid]], images: Sequence[int], like: torch.Tensor) -> list[_Canvas]:
    """Of a group's images on maps with these grids; dtype and device are those of the tokens.

    The first map is the stem's, on which no tokens are put.
    """
    rows, masks = [], []
    for grids in levels:
        starts = [0, *accumulate(height * width for height, width in grids)]
        mine = [grids[image] for image in images]
        y, x = np.ogrid[: max(height for height, _ in mine), : max(width for _, width in mine)]
        mask = np.stack([(y < height) & (x < width) for height, width in mine])
        places = np.stack([starts[image] + y * grids[image][1] + x for image in images])
        rows.append(np.where(mask, places, 0).ravel())  # outside, any token will do
        masks.append(mask[:, None])
    sides = [(len(images), *mask.shape[2:]) for mask in masks]
    on_device: Sequence[torch.Tensor | None] = [None] * len(levels)
    inside = on_device
    if not all(mask.all() for mask in masks):
        inside = together(masks, like.device, like.dtype)
    if inside[0] is not None or list(images) != list(range(len(levels[0]))):
        on_device = [None, *together(rows[1:], like.device, torch.long)]
    return [_Canvas(*each) for each in zip(sides, on_device, inside, strict=True)]


def _order(groups: Sequence[Sequence[int]], grids: Sequence[Grid]) -> np.ndarray:
    """(S,) rows of a level's tokens, all images in order, among the places of the groups' canvases."""
    by_image: dict[int, np.ndarray] = {}
    first = 0
    for images in groups:
        height, width = (max(grids[image][axis] for image in images) for axis in (0, 1))
        for image in images:
            rows, columns = grids[image]
            by_image[image] = first + (np.arange(rows)[:, None] * width + np.arange(columns)).ravel()
            first += height * width
    return np.concatenate([by_image[image] for image in range(len(grids))])
