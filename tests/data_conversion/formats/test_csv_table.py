"""CSV tables: the ways in which people write them, rows of a photo wherever they are, errors by line and column."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_conversion.base import Dropped, RawObject, SourceImage
from data_conversion.formats.csv_table import iter_records
from tests.data_conversion.formats.bad_csv_table import HEADER, good
from tests.data_conversion.formats.exporting import convert_or_one_error, damaged, sound_source


def read(source: Any) -> list[SourceImage]:
    items = list(iter_records(source.root))
    assert all(isinstance(item, SourceImage) for item in items), items
    return [item for item in items if isinstance(item, SourceImage)]


def test_a_row_is_an_object_in_displayed_pixels(source: Any) -> None:
    good(source)
    source.photo("good.jpg", size=(60, 80), orientation=6)
    source.convert("csv")
    assert source.objects() == [{"desc": "RBC", "bbox_2d": [10, 10, 30, 20]}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_common_dialect_and_order_of_columns(source: Any, delimiter: str, end: str, mark: str) -> None:
    source.photo("a.jpg")
    rows = [["desc", "y2", "x1", "y1", " x2 ", "image"], ['螺丝/松, 锈;\t"x"', "20", "10", "1e1", " 30.5", "a.jpg"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    source.write("t.csv", mark + text.getvalue() + end)
    (item,) = read(source)
    assert item.objects == (RawObject('螺丝/松, 锈;\t"x"', "bbox_2d", (10, 10, 30.5, 20), "line 2"),)
    assert item.displayed and item.size is None and not item.notes


def test_rows_of_a_photo_need_not_stand_together(source: Any) -> None:
    for name in "ab":
        source.photo(f"images/{name}.jpg")
    lines = ["b.jpg,1,1,9,9,x", "a.jpg,1,1,9,9,x", "", ",,,,,", 'b.jpg,2,2,9,9,"y\nz"', "b.jpg,3,3,9,9,z"]
    source.write("t.csv", HEADER + "\n".join(lines))
    b, a = read(source)
    assert (b.image, [obj.field for obj in b.objects]) == ("images/b.jpg", ["line 2", "line 6", "line 8"])
    assert (a.image, [obj.field for obj in a.objects]) == ("images/a.jpg", ["line 3"])


def test_an_empty_row_is_a_photo_with_nothing_to_see(source: Any) -> None:
    source.photo("a.jpg")
    source.photo("b.jpg")
    source.photo("c.jpg")
    source.write("t.csv", HEADER + "a.jpg,,,,,\nc.jpg,1,1,9,9,x\n")
    report = source.convert("csv")
    assert [(row.images, len(row.objects)) for row in source.rows()] == [(("a.jpg",), 0), (("c.jpg",), 1)]
    assert report.photos_skipped == {"no_annotation": 1}


def test_split_group_and_size_are_the_photo_s_and_other_columns_are_noted(source: Any) -> None:
    source.photo("a.jpg", size=(160, 120))
    header = HEADER.strip() + ",score,split,group,width,height,\n"
    source.write("t.csv", header + "a.jpg,1,1,9,9,x,0.5,valid,site 4,80,60,\na.jpg,2,2,9,9,x,0.5,,,,,\n")
    (item,) = read(source)
    assert (item.split, item.group, item.size) == ("val", "site 4", (80, 60))
    assert item.notes == ("column not read: score", "column not read: ")


def test_a_file_name_may_be_the_split(source: Any) -> None:
    for name in ("train", "val"):
        source.photo(f"{name}.jpg")
        source.write(f"{name}.csv", HEADER + f"{name}.jpg,1,1,9,9,x")
    assert [item.split for item in read(source)] == ["train", "val"]


def test_useless_objects_are_dropped_by_reason(source: Any) -> None:
    source.photo("a.jpg")
    source.write("t.csv", HEADER + "a.jpg,1,1,9,9,\na.jpg,9,1,1,9,x\na.jpg,1,9,9,9,x\na.jpg,1,1,9,9,x\n")
    (item,) = read(source)
    reasons = [obj.reason for obj in item.objects if isinstance(obj, Dropped)]
    assert reasons == ["no_description", "inverted_box", "zero_area"] and len(item.objects) == 4


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn")), min_size=1).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(
    objects=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 40), st.floats(41, 80), TEXT), min_size=1),
    delimiter=st.sampled_from(",;\t"),
)
def test_what_python_writes_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, objects: list[tuple[str, float, float, str]], delimiter: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "written"
    root.mkdir(exist_ok=True)
    with (root / "t.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(HEADER.strip().split(","))
        writer.writerows([f"{name}.jpg", low, low, high, high, desc] for name, low, high, desc in objects)
    found = {item.image[0]: item.objects for item in iter_records(root) if isinstance(item, SourceImage)}
    for name in {name for name, *_ in objects}:
        wanted = [(desc, (low, low, high, high)) for other, low, high, desc in objects if other == name]
        assert [(obj.desc, obj.points) for obj in found[name] if isinstance(obj, RawObject)] == wanted


SOUND = 'image,x1,y1,x2,y2,desc,split\na.jpg,1,1,9,9,"标签, x",train\nb.jpg,,,,,,val\na.jpg,2,2,9,9,y,\n'


@settings(max_examples=60, deadline=None)
@given(content=damaged(SOUND.encode()))
def test_a_damaged_file_is_records_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "csv"
    write = sound_source(root, {"t.csv": SOUND}, ["a.jpg", "b.jpg"])
    write("t.csv", content)
    convert_or_one_error("csv", root)
