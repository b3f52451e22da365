"""The JSONL contract: what is read, what is refused and with which words, and that writing leaves nothing half done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import RecordError, UserError
from bbu.jsonl import atomic_file, atomic_writer, write_json, write_jsonl
from bbu.records import (
    FewShotSample,
    ObjectRow,
    PredictedObject,
    PredictionRow,
    Row,
    parse_prediction_row,
    parse_row,
    parse_sample,
    read_predictions,
    read_rows,
    read_samples,
    resolve_image,
)
from bbu.taxonomy import split_path


def row(**changes: Any) -> dict[str, Any]:
    """A good row with some fields replaced; None takes a field away."""
    value = {
        "images": ["a.jpg"],
        "objects": [{"desc": "挡风板", "bbox_2d": [10, 20, 30, 40]}],
        "width": 100,
        "height": 80,
        **changes,
    }
    return {name: item for name, item in value.items() if item is not None}


def with_object(**fields: Any) -> dict[str, Any]:
    return row(objects=[{"desc": "标签", "bbox_2d": [1, 2, 3, 4]}, {"desc": "螺丝", **fields}])


def prediction(**changes: Any) -> dict[str, Any]:
    item = {"bbox_2d": [1, 2, 30, 40], "desc": "标签", "score": 0.5, "objectness": 0.6, **changes}
    return {
        "images": ["a.jpg"],
        "width": 100,
        "height": 80,
        "predictions": [{name: value for name, value in item.items() if value is not None}],
    }


# ---------------------------------------------------------------- good rows


def test_a_row_is_read_field_by_field() -> None:
    parsed = parse_row(row(summary="一块", metadata={"task": 3}), "x.jsonl:1")
    assert parsed == Row(("a.jpg",), (ObjectRow("挡风板", "bbox_2d", (10, 20, 30, 40)),), 100, 80, "一块", {"task": 3})


def test_a_photo_without_annotation_is_not_a_photo_with_nothing_in_it() -> None:
    unknown, empty = (parse_row({**row(), "objects": value}, "x.jsonl:1") for value in (None, []))
    assert unknown.objects == empty.objects == ()
    assert not unknown.annotated and empty.annotated
    assert unknown.to_json()["objects"] is None and empty.to_json()["objects"] == []
    assert all(parse_row(item.to_json(), "x.jsonl:1") == item for item in (unknown, empty))


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("bbox_2d", [1, 2, 30, 40], (1, 2, 30, 40)),
        ("poly", [10, 5, 20, 0, 30, 25], (10, 0, 30, 25)),
        ("line", [50, 7, 10, 7], (10, 7, 50, 7)),
    ],
)
def test_each_geometry_has_its_enclosing_box(kind: str, points: list[float], box: tuple[float, ...]) -> None:
    parsed = parse_row(row(objects=[{"desc": "线缆", kind: points}]), "x.jsonl:1")
    assert parsed.objects[0].kind == kind and parsed.objects[0].box == box


def test_a_photo_without_objects_is_a_good_row() -> None:
    assert parse_row(row(objects=[]), "x.jsonl:1").objects == ()


def test_a_coordinate_may_lie_half_a_pixel_outside_and_no_more() -> None:
    assert parse_row(with_object(bbox_2d=[-0.5, 0, 100.5, 80.5]), "x:1").objects[1].points == (-0.5, 0, 100.5, 80.5)
    with pytest.raises(RecordError, match=r"x = 100\.6 is outside the image \(0 to 100\)"):
        parse_row(with_object(bbox_2d=[0, 0, 100.6, 80]), "x:1")


def test_a_plain_row_is_a_student_without_teachers() -> None:
    assert parse_sample(row(), "x:1") == FewShotSample(parse_row(row(), "x:1"))


def test_a_few_shot_sample_keeps_its_teachers_in_order() -> None:
    value = {"teachers": [row(images=["t1.jpg"]), row(images=["t2.jpg"])], "student": row(images=["s.jpg"])}
    sample = parse_sample(value, "x:1")
    assert [item.images[0] for item in (*sample.teachers, sample.student)] == ["t1.jpg", "t2.jpg", "s.jpg"]


def test_context_photos_are_kept_and_only_written_where_there_are_any() -> None:
    value = {"student": row(images=["s.jpg"]), "context": [row(images=["c1.jpg"]), row(images=["c2.jpg"])]}
    sample = parse_sample(value, "x:1")
    assert [item.images[0] for item in sample.context] == ["c1.jpg", "c2.jpg"] and sample.teachers == ()
    assert parse_sample(sample.to_json(), "x:1") == sample
    assert "context" not in FewShotSample(sample.student).to_json()


def test_the_group_of_a_photo_is_in_its_metadata() -> None:
    groups = [{}, {"group": ""}, {"group": None}, {"group": "site 7"}, {"group": 7}]
    assert [parse_row(row(metadata=group), "x:1").group for group in groups] == [None, None, None, "site 7", "7"]


def test_objectness_of_older_predictions_is_their_score() -> None:
    assert parse_prediction_row(prediction(objectness=None), "x:1").predictions[0].objectness == 0.5


# ---------------------------------------------------------------- bad rows

BAD_ROWS: list[tuple[str, Any, str, str]] = [
    ("not an object", [1, 2], "row", "must be a JSON object"),
    ("no images field", row(images=None), "images", "is missing"),
    ("no objects field", row(objects=None), "objects", "is missing"),
    ("no width", row(width=None), "width", "is missing"),
    ("misspelt field", {**row(), "heigth": 3}, "heigth", "did you mean 'height'?"),
    ("unknown field", {**row(), "zzz": 3}, "zzz", "known fields are images, objects"),
    ("images is text", row(images="a.jpg"), "images", "must be a list"),
    ("images is empty", row(images=[]), "images", "at least one path"),
    ("blank image path", row(images=["  "]), "images[0]", "non-empty text"),
    ("image path is a number", row(images=[3]), "images[0]", "non-empty text"),
    ("width 0", row(width=0), "width", "above 0"),
    ("height negative", row(height=-5), "height", "above 0"),
    ("width a float", row(width=100.0), "width", "whole number"),
    ("width true", row(width=True), "width", "whole number"),
    ("width as text", row(width="100"), "width", "whole number"),
    ("summary a number", row(summary=4), "summary", "must be text"),
    ("metadata a list", row(metadata=[1]), "metadata", "must be an object"),
    ("objects an object", row(objects={}), "objects", "must be a list"),
    ("object is text", row(objects=["x"]), "objects[0]", "must be a JSON object"),
    ("no desc", row(objects=[{"bbox_2d": [1, 2, 3, 4]}]), "objects[0].desc", "is missing"),
    ("empty desc", with_object(desc="", bbox_2d=[1, 2, 3, 4]), "objects[1].desc", "non-empty text"),
    ("desc half a character", with_object(desc="\ud800", bbox_2d=[1, 2, 3, 4]), "objects[1].desc", "half a character"),
    ("no geometry", with_object(), "objects[1].bbox_2d", "found none"),
    (
        "two geometries",
        with_object(bbox_2d=[1, 2, 3, 4], line=[1, 2, 3, 4]),
        "objects[1].bbox_2d",
        "found bbox_2d and line",
    ),
    ("misspelt geometry", with_object(bbox2d=[1, 2, 3, 4]), "objects[1].bbox2d", "did you mean 'bbox_2d'?"),
    ("box of three", with_object(bbox_2d=[1, 2, 3]), "objects[1].bbox_2d", "at least 4 numbers, has 3"),
    ("box of five", with_object(bbox_2d=[1, 2, 3, 4, 5]), "objects[1].bbox_2d", "needs 4 numbers"),
    ("swapped corners", with_object(bbox_2d=[30, 2, 3, 4]), "objects[1].bbox_2d", "swap the corners"),
    ("flat box", with_object(bbox_2d=[1, 2, 30, 2]), "objects[1].bbox_2d", "x1 < x2 and y1 < y2"),
    ("coordinate as text", with_object(bbox_2d=[1, "2", 3, 4]), "objects[1].bbox_2d[1]", "must be a number"),
    ("coordinate true", with_object(bbox_2d=[1, True, 3, 4]), "objects[1].bbox_2d[1]", "must be a number"),
    ("coordinate null", with_object(bbox_2d=[None, 2, 3, 4]), "objects[1].bbox_2d[0]", "must be a number"),
    ("coordinate too big", with_object(bbox_2d=[1, 2, 10**400, 4]), "objects[1].bbox_2d[2]", "finite number"),
    ("right of the image", with_object(bbox_2d=[1, 2, 101, 4]), "objects[1].bbox_2d", "x = 101 is outside"),
    ("below the image", with_object(line=[1, 2, 3, 90]), "objects[1].line", "y = 90 is outside the image (0 to 80)"),
    ("polygon of two points", with_object(poly=[1, 2, 3, 4]), "objects[1].poly", "at least 6 numbers"),
    ("polygon of odd count", with_object(poly=[1, 2, 3, 4, 5, 6, 7]), "objects[1].poly", "needs pairs"),
    ("line of one point", with_object(line=[1, 2]), "objects[1].line", "at least 4 numbers"),
    ("polygon of pairs", with_object(poly=[[1, 2], [3, 4], [5, 6]]), "objects[1].poly", "at least 6 numbers"),
]


@pytest.mark.parametrize(("value", "field", "why"), [case[1:] for case in BAD_ROWS], ids=[case[0] for case in BAD_ROWS])
def test_a_bad_row_names_its_line_its_field_and_the_reason(tmp_path: Path, value: Any, field: str, why: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row()) + "\n\n" + json.dumps(value) + "\n", encoding="utf-8")
    with pytest.raises(RecordError) as caught:
        read_rows(path)
    assert (caught.value.where, caught.value.field) == (f"{path}:3", field)
    assert why in caught.value.why
    assert str(caught.value) == f"{path}:3: {field}: {caught.value.why}" and "\n" not in str(caught.value)


BAD_SAMPLES: list[tuple[str, Any, str]] = [
    ("no student", {"teachers": []}, "student"),
    ("teachers an object", {"teachers": {}, "student": row()}, "teachers"),
    ("extra field", {"student": row(), "images": ["a.jpg"]}, "images"),
    ("bad student", {"student": row(width=0)}, "student.width"),
    ("bad teacher", {"student": row(), "teachers": [row(), row(objects=[{}])]}, "teachers[1].objects[0].desc"),
    ("teacher no object", {"student": row(), "teachers": [3]}, "teachers[0]"),
    ("bad context", {"student": row(), "context": [row(), row(height=0)]}, "context[1].height"),
    ("context alone", {"context": [row()]}, "student"),
]


@pytest.mark.parametrize(("value", "field"), [case[1:] for case in BAD_SAMPLES], ids=[case[0] for case in BAD_SAMPLES])
def test_a_bad_sample_names_the_turn(value: Any, field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_sample(value, "x.jsonl:9")
    assert (caught.value.where, caught.value.field) == ("x.jsonl:9", field)


BAD_PREDICTIONS: list[tuple[str, Any, str]] = [
    ("score above 1", prediction(score=1.5), "predictions[0].score"),
    ("score negative", prediction(score=-0.1), "predictions[0].score"),
    ("score as text", prediction(score="0.5"), "predictions[0].score"),
    ("no score", prediction(score=None), "predictions[0].score"),
    ("objectness above 1", prediction(objectness=2), "predictions[0].objectness"),
    ("a level too few", prediction(desc="标签/完整", levels=[0.5]), "predictions[0].levels"),
    ("a level too many", prediction(levels=[0.5, 0.4]), "predictions[0].levels"),
    ("levels of no words", prediction(desc="", levels=[0.5]), "predictions[0].levels"),
    ("levels a number", prediction(levels=0.5), "predictions[0].levels"),
    ("level above 1", prediction(desc="标签/完整", levels=[0.5, 1.5]), "predictions[0].levels[1]"),
    ("level as text", prediction(levels=["0.5"]), "predictions[0].levels[0]"),
    ("box of five", prediction(bbox_2d=[1, 2, 3, 4, 5]), "predictions[0].bbox_2d"),
    ("desc a number", prediction(desc=3), "predictions[0].desc"),
    ("extra field", prediction(label="x"), "predictions[0].label"),
    ("error with boxes", {"images": ["a"], "error": "x", "predictions": []}, "predictions"),
    ("blank error", {"images": ["a"], "error": ""}, "error"),
    ("no predictions", {"images": ["a"], "width": 3, "height": 3}, "predictions"),
]


@pytest.mark.parametrize(
    ("value", "field"), [case[1:] for case in BAD_PREDICTIONS], ids=[case[0] for case in BAD_PREDICTIONS]
)
def test_a_bad_prediction_names_its_field(value: Any, field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_prediction_row(value, "p.jsonl:4")
    assert (caught.value.where, caught.value.field) == ("p.jsonl:4", field)


# ---------------------------------------------------------------- files

GOOD = json.dumps(row(), ensure_ascii=False)


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a row, lists and objects included."""
    yield way
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield from leaves(inner, (*way, step))


