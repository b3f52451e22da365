"""Matrix products in rows, for results that are too large to be held at once.

Shapes: D feature width, R rows, V vocabulary entries.
"""

from __future__ import annotations

import torch

CHUNK_ELEMENTS = 2**25  # most numbers of a product held at once: 128 MiB in float32


def product_dtype(states: torch.Tensor) -> torch.dtype:
    """The dtype of the matrix products: the states' own, or under autocast its dtype unless they are float64."""
    kind = states.device.type
    if torch.is_autocast_enabled(kind) and states.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return states.dtype


def add_product(into_VD: torch.Tensor, left_VR: torch.Tensor, right_RD: torch.Tensor) -> None:
    """into += left · right; where dtypes differ, in slices of the vocabulary to bound memory."""
    if into_VD.dtype == right_RD.dtype:
        into_VD.addmm_(left_VR, right_RD)
        return
    at_once = max(1, CHUNK_ELEMENTS // right_RD.shape[1])
    for into, left in zip(into_VD.split(at_once), left_VR.split(at_once), strict=True):
        into += left @ right_RD
