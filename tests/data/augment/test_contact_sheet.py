"""The contact sheet: a row for each photo, a column for each epoch, and exactly the views of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbu.cli import main
from bbu.config import AugmentConfig
from bbu.data.augment import Augmenter
from bbu.data.augment.contact_sheet import CELL, GAP, LINE_HEIGHT, PAPER, draw_contact_sheet, save_contact_sheet
from bbu.drawing.palette import palette_for
from bbu.errors import UserError
from bbu.jsonl import write_jsonl
from bbu.records import ObjectRow, Row

EPOCHS = {0: 0.1, 1: 0.3}


def sheet(rows: list[Row], folder: Path, config: AugmentConfig | None = None, **options: Any) -> np.ndarray:
    augmenter = Augmenter(config or AugmentConfig(), 17, pool=rows, image_root=folder)
    return np.asarray(draw_contact_sheet(rows, folder, augmenter, **{"epochs": EPOCHS, **options}))


def cell(pixels: np.ndarray, column: int) -> np.ndarray:
    """The photo of a cell in the first line, without its title."""
    left = GAP + column * (CELL + GAP)
    return pixels[GAP + LINE_HEIGHT : GAP + LINE_HEIGHT + CELL * 3 // 4, left : left + CELL]


def test_photos_are_spread_over_the_rows_with_a_column_for_each_epoch(
    make_row: Callable[..., Row], photo_folder: Path
) -> None:
    rows = [make_row(f"{number}.png", 2, (112, 84), number) for number in range(5)]
    wide = sheet(rows, photo_folder, photos=2)
    assert wide.shape[1] == 3 * (CELL + GAP) + GAP
    one = sheet(rows[:1], photo_folder, photos=9)
    np.testing.assert_array_equal(cell(wide, 0), cell(one, 0))
    np.testing.assert_array_equal(cell(one, 0), cell(one, 1))  # no augmentation: as it is in every epoch
    other = sheet(rows[2:3], photo_folder)
    assert (cell(other, 0) != cell(one, 0)).any() and len(wide) > len(one)


def test_outlines_follow_the_objects_in_every_view(make_row: Callable[..., Row], photo_folder: Path) -> None:
    Image.new("RGB", (400, 300), (90, 90, 90)).save(photo_folder / "a.png")
    row = make_row("a.png", [ObjectRow("标签/left", "bbox_2d", (20.0, 40.0, 100.0, 120.0))], (400, 300))
    pixels = sheet([row], photo_folder, AugmentConfig(flip_horizontal=1.0))
    colour = palette_for(["标签"])["标签"]
    for column, (x1, x2) in ((0, (20, 100)), (1, (300, 380))):
        rows, columns = np.nonzero((cell(pixels, column) == colour).all(axis=-1))
        assert abs(columns.min() - x1 * CELL / 400) <= 2 and rows.size > 200
        assert columns.max() >= x2 * CELL / 400 - 2


def test_a_legend_below_each_photo_lists_its_descriptions(make_row: Callable[..., Row], photo_folder: Path) -> None:
    bare, named = (sheet([make_row(f"{count}.png", count, (112, 84))], photo_folder) for count in (0, 4))
    assert len(named) == len(bare) + 3 * LINE_HEIGHT  # "no objects", or a line for each description
    below = named[GAP + LINE_HEIGHT + CELL * 3 // 4 :, GAP : GAP + CELL]
    assert (below != PAPER).any(axis=-1).sum() > 800


def test_a_sheet_without_photos_and_an_unsupported_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no training photo to show; check data\.source"):
        sheet([], tmp_path)
    with pytest.raises(UserError, match=r"sheet\.gif: a sheet is written as \.png or \.jpg"):
        save_contact_sheet(Image.new("RGB", (4, 4)), tmp_path / "sheet.gif")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png: cannot be written"):
        save_contact_sheet(Image.new("RGB", (4, 4)), tmp_path / "folder.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.fixture
def records(make_row: Callable[..., Row], photo_folder: Path, tmp_path: Path) -> list[str]:
    """Overrides that train on five photos."""
    write_jsonl(photo_folder / "train.jsonl", [make_row(f"{n}.png", 2, (112, 84), n) for n in range(5)])
    return [f"data.source.path={photo_folder}", f"output_dir={tmp_path / 'out'}"]


def config_file(tmp_path: Path) -> str:
    path = tmp_path / "my.yaml"
    path.write_text("data: {augment: {mosaic: 0.5, copy_paste: 0.5, rotate: 10, crop: 0.5}}", encoding="utf-8")
    return str(path)


def test_the_command_writes_the_same_sheet_twice(
    records: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in files:
        arguments = ["augment", config_file(tmp_path), *records, "--output", str(path)]
        assert main([*arguments, "--photos", "2", "--views", "3", "--epoch", "4"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "2 photos, epochs 4 to 6" in capsys.readouterr().out


def test_mosaic_without_enough_photos_is_one_line_on_stderr(
    records: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_folder: Path
) -> None:
    lines = (photo_folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (photo_folder / "train.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    assert main(["augment", config_file(tmp_path), *records]) == 2
    assert capsys.readouterr().err.startswith("bbu: error: data.augment.mosaic: needs 4 training photos, there are 2")
    assert main(["augment", config_file(tmp_path), *records, "--epoch", "-1"]) == 2


def epochs_said(capsys: pytest.CaptureFixture[str], *arguments: str) -> float:
    assert main(["augment", *arguments, "--photos", "1", "--views", "1"]) == 0
    return float(capsys.readouterr().out.split(" of ")[1].split(":")[0])


def test_the_length_of_the_run_counts_processes_and_planned_packs(
    records: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("training: {max_steps: 10, batch_size: 3, gradient_accumulation: 2}", encoding="utf-8")
    alone = [str(path), *records, "--output", str(tmp_path / "sheet.png")]
    assert epochs_said(capsys, *alone) == 10 * 3 * 2 / 5
    assert epochs_said(capsys, *alone, "--processes", "4") == 4 * 10 * 3 * 2 / 5
    one_photo_a_pack = ["training.pack_images=1"]
    assert epochs_said(capsys, str(path), *records, *one_photo_a_pack, *alone[-2:]) == 10 * 2 / 5
