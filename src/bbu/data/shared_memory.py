"""Hand batches over from the processes that load photos, so that a full /dev/shm is an error and not a wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import get_worker_info

from bbu.errors import UserError
from bbu.machine import shared_memory_short


class IntoSharedMemory:
    """A collator whose tensors lie in shared memory when it runs in a loader process.

    PyTorch would move them there too, but in a thread of the loader's queue: an error there loses the batch, and the
    run waits for it for ever. Here it is raised where the batch is made, and reaches the main process.

    Args:
        collate: the collator that makes the batch.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """The batch.

        Raises:
            UserError: shared memory is too small for it.
        """
        batch = self.collate(samples)
        if get_worker_info() is not None:
            try:
                for value in batch.values():
                    if isinstance(value, torch.Tensor) and value.numel():
                        value.share_memory_()
            except RuntimeError:
                raise UserError(shared_memory_short()) from None
        return batch
