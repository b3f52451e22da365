"""Sampling of image levels equals torch's grid_sample, image by image."""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional as F

from bbu.models.memory import LevelRows, Memory, grid_centres, sample_levels, sine_embedding

GRIDS = [[(4, 6), (2, 3)], [(10, 2), (5, 1)], [(2, 2), (1, 1)]]  # samples × levels
TEXT = [3, 0, 7]
HEADS, WIDTH = 2, 5


def make_memory() -> Memory:
    torch.manual_seed(0)
    starts, row, boundaries = [], 0, [0]
    for grids, text in zip(GRIDS, TEXT, strict=True):
        starts.append([])
        for rows, columns in grids:
            starts[-1].append(row)
            row += rows * columns
        row += text
        boundaries.append(row)
    table = [[(starts[s][level], *GRIDS[s][level]) for s in range(len(GRIDS))] for level in range(2)]
    return Memory(
        tokens_MD=torch.randn(row, HEADS * WIDTH, dtype=torch.float64),
        pos_embed_MD=torch.zeros(row, HEADS * WIDTH, dtype=torch.float64),
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
        max_seqlen=max(b - a for a, b in itertools.pairwise(boundaries)),
        level_starts=starts,
        level_grids=GRIDS,
        level_table_LvB3=torch.tensor(table),
    )


def by_grid_sample(
    values: torch.Tensor, memory: Memory, level: int, samples: torch.Tensor, points: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    out = []
    for looker, sample in enumerate(samples.tolist()):
        start, (rows, columns) = memory.level_starts[sample][level], memory.level_grids[sample][level]
        image = values[start : start + rows * columns].reshape(rows, columns, HEADS, WIDTH).permute(2, 3, 0, 1)
        seen = F.grid_sample(
            image, points[looker][:, None] * 2 - 1, mode="bilinear", align_corners=False, padding_mode="border"
        )  # (H, E, 1, P)
        out.append((seen[:, :, 0] * weights[looker][:, None]).sum(-1))
    return torch.stack(out)


def test_sampling_the_levels_equals_grid_sample() -> None:
    memory = make_memory()
    values = memory.tokens_MD.view(-1, HEADS, WIDTH).clone().requires_grad_()
    samples = torch.tensor([0, 2, 1, 1, 0, 2])
    points = (torch.rand(6, HEADS, 2, 4, 2, dtype=torch.float64) * 1.6 - 0.3).requires_grad_()  # some lie outside
    weights = torch.rand(6, HEADS, 2, 4, dtype=torch.float64).requires_grad_()
    ours = sample_levels(values, LevelRows.of(memory, samples, HEADS, points.shape[-2]), points, weights)
    one, other = (by_grid_sample(values, memory, n, samples, points[:, :, n], weights[:, :, n]) for n in (0, 1))
    theirs = one + other
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    push = torch.randn_like(ours)
    inside = ((points > 0) & (points < 1)).all(-1, keepdim=True)  # at the border a slope may be taken either way
    for name, one, other in zip(
        ("values", "points", "weights"),
        torch.autograd.grad(ours, (values, points, weights), push),
        torch.autograd.grad(theirs, (values, points, weights), push),
        strict=True,
    ):
        if name == "points":
            one, other = one * inside, other * inside
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


def test_sampling_at_the_centre_of_a_cell_gives_its_value() -> None:
    memory = make_memory()
    values = memory.tokens_MD.view(-1, HEADS, WIDTH)
    centres = torch.as_tensor(grid_centres(10, 2).copy())
    points = centres[:, None, None, None].expand(-1, HEADS, 2, 1, -1)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None].expand(20, HEADS, 2, 1)  # of the fine level alone
    seen = sample_levels(
        values, LevelRows.of(memory, torch.ones(20, dtype=torch.long), HEADS, points.shape[-2]), points, weights
    )
    start = memory.level_starts[1][0]
    torch.testing.assert_close(seen, values[start : start + 20])


def test_sixteen_bit_values_are_sampled_in_float32() -> None:
    memory = make_memory()
    memory.tokens_MD = memory.tokens_MD.bfloat16()
    levels = LevelRows.of(memory, torch.zeros(1, dtype=torch.long), HEADS, 1)
    seen = sample_levels(
        memory.tokens_MD.view(-1, HEADS, WIDTH), levels,
        torch.full((1, HEADS, 2, 1, 2), 0.4), torch.ones(1, HEADS, 2, 1),
    )  # fmt: skip
    assert seen.dtype == torch.float32


def test_neighbouring_patches_have_clearly_different_embeddings() -> None:
    """A patch of a 1000-pixel photo is 0.014 wide; its embedding must differ clearly from its neighbour's."""
    embedding = sine_embedding(torch.tensor([[0.5, 0.5], [0.514, 0.5], [0.9, 0.5]]), 16)
    assert embedding.shape == (3, 32)
    assert (embedding[0] - embedding[1]).norm() > 0.5
