"""A config for the doctor's own preparation: it goes on past broken files and leaves the run's folder as it is."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from bbu.config import Config


def doctor_config(config: Config, folder: Path) -> Config:
    """The config with broken annotation files skipped and counted, and everything written into ``folder``.

    Demo photos that the run has drawn already are used where they lie; others are drawn into ``folder``.
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
    """Whether these are the photos that the config asks for: preparation would draw others anew, in their place."""
    stamp = raw.parent / f"{raw.name}.json"
    wanted = {"photos": dict(config.data.source.photos), "seed": config.seed}
    return raw.is_dir() and stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted
