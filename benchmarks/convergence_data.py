"""Photos of benchmarks/convergence.py: blood cells as configs/bccd.yaml reads them, and screws with its settings."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bbu.config import Config, load_config
from bbu.errors import ConfigError
from bbu.stages import PreparedData, prepare

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("BBU_SHARED", PROJECT.parent / "shared")) / "data"
DATA_SETS = {"bccd": "blood cells", "screws": "screws"}
FOLDERS = {"bccd": "bccd_voc", "screws": "amv_screws_yolo"}
CLOSING = "training.closing={epochs: 10, groups: 3}"  # four kinds of screws differ in length and colour alone
SOURCES: dict[str, list[str]] = {"bccd": [], "screws": ["data.source.format=yolo", CLOSING]}
SPLITS = "{train: train+val, test: test}"
HELD_OUT = "{train: train, test: val}"


def load(
    data_set: str, folder: Path, *, held_out: bool, quick: bool, overrides: Sequence[str]
) -> tuple[Config, PreparedData]:
    """The config of a data set and its photos; split ``test`` is what is scored.

    Args:
        data_set: key of DATA_SETS.
        folder: for the converted records.
        held_out: train on train and score on val, as settings are chosen; else train on both and score on test.
        quick: a few synthetic photos instead.
        overrides: config overrides, KEY=VALUE.

    Raises:
        ConfigError: the photos are missing.
    """
    overrides = [f"output_dir={folder / data_set}", *overrides]
    if quick:
        overrides += ["training.batch_size=2", "data.source.photos={train: 4, val: 1, test: 2}"]
        config = load_config(PROJECT / "configs" / "demo.yaml", overrides)
    else:
        photos = SHARED / FOLDERS[data_set]
        if not photos.is_dir() and not any(item.startswith("data.source.path=") for item in overrides):
            raise ConfigError(f"{photos} does not exist; name the photos by --set data.source.path=FOLDER")
        splits = HELD_OUT if held_out else SPLITS
        overrides = [f"data.source.path={photos}", f"data.source.splits={splits}", *SOURCES[data_set], *overrides]
        config = load_config(PROJECT / "configs" / "bccd.yaml", overrides)
    with contextlib.redirect_stdout(sys.stderr):  # keep the conversion's messages out of the table
        return config, prepare(config)