def put(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    if not way:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = put(copy[way[0]], way[1:], new)
    return copy


ODD: list[Any] = [
    10**400, -(10**400), 10**4000, 1e308, -1e308, float("nan"), float("inf"), 2**63, 0, -1, 0.5, True, None, "", "7",
    [], {}, [[]], "\ud800", "x" * 100_000, {"\ud800": 1}, [float("inf")],
]  # fmt: skip


def test_no_value_anywhere_in_a_row_ends_in_anything_but_an_error_that_names_it(tmp_path: Path) -> None:
    """Every value of every kind of row × ODD; what is accepted can be scored and written."""
    good_row = row(
        objects=[{"desc": "标签", "bbox_2d": [1, 2, 3, 4]}, {"desc": "线", "line": [1, 2, 9, 9]}],
        metadata={"group": 3},
        summary="一块",
    )
    found = {**prediction(levels=[0.5]), "images": ["a.jpg"]}
    refused = accepted = 0
    for parse, value in (
        (parse_row, good_row),
        (parse_sample, {"teachers": [row()], "student": good_row, "context": [row()]}),
        (parse_prediction_row, found),
        (parse_prediction_row, {"images": ["a.jpg"], "error": "gone"}),
    ):
        for way in leaves(value):
            for odd in ODD:
                try:
                    parsed = parse(put(value, way, odd), "x.jsonl:7")
                except RecordError as error:
                    assert str(error).startswith("x.jsonl:7: ") and len(str(error)) < 1000
                    refused += 1
                    continue
                accepted += 1
                json.dumps(parsed.to_json(), ensure_ascii=False, allow_nan=False).encode()
                if isinstance(parsed, Row):
                    score([parsed], [PredictionRow(parsed.images, parsed.width, parsed.height)])
                elif isinstance(parsed, PredictionRow) and parsed.images == ("a.jpg",):
                    score([parse_row(row(), "y.jsonl:1")], [parsed])
    assert refused > 1000 and accepted > 20


@pytest.mark.filterwarnings("error")
def score(truth: list[Row], found: list[PredictionRow]) -> None:
    from bbu.evaluation import evaluate

    metrics = evaluate(truth, found, bootstrap_samples=0)
    assert "NaN" not in json.dumps(metrics)


def write_bytes(folder: Path, content: bytes) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        GOOD.encode(),
        GOOD.encode() + b"\n",
        b"\n  \n" + GOOD.encode() + b"\n\t\n",
        GOOD.encode() + b"\r\n",
        b"\xef\xbb\xbf" + GOOD.encode() + b"\n",
        json.dumps(row(), ensure_ascii=True).encode(),
    ],
    ids=["no line end", "line end", "blank lines", "Windows line end", "byte-order mark", "escapes"],
)
def test_harmless_differences_of_files_are_accepted(tmp_path: Path, content: bytes) -> None:
    assert read_rows(write_bytes(tmp_path, content)) == [parse_row(row(), "")]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(write_bytes(tmp_path, b"")) == []


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    value = row(objects=[{"desc": "a\u2028b\x85c", "bbox_2d": [1, 2, 3, 4]}])
    path = write_bytes(tmp_path, json.dumps(value, ensure_ascii=False).encode())
    assert read_rows(path)[0].objects[0].desc == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("bad", "field", "why"),
    [
        (GOOD.replace("[10", "[NaN").encode(), "row", "NaN is not valid JSON"),
        (GOOD.replace("[10", "[-Infinity").encode(), "row", "-Infinity is not valid JSON"),
        (GOOD.replace("[10", "[1e999").encode(), "objects[0].bbox_2d[0]", "finite number"),
        (GOOD.replace('"width": 100', '"width": 100, "width": 90').encode(), "width", "appears twice"),
        (b'{"images": [', "row", "is not valid JSON"),
        (GOOD.encode("utf-16"), "row", "is not UTF-8"),
        (GOOD.encode("gb18030"), "row", "is not UTF-8"),
        (b"[" * 100_000, "row", "nested too deeply"),
        (GOOD.replace("100", "9" * 5000).encode(), "row", "is not valid JSON"),
    ],
    ids=["NaN", "Infinity", "1e999", "duplicate key", "cut off", "UTF-16", "GB18030", "deep", "endless digits"],
)
def test_a_line_that_cannot_be_decoded_names_its_line(tmp_path: Path, bad: bytes, field: str, why: str) -> None:
    path = write_bytes(tmp_path, GOOD.encode() + b"\n" + bad)
    with pytest.raises(RecordError, match=why) as caught:
        read_rows(path)
    assert (caught.value.where, caught.value.field) == (f"{path}:2", field)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_rows, read_samples, read_predictions])
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(RecordError, match=r"nowhere\.jsonl: file: does not exist"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(RecordError, match="is not a file"):
        read(tmp_path)


# ---------------------------------------------------------------- writing, then reading

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda t: t.strip() != "")
names = st.lists(texts, min_size=1, max_size=2).map(tuple)
WIDTH, HEIGHT = 640, 480


