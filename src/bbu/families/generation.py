"""Prompts of a batch that text is generated after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Prompt:
    """What a text is generated after: (L,) ids, (P, patch width) patch rows and (I, 3) grids of its photos."""

    input_ids: torch.Tensor
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor


def pad_left(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (L, …) of different lengths → (B, longest, …) that end together, and (B, longest) int64: 1 = theirs."""
    longest = max(len(row) for row in rows)
    padded = [F.pad(row, (0, 0) * (row.dim() - 1) + (longest - len(row), 0)) for row in rows]
    known = [F.pad(torch.ones(len(row), dtype=torch.long, device=row.device), (longest - len(row), 0)) for row in rows]
    return torch.stack(padded), torch.stack(known)


def until_end(ids: list[int], end_token_id: int) -> list[int]:
    """Ids up to the end token, with it; a batch fills what follows."""
    return ids[: ids.index(end_token_id) + 1] if end_token_id in ids else ids
