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
    values = full_precision(values)
    angles = values[..., None] * _frequencies(width // 2, values.dtype, values.device)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(-2)


@lru_cache(maxsize=64)
def _frequencies(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Angular frequencies from 2π to 128π; made once, not to be changed."""
    with torch.inference_mode(False):
        steps = torch.arange(count, device=device, dtype=dtype)
        return 2 * math.pi * 64.0 ** (steps / max(count - 1, 1))


@lru_cache(maxsize=1024)
def grid_centres(rows: int, columns: int) -> np.ndarray:
    """(rows · columns, 2) centres (x, y) of a grid's cells in [0, 1], raster order; on the host, not to be changed."""
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    centres = np.stack((np.tile(x, rows), y.repeat(columns)), axis=-1)
    centres.setflags(write=False)
    return centres


@dataclass
class LevelRows:
    """Where each query finds the image levels of its sample, for ``sample_levels``.

    Args:
        sizes_RLv2: columns and rows of each level.
        last_RLv2: the same less one.
        first_RHLv: number of the first token and head of each level among all heads of all memory tokens.
        bags: the first of the sampled corners of each query and head, of all corners.
        corners: see ``_corners``.
    """

    sizes_RLv2: torch.Tensor
    last_RLv2: torch.Tensor
    first_RHLv: torch.Tensor
    bags: torch.Tensor
    corners: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, memory: Memory, samples_R: torch.Tensor, heads: int, points: int) -> LevelRows:
        """For queries of these samples, each of whose heads samples so many points of each level."""
        table_RLv3 = memory.level_table_LvB3.transpose(0, 1)[samples_R]
        numbers = torch.arange(heads, device=samples_R.device)[:, None]
        sizes_RLv2 = table_RLv3[..., 1:].flip(-1)
        count = table_RLv3.shape[1] * points * 4
        return cls(
            sizes_RLv2=sizes_RLv2,
            last_RLv2=sizes_RLv2 - 1,
            first_RHLv=torch.add(numbers, table_RLv3[:, None, :, 0], alpha=heads).contiguous(),
            bags=torch.arange(0, len(samples_R) * heads * count, count, device=samples_R.device),
            corners=_corners(full_precision(memory.tokens_MD).dtype, samples_R.device),
        )


def sample_levels(
    values_MHE: torch.Tensor, levels: LevelRows, points_RHLvPt2: torch.Tensor, weights_RHLvPt: torch.Tensor | None
) -> torch.Tensor:
    """Weighted bilinear sampling of the image levels, for all samples of the pack and all levels at once.

    This is the gather of deformable attention (Zhu et al. 2021, arXiv:2010.04159), written as an embedding bag so
    that images of different sizes need neither padding nor a loop.

    Args:
        values_MHE: values of all memory tokens.
        levels: of the R queries.
        points_RHLvPt2: (x, y) in the unit square; a point outside it takes the border's value.
        weights_RHLvPt: weight of each point; None = 1.

    Returns:
        (R, H, E), summed over levels and points, in float32 (float64 if the values are).
    """
    values = full_precision(values_MHE)
    heads, width = values.shape[1:]
    sizes, last = (each[:, None, :, None] for each in (levels.sizes_RLv2, levels.last_RLv2))  # (R, 1, Lv, 1, 2)
    places = full_precision(points_RHLvPt2) * sizes - 0.5
    far, signs, steps = levels.corners
    cells = places.detach().floor()
    near = torch.addcmul(far, signs, (places - cells)[..., None, :])  # (R, H, Lv, Pt, 4, 2)
    corners = torch.clamp(cells.long()[..., None, :] + steps, steps[0, 0], last[..., None, :])  # from 0
    columns, rows = corners.unbind(-1)
    offsets = torch.addcmul(columns, rows, sizes[..., None, 0])
    indices = torch.add(levels.first_RHLv[..., None, None], offsets, alpha=heads)
    x, y = near.unbind(-1)
    weights = x * y if weights_RHLvPt is None else x * y * full_precision(weights_RHLvPt)[..., None]
    bags = F.embedding_bag(
        indices.flatten(),
        values.reshape(-1, width),
        levels.bags,
        per_sample_weights=weights.to(values.dtype).flatten(),
        mode="sum",
    )
    return bags.view(-1, heads, width)


@lru_cache(maxsize=8)
def _corners(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The four cells around a point, (4, 2) each; made once, not to be changed.

    A point at (u, v) in the cell between them is near a corner by ``far + signs · (u, v)``; ``steps`` lead to it.
    """
    with torch.inference_mode(False):
        number = torch.arange(4, device=device)
        steps = torch.stack((number % 2, number // 2), dim=-1)
        return (1 - steps).to(dtype), (2 * steps - 1).to(dtype), steps
