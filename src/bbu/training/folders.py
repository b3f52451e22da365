"""Names of the checkpoint folders in a run's folder. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # a copy under another name is the user's own


def checkpoint_at(output_dir: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return output_dir / f"checkpoint-{step}"


def checkpoints(output_dir: Path) -> list[Path]:
    """Folders named ``checkpoint-N``, by step; they need not be whole. Names like ``checkpoint-8-backup`` are not."""
    found = {path: CHECKPOINT.fullmatch(path.name) for path in output_dir.glob("checkpoint-*") if path.is_dir()}
    steps = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(steps, key=lambda path: steps[path])
