"""Preparation says which keys do nothing, hands the user's words to the conversion, and training needs an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bbu.config import Config
from bbu.errors import ConfigError, UserError
from bbu.stages.preparation import prepare
from bbu.stages.training import train
from tests.tiny import tiny_config


def records(folder: Path, **source: Any) -> Config:
    """Two training photos and one of val, none with an object."""
    for split, count in (("train", 2), ("val", 1)):
        rows = []
        for number in range(count):
            Image.new("RGB", (56, 56)).save(folder / f"{split}{number}.png")
            rows.append({"images": [f"{split}{number}.png"], "objects": [], "width": 56, "height": 56})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    keys = {"source.format": "records", "source.path": str(folder)} | {f"source.{key}": source[key] for key in source}
    return tiny_config(data=keys)


def labelled(folder: Path, *names: str) -> Path:
    """YOLO photos with one object each; the folders in their names are all there is of splits."""
    for number, name in enumerate(names):
        photo, label = folder / f"{name}.jpg", folder / f"{name.replace('images', 'labels')}.txt"
        photo.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (56, 56), (60 * number, 80, 90)).save(photo)
        label.write_text("0 0.5 0.5 0.25 0.25", encoding="utf-8")
    (folder / "classes.txt").write_text("bolt", encoding="utf-8")
    return folder


def test_training_photos_without_any_object_are_refused_before_a_model_is_built(tmp_path: Path) -> None:
    config = records(tmp_path)
    config.output_dir = str(tmp_path / "run")
    with pytest.raises(ConfigError, match="no object in 2 training photos"):
        train(config)


def test_keys_of_the_conversion_say_that_rows_are_used_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(records(tmp_path, val_fraction=0.2, splits={"train": "train"}))
    printed = capsys.readouterr().out
    assert "note     data.source.splits has no effect: rows of the records format are used as they are" in printed
    assert "data.source.val_fraction has no effect" in printed and printed.count("has no effect") == 2


@pytest.mark.parametrize(
    ("source", "val"),
    [
        ({"val_fraction": 0.5}, 2),
        ({"val_fraction": 0.5, "group_by": r"(site \d)"}, 2),
        ({"val_fraction": 0.25}, 1),
        ({}, 0),
    ],
)
def test_val_is_drawn_from_a_source_with_train_alone_if_the_config_asks_for_it(
    tmp_path: Path, source: dict[str, Any], val: int
) -> None:
    names = [f"train/images/site {site}/{number}" for site in (1, 2) for number in (1, 2)]
    path = labelled(tmp_path / "raw", *names)
    keys = {"source.format": "yolo", "source.path": str(path)} | {f"source.{key}": source[key] for key in source}
    config = tiny_config(data=keys)
    config.output_dir = str(tmp_path / "run")
    rows = prepare(config).rows("val")
    assert len(rows) == val
    if "group_by" in source:
        assert len({Path(row.images[0]).parent for row in rows}) == 1


def test_a_source_without_any_object_ends_the_preparation(tmp_path: Path) -> None:
    path = labelled(tmp_path / "raw", "images/a")
    (path / "labels").rename(path / "labelTxt")
    config = tiny_config(data={"source.format": "yolo", "source.path": str(path)})
    config.output_dir = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"labelTxt/ \(1 .txt\)"):
        prepare(config)
