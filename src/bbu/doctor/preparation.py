"""The config of the doctor's own preparation, which skips broken files and does not touch the run's folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from bbu.config import Config


def doctor_config(config: Config, folder: Path) -> Config:
    """The config with broken annotation files skipped and counted, and all output in ``folder``.

    Demo photos that the run has already drawn are used in place; otherwise they are drawn into ``folder``.
    """
    changed = copy.deepcopy(config)
    changed.output_dir = str(folder)
    changed.data.source.on_error = "skip"
    source = config.data.source
    if source.format == "cabinet_photos":
        drawn = Path(source.path) if source.path else Path(config.output_dir) / "data" / "raw"
        changed.data.source.path = str(drawn) if _is_drawn(config, drawn) else ""
    return changed


def _is_drawn(config: Config, raw: Path) -> bool:
    """Whether these are the photos of this config; preparation would overwrite any others."""
    stamp = raw.parent / f"{raw.name}.json"
    wanted = {"photos": dict(config.data.source.photos), "seed": config.seed}
    return raw.is_dir() and stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted
