"""Real data sets through the whole conversion: what is in them is counted, what is left out has a reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data_conversion.pipeline import convert
from data_conversion.report import ConversionReport

SHARED = Path(os.environ.get("BBU_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"


def conversion(source_format: str, name: str, out: Path, **options: Any) -> ConversionReport:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not there")
    return convert(source_format, SHARED / name, out, taxonomy=None, **options)


def test_blood_cells(tmp_path: Path) -> None:
    report = conversion("pascal_voc", "bccd_voc", tmp_path / "out")
    assert (report.photos_read, report.photos_written) == (364, 364)
    assert report.objects_read == 4888
    assert report.dropped == {("RBC", "zero_area"): 2}
    assert {name: split["photos"] for name, split in report.splits.items()} == {
        "train": 205, "val": 87, "test": 72, "teacher": 0,
    }  # fmt: skip


def test_screws(tmp_path: Path) -> None:
    report = conversion("yolo", "amv_screws_yolo", tmp_path / "out")
    assert (report.photos_read, report.photos_written) == (240, 240)
    assert (report.objects_read, report.objects_written) == (683, 683)
    assert {name: split["photos"] for name, split in report.splits.items()} == {
        "train": 210, "val": 20, "test": 10, "teacher": 0,
    }  # fmt: skip
    assert {name: report.splits[name]["objects"] for name in ("val", "test")} == {"val": 53, "test": 39}


def test_region_phrases_without_pixels(tmp_path: Path) -> None:
    report = conversion("visual_genome", "vg_regions_text", tmp_path / "out", images="none", val_fraction=0.1)
    assert (report.photos_read, report.photos_written) == (100, 100)
    assert report.objects_read == 7278
    assert report.objects_read == report.objects_written + report.objects_dropped
    print(report.summary())
