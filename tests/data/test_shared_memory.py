"""Batches leave a photo loader through /dev/shm: a full one is an error that names it, never a wait."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from bbu.data.shared_memory import IntoSharedMemory
from tests.jobs import environment, write_job


def collate(items: list[int]) -> dict[str, object]:
    return {"numbers": torch.tensor(items), "none": torch.zeros(0), "names": [str(item) for item in items]}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_as_they_were_made(workers: int) -> None:
    loader = DataLoader(range(5), batch_size=2, collate_fn=IntoSharedMemory(collate), num_workers=workers)  # type: ignore[arg-type]
    batches = list(loader)
    assert [batch["numbers"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0]["names"] == ["0", "1"] and batches[0]["none"].shape == (0,)
    assert all(batch["numbers"].is_shared() is (workers > 0) for batch in batches)


def small_shared_memory(size: str, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in a mount namespace of its own whose /dev/shm is that small."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", mount, "bash", *command],
        capture_output=True, text=True, env=environment(), timeout=200,
    )  # fmt: skip


def test_a_dev_shm_that_is_too_small_is_named(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or small_shared_memory("1m", "true").returncode:
        pytest.skip("no mount namespace may be made here")
    config = write_job(tmp_path)
    done = small_shared_memory("64k", sys.executable, "-m", "bbu.cli", "run", str(config), "data.workers=2")
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bbu: error:")]
    assert "/dev/shm is too small for the batches of data.workers (0 of 0 MB free)" in line
    assert "Traceback" not in done.stderr and "data.workers=0" in line
