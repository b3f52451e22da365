"""Adapters: bring vision and language features of any width to the detector's width."""

from __future__ import annotations

import torch
from torch import nn


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
