"""A real disk of one megabyte that a test can fill."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FILLER = "filler"


@contextlib.contextmanager
def small_disk(place: Path, size: str = "1m") -> Iterator[Path]:
    """Mounts a tmpfs; skips the test where that is not allowed."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Takes all room but ``leave`` bytes, in whole pages."""
    with contextlib.suppress(OSError), (disk / FILLER).open("wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            pass
    with (disk / FILLER).open("r+b") as stream:
        stream.truncate(max(0, (disk / FILLER).stat().st_size - leave))


def make_room(disk: Path) -> None:
    """Gives the room back."""
    (disk / FILLER).unlink()
