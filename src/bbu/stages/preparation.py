"""Prepares the rows of a run: reads records, converts annotations, or draws the demo's photos first."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bbu.config import Config
from bbu.config.checks import idle_source_keys
from bbu.errors import ConfigError
from bbu.jsonl import write_json
from bbu.records import FewShotSample, Row, read_rows, read_samples
from bbu.taxonomy import Taxonomy


@dataclass(frozen=True)
class PreparedData:
    """Folder of a run's rows, and root of its photos."""

    folder: Path
    image_root: str

    def rows(self, split: str) -> list[Row]:
        """Rows of a split; empty if it does not exist."""
        path = self.folder / f"{split}.jsonl"
        return read_rows(path) if path.is_file() else []

    def samples(self, split: str) -> list[FewShotSample]:
        """Samples of a split, with the teachers and context written into them."""
        path = self.folder / f"{split}.jsonl"
        return read_samples(path) if path.is_file() else []


def prepare(config: Config, *, make: bool = True) -> PreparedData:
    """Make sure that the rows exist.

    Args:
        make: False if another rank has already made them.

    Raises:
        UserError: the source is missing or malformed.
    """
    source, data = config.data.source, Path(config.output_dir) / "data"
    for text in idle_source_keys(config) if make else ():
        print(f"note     {text}", flush=True)
    if source.format == "records":
        if not source.path:
            raise ConfigError("data.source.path: name the folder that holds train.jsonl")
        folder = Path(source.path)
        if not (folder / "train.jsonl").is_file():
            raise ConfigError(f"data.source.path: {folder} has no train.jsonl")
        return PreparedData(folder, config.data.image_root or source.path)
    raw, records = Path(source.path) if source.path else data / "raw", data / "records"
    if make and source.format == "cabinet_photos":
        _draw(config, raw)
    elif not source.path and source.format != "cabinet_photos":
        raise ConfigError(f"data.source.path: name the folder of {source.format} annotations")
    elif not raw.is_dir():
        raise ConfigError(f"data.source.path: {raw} does not exist; point it at your {source.format} folder")
    if make:
        _convert(config, raw, records)
    photos = raw if source.images == "keep" else records / "photos"
    return PreparedData(records, config.data.image_root or str(photos))


def _draw(config: Config, raw: Path) -> None:
    """Draw the demo's photos, unless the same ones are there already."""
    from data_conversion.cabinet_photos import draw_data_set

    photos = dict(config.data.source.photos)
    wanted = {"photos": photos, "seed": config.seed}
    stamp = raw.parent / f"{raw.name}.json"
    if raw.is_dir() and stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return
    if raw.is_dir() and not stamp.is_file():
        raise ConfigError(f"{raw} exists but was not drawn by this run; move it away or set another output_dir")
    print(f"drawing {sum(photos.values())} photos into {raw}", flush=True)
    shutil.rmtree(raw, ignore_errors=True)
    draw_data_set(raw, photos, config.seed, workers=os.cpu_count() or 1)
    write_json(stamp, wanted)


def _drawn_sites(config: Config) -> dict[str, str]:
    from data_conversion.cabinet_photos import sites

    return sites(config.data.source.photos, config.seed)


def taxonomy_of(config: Config) -> Taxonomy:
    """The taxonomy of the config's labelling project."""
    from data_conversion.taxonomies import load_taxonomy

    return load_taxonomy(config.data.source.taxonomy) if config.data.source.taxonomy else Taxonomy()


def _convert(config: Config, raw: Path, records: Path) -> None:
    from data_conversion.pipeline import convert

    source = config.data.source
    report = convert(
        "bbu_json" if source.format == "cabinet_photos" else source.format,
        raw,
        records,
        taxonomy=taxonomy_of(config),
        val_fraction=source.val_fraction,
        test_fraction=source.test_fraction,
        group_by=source.group_by,
        max_teachers=source.max_teachers,
        seed=config.seed,
        on_error=source.on_error,
        splits=source.splits or None,
        images=source.images,
        frame=source.frame,
        follow_links=source.follow_links,
        units=source.units,
        summaries=source.summaries,
        summary_levels=source.summary_levels,
        groups=_drawn_sites(config) if source.format == "cabinet_photos" else None,
        progress=True,
    )
    print(report.summary(), flush=True)
