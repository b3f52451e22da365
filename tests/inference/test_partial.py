"""The partial file: complete rows are kept, incomplete ones are predicted again, the output is written atomically."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import UserError
from bbu.inference.partial import PartialRows
from bbu.records import PredictedObject, PredictionRow, read_predictions

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