def hundredths(largest: int) -> st.SearchStrategy[float]:
    """Coordinates as they are written: two decimals."""
    return st.integers(0, largest * 100).map(lambda value: value / 100)


@st.composite
def object_rows(draw: st.DrawFn) -> ObjectRow:
    kind = draw(st.sampled_from(["bbox_2d", "poly", "line"]))
    if kind == "bbox_2d":
        xs = sorted(draw(st.lists(hundredths(WIDTH), min_size=2, max_size=2, unique=True)))
        ys = sorted(draw(st.lists(hundredths(HEIGHT), min_size=2, max_size=2, unique=True)))
        return ObjectRow(draw(texts), kind, (xs[0], ys[0], xs[1], ys[1]))
    pairs = draw(st.lists(st.tuples(hundredths(WIDTH), hundredths(HEIGHT)), min_size=3, max_size=6))
    return ObjectRow(draw(texts), kind, tuple(value for pair in pairs for value in pair))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
rows = st.builds(
    Row,
    names,
    st.lists(object_rows(), max_size=4).map(tuple),
    st.just(WIDTH),
    st.just(HEIGHT),
    st.none() | texts,
    st.dictionaries(texts, json_values, max_size=3),
)
turns = st.lists(rows, max_size=2).map(tuple)
samples = st.builds(FewShotSample, rows, turns, turns)


