"""MLP products padded with zeros, inside the forward, to widths that a GPU's fast kernels take.

The products of an MLP 3,420 wide, no multiple of 64, miss the fast kernels of an H100 and take 2.8 times as long as
with 3,456 columns (docs/performance.md). The zeros change no result: the padded columns are 0, so is their activation,
and the rows of the next weight that meet them are 0 too. Parameters, their gradients and checkpoints keep their sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

MULTIPLE = 64  # columns
DEVICES = ("cuda",)  # a CPU's products do not care


def missing_columns(x: torch.Tensor, *layers: nn.Module) -> int:
    """Columns that the hidden width of an MLP lacks to the next multiple; 0 where none are padded.

    Args:
        layers: the MLP's products, the last one down; one that is not a plain nn.Linear (an adapter's) is not padded.
    """
    if x.device.type not in DEVICES or any(type(layer) is not nn.Linear for layer in layers):
        return 0
    return -layers[-1].in_features % MULTIPLE  # type: ignore[operator, return-value]


def widened(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, more: int) -> torch.Tensor:
    """(…, D) → (…, F + more); the last ``more`` columns are 0."""
    if not more:
        return layer(x)
    assert isinstance(layer, nn.Linear)
    bias = None if layer.bias is None else F.pad(_cast(layer.bias), (0, more))
    return F.linear(x, F.pad(_cast(layer.weight), (0, 0, 0, more)), bias)


def narrowed(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, more: int) -> torch.Tensor:
    """(…, F + more) → (…, D), from columns of which the last ``more`` are 0."""
    if not more:
        return layer(x)
    assert isinstance(layer, nn.Linear)
    return F.linear(x, F.pad(_cast(layer.weight), (0, more)), layer.bias)


def _cast(weight: torch.Tensor) -> torch.Tensor:
    """In autocast's dtype, before the copy that padding makes."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight
