"""Malformed sources: a strict conversion names file and field and writes nothing; a lenient one counts a row."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bbu.errors import UserError
from data_conversion.pipeline import convert

Breaker = Callable[[Any, Any, Any], None]  # (source, bbu_object, document)


def bbu_text(text: str | bytes) -> Breaker:
    """bad.json holds exactly this."""

    def build(source: Any, bbu_object: Any, document: Any) -> None:
        source.photo("bad.jpg")
        source.write("bad.json", text)

    return build


def bbu_value(change: Callable[[dict[str, Any]], Any]) -> Breaker:
    """A sound annotation file of one object, changed in place."""

    def build(source: Any, bbu_object: Any, document: Any) -> None:
        source.photo("bad.jpg")
        value = document([bbu_object()])
        change(value)
        source.write("bad.json", json.dumps(value))

    return build


def feature(change: Callable[[dict[str, Any]], Any]) -> Breaker:
    return bbu_value(lambda value: change(value["markResult"]["features"][0]))


def geometry(name: Any, coordinates: Any) -> Breaker:
    return feature(lambda item: item.update(geometry={"type": name, "coordinates": coordinates}))


def properties(**changes: Any) -> Breaker:
    return feature(lambda item: item["properties"].update({"contentZh": None, **changes}))


def bbu_photo(raw: Callable[[bytes], bytes | None]) -> Breaker:
    """bad.jpg holds these bytes; None removes it."""

    def build(source: Any, bbu_object: Any, document: Any) -> None:
        path: Path = source.bbu("bad", [bbu_object()]).with_suffix(".jpg")
        changed = raw(path.read_bytes())
        path.unlink() if changed is None else path.write_bytes(changed)

    return build


def second_photo(source: Any, bbu_object: Any, document: Any) -> None:
    source.bbu("bad", [bbu_object()])
    source.photo("bad.jpeg")


def name_not_utf8(source: Any, bbu_object: Any, document: Any) -> None:
    source.bbu("bad", [bbu_object()])
    for suffix in (".json", ".jpg"):
        path = source.root / f"bad{suffix}"
        path.rename(source.root / f"bad\udcff{suffix}")


def json_is_a_dead_link(source: Any, bbu_object: Any, document: Any) -> None:
    source.photo("bad.jpg")
    (source.root / "bad.json").symlink_to("nowhere.json")


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


SQUARE = [[1, 1], [9, 1], [9, 9], [1, 9]]

# what is wrong → how to make it, and what the message says
BAD_JSON: dict[str, tuple[Breaker, str]] = {
    "empty file": (bbu_text(""), "is not valid JSON"),
    "truncated JSON": (bbu_text('{"markResult": {"features": ['), "is not valid JSON"),
    "two documents": (bbu_text("{} {}"), "is not valid JSON"),
    "GBK": (bbu_text('{"标签": 1}'.encode("gbk")), "is not UTF-8"),
    "binary": (bbu_text(b"\xff\xd8\xff\xe0"), "is not UTF-8"),
    "a list at the top": (bbu_text("[]"), "file: must be a JSON object, is list"),
    "deep nesting": (bbu_text(deep(100_000)), "nested too deeply"),
    "a number of 5,000 digits": (bbu_text('{"a": ' + "9" * 5000 + "}"), "is not valid JSON"),
    "a key twice": (bbu_text('{"info": {}, "info": {}}'), "info: appears twice"),
    "neither top level": (bbu_text('{"version": "1"}'), "markResult: is missing"),
    "markResult is null": (bbu_text('{"markResult": null}'), "markResult: must be a JSON object"),
    "features missing": (bbu_text('{"markResult": {}}'), "markResult.features: must be a list"),
    "features a mapping": (
        bbu_text('{"markResult": {"features": {}}}'),
        "markResult.features: must be a list, is dict",
    ),
    "dataList a text": (bbu_text('{"dataList": "x"}'), "dataList: must be a list, is str"),
    "half a surrogate pair as a key": (
        bbu_text(r'{"info": {"\ud83d": 1, "\ud83d": 2}}'),
        r"\\ud83d: appears twice",
    ),
    "size a text": (bbu_value(lambda v: v["info"].update(height="60")), "info.height: must be a number"),
    "size NaN": (
        bbu_value(lambda v: v["info"].update(width=float("nan"))),
        "info.width: must be a pixel coordinate, is nan",
    ),
    "info a list": (bbu_value(lambda v: v.update(info=[80, 60])), "info: must be a JSON object"),
    "size on its side": (bbu_value(lambda v: v.update(info={"width": 60, "height": 80})), "60x80 is the photo .80x60."),
    "photo missing": (bbu_photo(lambda raw: None), "has no photo beside it .bad.jpg."),
    "photo empty": (bbu_photo(lambda raw: b""), r"image: bad.jpg: is not a whole image"),
    "photo header cut off": (bbu_photo(lambda raw: raw[:30]), "bad.jpg: is not a whole image"),
    "photo cut off": (bbu_photo(lambda raw: raw[:-40]), "bad.jpg: is not a whole image: .*truncated"),
    "photo is text": (bbu_photo(lambda raw: b"<html>404</html>"), "bad.jpg: is not a whole image: cannot identify"),
    "two photos of one name": (second_photo, "several photos beside it .bad.jpeg, bad.jpg."),
    "file name not UTF-8": (name_not_utf8, r"bad\\udcff.json: file: has a name that is not UTF-8"),
    "a link to nowhere": (json_is_a_dead_link, "bad.json: file: cannot be read"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED_JSON: dict[str, tuple[Breaker, str]] = {
    "dataList of one corner": (
        bbu_text('{"dataList": [{"coordinates": [[1, 2]], "properties": {}}]}'),
        r"dataList\[0\].coordinates: needs two corners",
    ),
    "a feature is text": (
        bbu_value(lambda v: v["markResult"].update(features=["x"])),
        r"features\[0\]: must be a JSON",
    ),
    "geometry missing": (feature(lambda f: f.pop("geometry")), r"features\[0\].geometry: must be a JSON object"),
    "properties missing": (feature(lambda f: f.pop("properties")), r"features\[0\].properties: must be"),
    "unknown geometry type": (geometry("Circle", [[1, 1]]), "geometry.type: must be one of ExtentPolygon"),
    "geometry type a list": (geometry(["Quad"], SQUARE), "geometry.type: must be one of"),
    "coordinates missing": (geometry("Quad", None), "geometry.coordinates: must be a list"),
    "coordinates too few": (geometry("Polygon", SQUARE[:2]), "needs at least 3 corners, has 2"),
    "an extent of three corners": (geometry("ExtentPolygon", SQUARE[:3]), "ExtentPolygon needs 4 corners, has 3"),
    "a line of one point": (geometry("LineString", [[1, 1]]), "at least 2 points"),
    "a point of three numbers": (geometry("Polygon", [[1, 1, 1], [9, 1], [9, 9]]), "must be a point"),
    "a coordinate is text": (geometry("Quad", [["1", 1], *SQUARE[1:]]), r"\[0\]\[0\]: must be a number, is '1'"),
    "a coordinate is true": (geometry("Quad", [[True, 1], *SQUARE[1:]]), "must be a number, is True"),
    "a coordinate is null": (geometry("Quad", [[None, 1], *SQUARE[1:]]), "must be a number, is None"),
    "a coordinate overflows": (geometry("Quad", [[10**400, 1], *SQUARE[1:]]), "must be a pixel coordinate"),
    "a coordinate is infinite": (
        bbu_text(
            '{"markResult": {"features": [{"properties": {}, '
            '"geometry": {"type": "LineString", "coordinates": [[1e999, 1], [2, 2]]}}]}}'
        ),
        "must be a pixel coordinate, is inf",
    ),
    "a polygon with a hole": (geometry("Polygon", [SQUARE, SQUARE]), "has 2 rings"),
    "a label is a number": (properties(contentZh={"标签": 3}), "contentZh.标签: must be text"),
    "contentZh is a list": (properties(contentZh=["标签"]), "contentZh: must be a JSON object"),
    "an answer is a mapping": (properties(content={"bbu_brand": {}}), "content.bbu_brand: must be text or a list"),
    "questions of two types": (
        properties(content={"bbu_brand": "华为", "fiber_protection": "铠装"}),
        "several object types: bbu, fiber",
    ),
    "half a surrogate pair": (properties(contentZh={"标签": "\ud83d"}), "holds a broken character"),
}

# Harmless: the report counts this note
NOTED_JSON: dict[str, tuple[Breaker, str]] = {
    "size zero": (bbu_value(lambda v: v["info"].update(width=0)), "declared_size_unusable"),
    "half a size": (bbu_value(lambda v: v["info"].pop("height")), "declared_size_unusable"),
}


def voc_text(text: str | bytes) -> Breaker:
    def build(source: Any, voc_object: Any, document: Any) -> None:
        source.photo("JPEGImages/bad.jpg")
        source.write("Annotations/bad.xml", text)

    return build


def voc_box(**changes: str) -> Breaker:
    """One object whose box elements are changed; an empty text removes the element."""
    box = {"xmin": "1", "ymin": "1", "xmax": "9", "ymax": "9", **changes}
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in box.items() if value)
    return lambda source, voc_object, document: source.voc(
        "bad", f"<object><name>x</name><bndbox>{tags}</bndbox></object>"
    )


def voc_file_name(name: str) -> Breaker:
    """A <filename>, and no photo that has the name of the XML."""

    def build(source: Any, voc_object: Any, document: Any) -> None:
        source.voc("bad", voc_object(), filename=name)
        (source.root / "JPEGImages" / "bad.jpg").unlink()

    return build


def voc_doctype(source: Any, voc_object: Any, document: Any) -> None:
    source.voc("bad", voc_object("&x;"), head='<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>')


def voc_annotated_twice(source: Any, voc_object: Any, document: Any) -> None:
    source.voc("bad", voc_object())
    source.voc("zz", voc_object(box=(1, 1, 9, 9)), filename="bad.jpg")


def voc_listed_without_xml(source: Any, voc_object: Any, document: Any) -> None:
    source.write("ImageSets/Main/train.txt", "good\nbad\n")


BAD_VOC: dict[str, tuple[Breaker, str]] = {
    "empty XML": (voc_text(""), "is not valid XML"),
    "truncated XML": (voc_text("<annotation><object>"), "is not valid XML"),
    "another root": (voc_text("<html/>"), "html: the root element must be"),
    "DOCTYPE with an entity": (voc_doctype, "DOCTYPE: is refused"),
    "DOCTYPE in UTF-16": (voc_text("<!DOCTYPE a><annotation/>".encode("utf-16")), "DOCTYPE: is refused"),
    "an encoding nobody knows": (voc_text("<?xml version='1.0' encoding='x-y'?><annotation/>"), "is not valid XML"),
    "a photo outside the source": (voc_file_name("../../secret.jpg"), "leaves the source folder"),
    "an absolute photo path": (voc_file_name("/../../../etc/passwd"), "leaves the source folder"),
    "a photo that is not there": (voc_file_name("none.jpg"), "no photo at .*/JPEGImages/none.jpg"),
    "the XML as its own photo": (voc_file_name("../Annotations/bad.xml"), "is not a whole image"),
    "a photo annotated twice": (voc_annotated_twice, "annotated twice, also by Annotations/bad.xml"),
    "listed without XML": (voc_listed_without_xml, "train.txt: bad: has no Annotations/bad.xml"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED_VOC: dict[str, tuple[Breaker, str]] = {
    "bndbox missing": (
        lambda source, voc_object, document: source.voc("bad", "<object><name>x</name></object>"),
        r"object\[0\].bndbox: is missing",
    ),
    "a corner missing": (voc_box(ymax=""), r"object\[0\].bndbox.ymax: is missing"),
    "a corner is text": (voc_box(xmin="left"), "bndbox.xmin: must be a number, is 'left'"),
    "a corner is NaN": (voc_box(xmin="nan"), "bndbox.xmin: must be a pixel coordinate, is nan"),
}

# Harmless: the report counts this note
NOTED_VOC: dict[str, tuple[Breaker, str]] = {
    "size without height": (
        voc_text("<annotation><size><width>9</width></size></annotation>"),
        "declared_size_unusable",
    ),
    "size zero in XML": (
        voc_text("<annotation><size><width>0</width><height>9</height></size></annotation>"),
        "declared_size_unusable",
    ),
}


@dataclass
class Case:
    source_format: str
    build: Callable[..., None]
    why: str
    good: Callable[[Any], None] | None = None


# Every ``formats/bad_<format>.py`` beside this file: FORMAT, good(source), and CASES, DROPPED and NOTED: name →
# (build(source), message). good() makes a source of one sound photo; build() then breaks or adds exactly one thing.
MODULES = [
    importlib.import_module(f"tests.data_conversion.formats.{path.stem}")
    for path in sorted((Path(__file__).parent / "formats").glob("bad_*.py"))
]


def table(name: str, of_json: dict[str, tuple[Breaker, str]], of_voc: dict[str, tuple[Breaker, str]]) -> Any:
    """Parameters: every case of one kind, in all formats."""
    cases = {
        **{case: Case("bbu_json", *parts) for case, parts in of_json.items()},
        **{case: Case("pascal_voc", *parts) for case, parts in of_voc.items()},
        **{
            f"{module.FORMAT}: {case}": Case(module.FORMAT, build, why, module.good)
            for module in MODULES
            for case, (build, why) in getattr(module, name, {}).items()
        },
    }
    return {"params": cases.values(), "ids": cases.keys()}


@pytest.fixture(**table("CASES", BAD_JSON, BAD_VOC))
def case(request: pytest.FixtureRequest, source: Any, bbu_object: Any, voc_object: Any, document: Any) -> Case:
    """A source of one good photo and one bad thing."""
    return build_case(request.param, source, bbu_object, voc_object, document)


@pytest.fixture(**table("DROPPED", DROPPED_JSON, DROPPED_VOC))
def bad_object(request: pytest.FixtureRequest, source: Any, bbu_object: Any, voc_object: Any, document: Any) -> Case:
    """A source of one good photo and a bad object in another."""
    return build_case(request.param, source, bbu_object, voc_object, document)


@pytest.fixture(**table("NOTED", NOTED_JSON, NOTED_VOC))
def oddity(request: pytest.FixtureRequest, source: Any, bbu_object: Any, voc_object: Any, document: Any) -> Case:
    """A source with something that tools write by rote."""
    return build_case(request.param, source, bbu_object, voc_object, document)


def build_case(wanted: Case, source: Any, bbu_object: Any, voc_object: Any, document: Any) -> Case:
    if wanted.good is not None:
        wanted.good(source)
        wanted.build(source)
    elif wanted.source_format == "bbu_json":
        source.bbu("good", [bbu_object()])
        wanted.build(source, bbu_object, document)
    else:
        source.voc("good", voc_object())
        wanted.build(source, voc_object, document)
    return wanted


def test_a_bad_object_is_dropped_alone_and_the_report_says_why(source: Any, bad_object: Case) -> None:
    report = source.convert(bad_object.source_format)
    assert "malformed" not in report.photos_skipped
    assert report.objects_read == report.objects_written + report.objects_dropped and report.objects_written
    lost = [f"{row['source']}: {row['field']}: {row['detail']}" for row in source.lines("invalid_objects.jsonl")]
    assert any(re.search(bad_object.why, line) for line in lost), lost


def test_what_tools_write_by_rote_is_a_note(source: Any, oddity: Case) -> None:
    report = source.convert(oddity.source_format)
    assert not report.photos_skipped or set(report.photos_skipped) == {"no_annotation"}
    assert any(oddity.why in note for note in report.notes), report.notes


def test_strict_one_clear_error_and_no_output(source: Any, case: Case) -> None:
    with pytest.raises(UserError, match=case.why) as caught:
        source.convert(case.source_format)
    assert str(source.root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in source.root.parent.iterdir()] == ["source"]


def test_lenient_one_counted_row_and_the_rest_converted(source: Any, case: Case) -> None:
    report = source.convert(case.source_format, on_error="skip")
    assert report.photos_skipped["malformed"] == 1
    assert report.objects_read == report.objects_written + report.objects_dropped
    assert report.photos_read == report.photos_written + report.photos_skipped.total()
    (bad,) = [row for row in source.lines("invalid_samples.jsonl") if row["reason"] == "malformed"]
    assert set(bad) == {"source", "field", "reason", "detail"}
    assert len(source.rows()) == report.photos_written >= 1


def test_a_source_of_bad_files_only_is_an_error_even_when_lenient(source: Any) -> None:
    source.photo("a.jpg")
    source.write("a.json", "{")
    with pytest.raises(UserError, match=r"none of 1 photos could be converted; the first: a\.json: row: is not valid"):
        source.convert(on_error="skip")
    assert not (source.out / "train.jsonl").exists()
    assert [row["source"] for row in source.lines("invalid_samples.jsonl")] == ["a.json"]


def test_a_stem_in_two_image_sets_is_an_error_even_when_lenient(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object())
    source.write("ImageSets/Main/train.txt", "a\nb")
    source.write("ImageSets/Main/test.txt", "a")
    with pytest.raises(UserError, match="is in train and in test"):
        source.convert("pascal_voc", on_error="skip")


def test_one_list_for_train_and_for_val_is_one_split_and_noted(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object())
    source.write("ImageSets/Main/train.txt", "a")
    source.write("ImageSets/Main/val.txt", "a")
    report = source.convert("pascal_voc")
    assert report.notes == {"val lists the photos of train; they count as train": 1}
    assert [row.metadata["split"] for row in source.rows()] == ["train"]


def test_a_photo_annotated_twice_alike_counts_once(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object())
    source.voc("b", voc_object(), filename="a.jpg")
    (source.root / "JPEGImages/b.jpg").unlink()
    report = source.convert("pascal_voc")
    assert report.photos_skipped == {"same_annotation_twice": 1}
    assert (report.objects_written, report.dropped) == (1, {("RBC", "photo_skipped"): 1})


SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
JUNK = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all nodes of a JSON value below the root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_file_it_is_a_row_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, bbu_object: Any, document: Any, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged"
    root.mkdir(exist_ok=True)
    if not (root / "a.jpg").exists():
        Image.new("RGB", (80, 60)).save(root / "a.jpg")
    features = [
        bbu_object(content={"bbu_brand": "华为"}),
        bbu_object(geometry={"type": "Quad", "coordinates": [SQUARE]}),
    ]
    value = json.loads(json.dumps(document(features)))  # a deep copy, for the junk to go in
    *parents, last = data.draw(st.sampled_from(places(value)))
    node = value
    for key in parents:
        node = node[key]
    node[last] = data.draw(JUNK)
    (root / "a.json").write_text(json.dumps(value), encoding="utf-8")
    try:
        report = convert("bbu_json", root, root / "out", taxonomy=None, on_error="skip", val_fraction=0.0)
    except UserError as error:
        assert "none of 1 photos could be converted" in str(error)
    else:
        assert report.objects_read == report.objects_written + report.objects_dropped