@given(st.lists(samples, max_size=3))
def test_samples_written_and_read_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, written: list[FewShotSample]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "samples.jsonl"
    assert write_jsonl(path, written) == len(written)
    assert read_samples(path) == written


@given(
    st.tuples(*[st.floats(0, WIDTH)] * 2).map(sorted).filter(lambda v: v[0] < v[1]),
    st.tuples(*[st.floats(0, HEIGHT)] * 2).map(sorted).filter(lambda v: v[0] < v[1]),
)
def test_a_box_that_can_be_read_can_be_written_and_read_again(xs: list[float], ys: list[float]) -> None:
    value = {"desc": "标签", "bbox_2d": [xs[0], ys[0], xs[1], ys[1]]}
    first = parse_row(row(objects=[value], width=WIDTH, height=HEIGHT), "x:1")
    again = parse_row(json.loads(json.dumps(first.to_json())), "x:1")
    assert max(abs(a - b) for a, b in zip(first.objects[0].points, again.objects[0].points, strict=True)) <= 0.005001


units = st.integers(0, 1_000_000).map(lambda value: value / 1_000_000)
boxes = st.tuples(hundredths(WIDTH), hundredths(HEIGHT), hundredths(WIDTH), hundredths(HEIGHT))
plain = st.builds(PredictedObject, boxes, st.just("") | texts, units, units)
predicted = plain | st.builds(
    lambda item, share: replace(item, levels=(share,) * len(split_path(item.desc))), plain, units
)
prediction_rows = st.one_of(
    st.builds(
        PredictionRow,
        names,
        st.integers(1, 5000),
        st.integers(1, 5000),
        st.lists(predicted, max_size=4).map(tuple),
    ),
    st.builds(lambda images, error: PredictionRow(images, error=error), names, texts),
)


