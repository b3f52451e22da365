"""Non-blocking copies of host values to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def to_device(
    values: Sequence[Any] | np.ndarray | torch.Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Host values as a tensor on the device, through a non-blocking copy.

    ``torch.tensor(values, device=…)`` and ``.to(device)`` wait until the GPU has finished all queued work; this copy is
    queued. CUDA has read pageable memory when the call returns, so the source may change afterwards.
    """
    return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)
