"""The detection memory: the tokens that the decoders attend to, one segment per sample.

A segment holds the fine image tokens, the coarse image tokens (vision and language features added, because they
share their positions), then the text tokens of the student's turn up to the answer. It excludes the answer.

Shapes: B samples, D feature width, E width of an attention head, H attention heads, Lv levels, M memory tokens,
Pt sampling points, R rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F


@dataclass
class Memory:
    """Packed memory of B samples.

    Args:
        tokens_MD: (M, D) adapted features.
        pos_embed_MD: (M, D) embedding of each token's position and level.
        cu_seqlens: (B + 1,) int32 sequence boundaries of the samples.
        max_seqlen: longest segment.
        level_starts: for each sample, the first memory row of each image level.
        level_grids: for each sample, (rows, columns) of each image level.
        level_table_LvB3: the same as a tensor: first memory row, rows, columns.
    """

    tokens_MD: torch.Tensor
    pos_embed_MD: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    level_starts: list[list[int]]
    level_grids: list[list[tuple[int, int]]]
    level_table_LvB3: torch.Tensor

    @classmethod
    def of_no_sample(cls, like: torch.Tensor, width: int, levels: int) -> Memory:
        """The memory of a pack in which no sample detects; device and dtype are those of ``like``."""
        return cls(
            tokens_MD=like.new_zeros(0, width),
            pos_embed_MD=like.new_zeros(0, width),
            cu_seqlens=torch.zeros(1, dtype=torch.int32, device=like.device),
            max_seqlen=0,
            level_starts=[],
            level_grids=[],
            level_table_LvB3=torch.zeros(levels, 0, 3, dtype=torch.long, device=like.device),
        )

    @property
    def image_token_counts(self) -> list[int]:
        """Image tokens of each sample; they come first in its segment."""
        return [sum(rows * columns for rows, columns in grids) for grids in self.level_grids]


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Cast 16-bit to float32: a box coordinate in bfloat16 would be off by up to 1/256 of the image."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sine_embedding(values: torch.Tensor, width: int) -> torch.Tensor:
    """Sine embedding (Vaswani et al. 2017, as in DETR): (…, n) numbers in [0, 1] → (…, n · width).

    ``width`` is even; the angular frequency rises from 2π to 128π, so neighbouring patches differ clearly.
    """
    steps = torch.arange(width // 2, device=values.device, dtype=full_precision(values).dtype)
    frequencies = 2 * math.pi * 64.0 ** (steps / max(width // 2 - 1, 1))
    angles = full_precision(values)[..., None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)


@lru_cache(maxsize=1024)
def grid_centres(rows: int, columns: int) -> np.ndarray:
    """(rows · columns, 2) centres (x, y) of a grid's cells in [0, 1], raster order; on the host, not to be changed."""
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    centres = np.stack((np.tile(x, rows), y.repeat(columns)), axis=-1)
    centres.setflags(write=False)
    return centres


def sample_levels(
    values_MHE: torch.Tensor,
    memory: Memory,
    samples_R: torch.Tensor,
    points_RHLvPt2: torch.Tensor,
    weights_RHLvPt: torch.Tensor,
) -> torch.Tensor:
    """Weighted bilinear sampling of the image levels, for all samples of the pack and all levels at once.

    This is the gather of deformable attention (Zhu et al. 2021, arXiv:2010.04159), written as an embedding bag so
    that images of different sizes need neither padding nor a loop.

    Args:
        values_MHE: values of all memory tokens.
        samples_R: the sample of each query.
        points_RHLvPt2: (x, y) in the unit square; a point outside it takes the border's value.
        weights_RHLvPt: weight of each point.

    Returns:
        (R, H, E), summed over levels and points, in float32 (float64 if the values are).
    """
    values = full_precision(values_MHE)
    heads, width = values.shape[1:]
    table = memory.level_table_LvB3[:, samples_R].transpose(0, 1)[:, None, :, None]  # (R, 1, Lv, 1, 3)
    sizes = table[..., 1:].flip(-1)  # columns, rows
    places = full_precision(points_RHLvPt2) * sizes - 0.5
    corners = places.floor()[..., None, :] + _corners(places)  # (R, H, Lv, Pt, 4, 2)
    near = 1 - (places[..., None, :] - corners).abs()
    cells = corners.long().clamp(min=0).minimum(sizes[..., None, :] - 1)
    rows = table[..., 0, None] + cells[..., 1] * table[..., 2, None] + cells[..., 0]
    indices = rows * heads + torch.arange(heads, device=values.device)[:, None, None, None]
    weights = near[..., 0] * near[..., 1] * full_precision(weights_RHLvPt)[..., None]
    bags = F.embedding_bag(
        indices.flatten(0, 1).flatten(1),
        values.reshape(-1, width),
        per_sample_weights=weights.to(values.dtype).flatten(0, 1).flatten(1),
        mode="sum",
    )
    return bags.view(len(samples_R), heads, width)


def _corners(like: torch.Tensor) -> torch.Tensor:
    """(4, 2) steps from a point's upper left cell to the four around it."""
    number = torch.arange(4, device=like.device)
    return torch.stack((number % 2, number // 2), dim=-1)
