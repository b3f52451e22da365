"""Numbers known on the host → the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def to_device(
    values: Sequence[Any] | np.ndarray | torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Host values as a tensor on the device.

    ``torch.tensor(values, device=…)`` and ``.to(device)`` wait until a GPU has done all its work; a non-blocking copy
    joins the queue. CUDA reads pageable memory before the call returns, so the source may change right after it.
    """
    return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)