@given(st.lists(prediction_rows, max_size=3))
def test_predictions_written_and_read_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, written: list[PredictionRow]
) -> None:
    path = tmp_path_factory.mktemp("predictions") / "predictions.jsonl"
    write_jsonl(path, written)
    assert read_predictions(path) == written


def test_rows_are_written_as_plain_utf8_with_whole_numbers_bare(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [Row(("图.jpg",), (ObjectRow("标签", "bbox_2d", (1.0, 2.004, 30.126, 40.5)),), 100, 80)])
    assert path.read_bytes().decode("utf-8") == (
        '{"images": ["图.jpg"], "objects": [{"desc": "标签", "bbox_2d": [1, 2, 30.13, 40.5]}], '
        '"width": 100, "height": 80}\n'
    )


# ---------------------------------------------------------------- atomic writing


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_writer(path) as stream:
        stream.write("half a line")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_binary_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / ("n" * 250)  # as long as a file name may be
    with atomic_file(path) as file:
        file.write_bytes(b"old")
        assert not path.exists()
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == [path.name]


def test_a_hard_link_keeps_the_permissions_of_its_source(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "link"
    source.write_bytes(b"photo")
    source.chmod(0o600)
    for _ in range(2):  # the second time the link is there already
        with atomic_file(path) as file:
            file.unlink()
            os.link(source, file)
        assert path.samefile(source) and source.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["link", "source"]


def test_rows_that_break_off_leave_no_file(tmp_path: Path) -> None:
    def break_off() -> Any:
        yield row()
        raise UserError("the second photo is broken")

    with pytest.raises(UserError):
        write_jsonl(tmp_path / "rows.jsonl", break_off())
    assert os.listdir(tmp_path) == []


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("pipe", "device"):
        with pytest.raises(UserError, match=rf"{name}: is a pipe or device, which would be replaced; name a file"):
            write_json(tmp_path / name, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "pipe"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_is_not_json_leaves_no_file(tmp_path: Path, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "facts.json", {"fine": 1, "bad": value})
    with pytest.raises((ValueError, TypeError)):
        write_jsonl(tmp_path / "rows.jsonl", [{"fine": 1}, {"bad": value}])
    assert os.listdir(tmp_path) == []


def test_a_writer_makes_folders_and_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "facts.json"
    write_json(path, {"名": 1})
    write_json(path, {"名": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"名": 2} and os.listdir(path.parent) == ["facts.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_place_that_cannot_be_written_is_named_before_any_row_is_made(tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("a row was made")
        yield

    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="is a folder"):
        write_jsonl(tmp_path, never())
    with pytest.raises(UserError, match=r"rows\.jsonl: cannot be written: "):
        write_jsonl(tmp_path / "file" / "rows.jsonl", never())
    assert os.listdir(tmp_path) == ["file"]


# ---------------------------------------------------------------- image paths


def test_an_image_path_inside_its_root_is_found(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "图.jpg").touch()
    assert resolve_image(tmp_path, "in/图.jpg") == tmp_path.resolve() / "in" / "图.jpg"
    assert resolve_image(tmp_path, "in/../in/图.jpg") == tmp_path.resolve() / "in" / "图.jpg"
    assert resolve_image(tmp_path, str(tmp_path / "in" / "图.jpg")) == tmp_path.resolve() / "in" / "图.jpg"


ESCAPES = ["../secret.jpg", "in/../../secret.jpg", "/etc/passwd", "in/link.jpg", "out/secret.jpg"]


@pytest.mark.parametrize("name", ESCAPES)
def test_an_image_path_that_leaves_its_root_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.jpg").touch()
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leaves its folder") as caught:
        resolve_image(root, name)
    assert repr(name) in str(caught.value)


def test_a_folder_whose_name_only_starts_like_the_root_is_outside(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos2").mkdir()
    with pytest.raises(UserError, match="leaves its folder"):
        resolve_image(tmp_path / "photos", "../photos2/a.jpg")


def test_an_image_path_with_a_null_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\\x00b\.jpg"):
        resolve_image(tmp_path, "a\0b.jpg")


def test_links_in_a_circle_are_refused_or_not_found(tmp_path: Path) -> None:
    from bbu.images import load_image

    (tmp_path / "a.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg"):
        load_image(resolve_image(tmp_path, "a.jpg"))
