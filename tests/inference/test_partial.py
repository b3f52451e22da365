"""The partial file: complete rows are kept, incomplete ones are predicted again, the output is written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import UserError
from bbu.inference.partial import PartialRows
from bbu.records import PredictedObject, PredictionRow, read_predictions
from tests.small_disk import fill, make_room, small_disk

SETTINGS = {"model": "abc"}


def row(index: int) -> PredictionRow:
    """The row of a photo, whose file name and words are not all ASCII."""
    found = PredictedObject((1.25, 2.5, 30.0, 40.75), "螺丝/松\u2028动", 0.123457, 0.5)
    return PredictionRow((f"照片{index}.jpg",), 100 + index, 90, (found,) * (index % 3))


def begin(output: Path, count: int = 5, **settings: str) -> PartialRows:
    return PartialRows(output, SETTINGS | settings, count)


def stop(output: Path, rows: list[int], count: int = 5) -> Path:
    """A prediction that was killed after these rows."""
    partial = begin(output, count)
    for index in rows:
        partial.add(index, row(index))
    partial.close()
    return partial.path


def test_rows_added_in_any_order_are_written_in_input_order(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out.jsonl"
    partial = begin(output)
    for index in (3, 0, 4, 1, 2):
        assert not output.exists() and not partial.is_done(index)
        partial.add(index, row(index))
        assert partial.is_done(index)
    partial.finish()
    partial.close()
    assert read_predictions(output) == [row(index) for index in range(5)]
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


def test_a_row_is_on_disk_once_it_is_added(tmp_path: Path) -> None:
    partial = begin(tmp_path / "out.jsonl")
    partial.add(3, row(3))
    assert json.loads(partial.path.read_text(encoding="utf-8").split("\n")[1]) == {"index": 3, "row": row(3).to_json()}
    assert partial.path == tmp_path / ".out.jsonl.partial"
    partial.close()


@given(
    cut=st.integers(0, 2000), junk=st.sampled_from([b"", b"\n", b"{}\n", b'{"index": 9, "row": {}}\n', b"\x00\xff\n"])
)
def test_wherever_a_run_was_cut_off_complete_rows_are_kept(
    cut: int, junk: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = tmp_path_factory.mktemp("cut") / "out.jsonl"
    path = stop(output, [3, 0, 4])
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole[:cut] + junk)
    kept = sum(len(b"".join(lines[: n + 1])) <= cut for n in range(1, 4))
    partial = begin(output)
    assert [index for index in (3, 0, 4) if partial.is_done(index)] == [3, 0, 4][:kept]
    for index in range(5):
        if not partial.is_done(index):
            partial.add(index, row(index))
    partial.finish()
    partial.close()
    assert read_predictions(output) == [row(index) for index in range(5)]


def test_other_settings_or_other_photos_start_over(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for count, settings in ((5, {"model": "abd"}), (6, {})):
        stop(output, [1, 2])
        partial = begin(output, count, **settings)
        assert partial.begun == "replaced" and partial.done() == 0
        partial.close()
        partial.path.unlink()
    assert begin(output).begun == ""


def test_photos_that_failed_are_tried_again(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    partial = begin(output, 2)
    partial.add(0, PredictionRow(("a.jpg",), error="the network drive was away"))
    partial.add(1, row(1))
    partial.close()
    partial = begin(output, 2)
    assert (partial.begun, partial.done(), partial.is_done(0), partial.is_done(1)) == ("resumed", 1, False, True)
    assert partial.failed == {0}
    partial.add(0, row(0))
    assert partial.failed == set()
    partial.finish()
    partial.close()
    assert read_predictions(output) == [row(0), row(1)]


def test_two_predictions_of_one_output_do_not_mix(tmp_path: Path) -> None:
    partial = begin(tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="another prediction is writing"):
        begin(tmp_path / "out.jsonl")
    partial.close()
    begin(tmp_path / "out.jsonl").close()


def test_an_unwritable_output_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        begin(tmp_path / "file" / "out.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        begin(tmp_path)


# ---------------------------------------------------------------- rows that make no sense

HUGE = 10**400
NAMES = [f"照片{index}.jpg" for index in range(5)]


def changed(**changes: Any) -> dict[str, Any]:
    """The line of photo 1 with other values at the top."""
    return {"index": 1, "row": row(1).to_json(), **changes}


def changed_row(**changes: Any) -> dict[str, Any]:
    return changed(row={**row(1).to_json(), **changes})


def changed_item(**changes: Any) -> dict[str, Any]:
    return changed_row(predictions=[{**row(1).to_json()["predictions"][0], **changes}])


SENSELESS: dict[str, Any] = {
    "a list": [1],
    "a number": 3,
    "null": None,
    "no row": {"index": 1},
    "more than a row": changed(extra=1),
    "row is a list": changed(row=[]),
    "row is empty": changed(row={}),
    "index of no photo": changed(index=5),
    "index below zero": changed(index=-1),
    "index is text": changed(index="1"),
    "index is true": changed(index=True),
    "index is a fraction": changed(index=1.5),
    "index of 400 digits": changed(index=HUGE),
    "another photo": changed_row(images=["照片2.jpg"]),
    "two photos": changed_row(images=["照片1.jpg", "照片2.jpg"]),
    "no photo": changed_row(images=[]),
    "photo is a number": changed_row(images=[1]),
    "width is text": changed_row(width="101"),
    "width is a fraction": changed_row(width=101.5),
    "width of zero": changed_row(width=0),
    "width of 400 digits": changed_row(width=HUGE),
    "height of 400 digits": changed_row(height=-HUGE),
    "predictions are no list": changed_row(predictions={}),
    "a prediction is no object": changed_row(predictions=[7]),
    "box outside": changed_item(bbox_2d=[1, 2, 300, 40]),
    "box left of it": changed_item(bbox_2d=[-9, 2, 30, 40]),
    "box turned": changed_item(bbox_2d=[30, 2, 1, 40]),
    "box of three": changed_item(bbox_2d=[1, 2, 30]),
    "box of text": changed_item(bbox_2d=["1", 2, 30, 40]),
    "box of NaN": changed_item(bbox_2d=[float("nan"), 2, 30, 40]),
    "box to infinity": changed_item(bbox_2d=[1, 2, float("inf"), 40]),
    "box of 400 digits": changed_item(bbox_2d=[1, 2, HUGE, 40]),
    "score over 1": changed_item(score=1.5),
    "score of 400 digits": changed_item(score=HUGE),
    "objectness is null": changed_item(objectness=None),
    "levels do not fit": changed_item(levels=[0.5] * 9),
    "description is a number": changed_item(desc=4),
    "error is a number": changed(row={"images": ["照片1.jpg"], "error": 4}),
    "error and predictions": changed_row(error="x"),
}
TEXTS: dict[str, bytes] = {
    **{name: json.dumps(value, ensure_ascii=False).encode() for name, value in SENSELESS.items()},
    "cut in the middle": json.dumps(changed()).encode()[:60],
    "two lines in one": json.dumps(changed()).encode() * 2,
    "empty": b"",
    "zeros": bytes(300),
    "no UTF-8": b'{"index": 1, "row": "\xff"}',
    "too many digits": b'{"index": ' + b"9" * 9000 + b', "row": {}}',
    "too deep": b"[" * 100_000,
    "a number no float can hold": json.dumps(changed()).replace("0.123457", "1e999").encode(),
    "a key twice": json.dumps(changed()).replace('"width"', '"width": 3, "width"').encode(),
}


def resumed(output: Path) -> PartialRows:
    return PartialRows(output, SETTINGS, 5, [(name,) for name in NAMES])


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_line_that_makes_no_sense_is_predicted_again_and_costs_no_other(text: bytes, tmp_path: Path) -> None:
    path = stop(tmp_path / "out.jsonl", [3, 1, 0])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], text + b"\n", lines[3]]))
    partial = resumed(tmp_path / "out.jsonl")
    assert [partial.is_done(index) for index in range(5)] == [True, False, False, True, False]
    assert (partial.begun, partial.senseless) == ("resumed", 1)
    for index in (1, 2, 4):
        partial.add(index, row(index))
    partial.finish()
    partial.close()
    assert read_predictions(tmp_path / "out.jsonl") == [row(index) for index in range(5)]


def test_what_a_prediction_writes_makes_sense_to_the_next(tmp_path: Path) -> None:
    stop(tmp_path / "out.jsonl", list(range(5)))
    partial = resumed(tmp_path / "out.jsonl")
    assert (partial.done(), partial.senseless) == (5, 0)
    partial.close()


@pytest.mark.parametrize("seed", range(3))
def test_wherever_bytes_are_flipped_the_output_is_whole_and_every_row_makes_sense(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    output = tmp_path / "out.jsonl"
    path = stop(output, [3, 0, 4, 1, 2])
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, len(data), int(random.integers(1, 4))):
            data[place] = int(random.integers(0, 256))
        path.write_bytes(data)
        partial = resumed(output)
        for index in range(5):
            if not partial.is_done(index):
                partial.add(index, row(index))
        partial.finish()
        partial.close()
        assert [found.images for found in read_predictions(output)] == [(name,) for name in NAMES]


# ---------------------------------------------------------------- a full disk


def add_all(output: Path, rows: int, long: PredictionRow) -> tuple[PartialRows, int]:
    """The file with all rows, and how many there were before."""
    partial = PartialRows(output, SETTINGS, rows)
    before = partial.done()
    try:
        for index in range(rows):
            if not partial.is_done(index):
                partial.add(index, long)
    except UserError:
        partial.close()
        raise
    return partial, before


@pytest.mark.parametrize("leave", [0, 4096, 20_480])
def test_a_full_disk_is_one_line_what_is_whole_stays_and_a_rerun_goes_on(leave: int, tmp_path: Path) -> None:
    item = PredictedObject((1, 2, 30, 40), "螺丝" * 200, 0.5, 0.5)
    long = PredictionRow(("照片.jpg",), 100, 90, (item,))
    with small_disk(tmp_path / "disk") as disk:
        output = disk / "out.jsonl"
        fill(disk, leave)
        with pytest.raises(UserError, match=r"out\.jsonl.*: cannot be written: No space left on device") as caught:
            add_all(output, 50, long)
        assert "\n" not in str(caught.value)
        make_room(disk)
        partial, before = add_all(output, 50, long)
        assert before >= leave // 4096 - 1
        fill(disk)
        with pytest.raises(UserError, match=r"out\.jsonl: cannot be written: No space left on device"):
            partial.finish()
        partial.close()
        assert not output.exists()
        make_room(disk)
        partial, before = add_all(output, 50, long)
        assert before == 50
        partial.finish()
        partial.close()
        assert read_predictions(output) == [long] * 50
        assert [path.name for path in disk.iterdir()] == ["out.jsonl"]
