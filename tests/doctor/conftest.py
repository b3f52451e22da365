"""The clean data set that tests break in one place at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doctor.small_set import COUNTS, DataSet, row
from tests.tiny import tiny_config


@pytest.fixture
def data(family: str, tmp_path: Path) -> DataSet:
    """Nothing is wrong with it."""
    source = {"source.format": "records", "source.path": str(tmp_path), "max_length": 2000}
    config = tiny_config(model={"family": family}, data=source)
    config.model.detection.caption_max_tokens = 24
    config.training.max_steps = 6  # two samples each: one epoch
    made = DataSet(tmp_path, config)
    seed = 0
    for split, count in COUNTS.items():
        made.rows[split] = []
        for number in range(count):
            name = f"{split}{number}.png"
            made.photo(name, seed := seed + 1)
            made.rows[split].append(row(name))
    return made
