"""Non-blocking copies of host values to the device, and of a tensor to the host."""

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


def together(arrays: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """``to_device`` of several arrays in one copy; on a GPU each takes a launch, however small."""
    flat = to_device(np.concatenate([array.ravel() for array in arrays]), device, dtype)
    pieces = flat.split([array.size for array in arrays])
    return [piece.view(array.shape) for piece, array in zip(pieces, arrays, strict=True)]


class HostCopy:
    """A tensor on its way to the host.

    The copy is queued when the object is made. ``wait`` waits for it, and not for what was queued after it, so a GPU
    has work in the meantime.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        tensor = tensor.detach()
        self._event: torch.cuda.Event | None = None
        if not tensor.is_cuda:
            self._host = tensor.cpu()
            return
        # A copy into pageable memory would wait here. Torch keeps freed pinned memory for the next step.
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> np.ndarray:
        """The values, once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()  # type: ignore[no-any-return]
