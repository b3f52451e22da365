"""Small sets with the faults that users of annotation tools report: photos, layouts, encodings, headers, EXIF."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bbu.errors import UserError
from data_conversion.pipeline import convert

# case → photos with objects that conversion gives, or what the error says
FOUND = {
    "voc_fn_no_ext": 1,
    "voc_fn_other_ext": 1,
    "voc_fn_renamed": 1,
    "voc_fn_windows_path": 1,
    "voc_fn_case": 1,
    "voc_layout_images_annotations": 1,
    "voc_layout_flat_labelimg": 1,
    "voc_layout_roboflow": 3,
    "voc_gb2312": 1,
    "coco_case_ext": 1,
    "coco_abs_path": 1,
    "coco_backslash_other_folder": 1,
    "csv_abs_path": 1,
    "csv_file_in_subfolder": 1,
    "csv_tf_header": 1,
    "csv_utf16_excel": 1,
    "cvat_missing_ext_case": 1,
    "cvat_exif": 1,
    "lm_case": 1,
    "lm_unix_abs": 1,
    "lm_exif": 1,
    "ls_presign": 1,
    "ls_old_completions": 1,
}
REFUSED = {
    "yolo_heic": r"images/b.HEIC is a HEIC photo, which cannot be read; convert it to JPEG",
    "hf_doc_int_categories": r"a class without a name; write the names .* classes.txt",
    "lm_only_mask_shapes": r"all 1 objects were dropped: 1 x unsupported_shape.*invalid_objects.jsonl",
}


@pytest.fixture
def sets(shared_dir: Path) -> Path:
    folder = shared_dir / "data" / "faulty_annotations"
    if not folder.is_dir():
        pytest.skip(f"the faulty sets are not at {folder}")
    return folder


def format_of(sets: Path, case: str) -> str:
    lines = (sets / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    return str(next(value["format"] for value in map(json.loads, lines) if value["case"] == case))


@pytest.mark.parametrize("case", FOUND)
def test_what_a_tool_wrote_is_read(sets: Path, tmp_path: Path, case: str) -> None:
    report = convert(format_of(sets, case), sets / case, tmp_path / "out", taxonomy=None, val_fraction=0.0)
    assert (report.photos_written, report.objects_dropped) == (FOUND[case], 0)
    assert report.objects_written >= FOUND[case]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_an_error_that_shows_the_way(sets: Path, tmp_path: Path, case: str) -> None:
    with pytest.raises(UserError, match=REFUSED[case]) as caught:
        convert(format_of(sets, case), sets / case, tmp_path / "out", taxonomy=None, val_fraction=0.0)
    assert "\n" not in str(caught.value)
