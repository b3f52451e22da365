"""Distributed helpers. No other file reads rank or world size."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def _group() -> Any:
    """torch.distributed if a process group is initialised, else None; never imports torch."""
    torch_ = sys.modules.get("torch")
    running = torch_ is not None and torch_.distributed.is_available() and torch_.distributed.is_initialized()
    return torch_.distributed if running and torch_ is not None else None


def rank() -> int:
    """Rank of this process, from 0."""
    group = _group()
    return int(group.get_rank() if group else os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that train together."""
    group = _group()
    return int(group.get_world_size() if group else os.environ.get("WORLD_SIZE", "1"))


def processes_to_start() -> int:
    """How many processes train.sh starts on this machine: one a GPU, or one."""
    import torch

    return max(torch.cuda.device_count(), 1)


def is_main() -> bool:
    """Whether this is rank 0, the one that writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        _group().barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main rank runs the block before the others, which then find the files it wrote."""
    group = _group() if world_size() > 1 else None
    try:
        if group and not is_main():
            group.barrier()
        yield
    finally:
        if group and is_main():
            group.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum of the tensors of all ranks, in place."""
    if world_size() > 1:
        _group().all_reduce(values)
    return values


def gather(mine: Sequence[T]) -> list[T]:
    """Items sharded as ``items[rank::world_size]`` → all items, in order, on every rank."""
    if world_size() == 1:
        return list(mine)
    shards: list[list[T]] = [[] for _ in range(world_size())]
    _group().all_gather_object(shards, list(mine))
    return merge_shards(shards)


def merge_shards(shards: Sequence[Sequence[T]]) -> list[T]:
    """Undo round-robin sharding: shard r held items r, r + ranks, …"""
    total = sum(len(shard) for shard in shards)
    return [shards[number % len(shards)][number // len(shards)] for number in range(total)]


def start_group_of_one() -> None:
    """Set torchrun's environment variables for a single process, because DeepSpeed always needs a process group."""
    if "RANK" in os.environ:
        return
    with socket.socket() as free:  # a fixed port would block a second run on this machine
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: os.environ.get(name, value) for name, value in alone.items()})


def end_group() -> None:
    """Leave a group of several ranks in order; at the end of a process, which may otherwise abort in its threads."""
    group = _group() if world_size() > 1 else None
    if group:
        group.destroy_process_group()
