"""Annotation files in the encodings and headers that tools and offices write, and where they lie."""

from __future__ import annotations

import codecs
from typing import Any

import pytest

from bbu.errors import RecordError, UserError
from data_conversion.formats.files import read_text
from tests.data_conversion.test_ways_of_naming import FORMATS

UNICODE = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-16-le": b"",
    "utf-16-be": b"",
    "utf-16-le with a mark": codecs.BOM_UTF16_LE,
    "utf-16-be with a mark": codecs.BOM_UTF16_BE,
    "utf-32": b"",
}


@pytest.mark.parametrize("encoding", UNICODE)
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("cvat", "pascal_voc")])
def test_text_in_unicode_is_read(source: Any, name: str, encoding: str) -> None:
    source.photo("images/p.jpg")
    FORMATS[name](source, "images/p.jpg")
    if name == "yolo":
        source.write("labels/p.txt", "0 0.25 0.25 0.25 0.1667\n")
        (source.root / "labels" / "set" / "photo é.txt").unlink()
    for path in [path for path in source.root.rglob("*") if path.is_file() and path.suffix != ".jpg"]:
        path.write_bytes(UNICODE[encoding] + path.read_text(encoding="utf-8").encode(encoding.partition(" ")[0]))
    assert source.convert(name).objects_written == 1


@pytest.mark.parametrize("encoding", ["gb18030", "cp1252", "shift_jis"])
def test_any_other_encoding_is_an_error_that_shows_the_way(source: Any, encoding: str) -> None:
    text = {"cp1252": "Bücher", "gb18030": "螺丝", "shift_jis": "ネジ"}[encoding]
    path = source.write("a.txt", text.encode(encoding))
    with pytest.raises(RecordError, match=r"a.txt: file: is not UTF-8 \(.*\); save it as UTF-8, for example: iconv -f"):
        read_text(path, "a.txt")


XML_ENCODINGS = (
    "utf-8",
    "gb2312",
    "gbk",
    "gb18030",
    "big5",
    "shift_jis",
    "euc-kr",
    "iso-8859-1",
    "windows-1252",
    "utf-16",
)
WORDS = {"big5": "螺絲", "shift_jis": "ネジ", "euc-kr": "나사", "iso-8859-1": "Schräube", "windows-1252": "Schräube"}


@pytest.mark.parametrize("declared", XML_ENCODINGS)
@pytest.mark.parametrize("name", ["cvat", "pascal_voc"])
def test_xml_is_read_in_the_encoding_that_it_declares(source: Any, name: str, declared: str) -> None:
    source.photo("images/p.jpg")
    FORMATS[name](source, "images/p.jpg")
    (path,) = source.root.rglob("*.xml")
    word = WORDS.get(declared, "螺丝")
    text = path.read_text(encoding="utf-8").replace('label="x"', f'label="{word}"').replace(">x<", f">{word}<")
    padding = "<!-- " + word * 20_000 + " -->"  # characters across the borders of what is read at a time
    head = f'<?xml version="1.0" encoding="{declared}"?>'
    path.write_bytes((head + text.replace("</annotation", f"{padding}</annotation")).encode(declared))
    source.convert(name)
    assert source.objects()[0]["desc"] == word


@pytest.mark.parametrize("name", ["cvat", "pascal_voc"])
def test_xml_that_declares_utf_16_and_is_utf_8_is_read(source: Any, name: str) -> None:
    source.photo("images/p.jpg")
    FORMATS[name](source, "images/p.jpg")
    (path,) = source.root.rglob("*.xml")
    path.write_text('<?xml version="1.0" encoding="utf-16"?>' + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert source.convert(name).objects_written == 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'<?xml version="1.0" encoding="gbk"?><annotation>' + b"\xff\xff</annotation>", "is not in the encoding"),
        ("<annotation><object><name>螺丝</name></object></annotation>".encode("gbk"), 'encoding="GB18030"'),
        ('<?xml version="1.0" encoding="UTF-8"?><annotation>螺丝</annotation>'.encode("gbk"), 'encoding="GB18030"'),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "is not valid XML: unknown encoding"),
    ],
)
def test_xml_in_a_wrong_encoding_is_an_error_that_shows_the_way(source: Any, content: bytes, why: str) -> None:
    source.photo("JPEGImages/p.jpg")
    source.write("Annotations/p.xml", content)
    with pytest.raises(UserError, match=why):
        source.convert("pascal_voc")


HEADERS = (
    "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,80,60,x,10,10,30,20\n",  # TensorFlow
    "Filename;Class;XMin;YMin;XMax;YMax\na.jpg;x;10;10;30;20\n",
    "image_id\tlabel\tleft\ttop\tright\tbottom\na\tx\t10\t10\t30\t20\n",
    "file_name,category,x_min,y_min,x_max,y_max\na.jpg,x,10,10,30,20\n",
    "path,image,x1,y1,x2,y2,desc\nelsewhere,a.jpg,10,10,30,20,x\n",  # our own name first
)


@pytest.mark.parametrize("text", HEADERS)
def test_common_headers_of_tables_are_read(source: Any, text: str) -> None:
    source.photo("a.jpg")
    source.write("labels.csv", text)
    source.convert("csv")
    assert source.objects() == [{"desc": "x", "bbox_2d": [10, 10, 30, 20]}]


@pytest.mark.parametrize("name", ["coco", "csv", "cvat", "label_studio"])
def test_an_annotation_file_one_folder_down_is_found(source: Any, name: str) -> None:
    source.photo("set/images/a.jpg")
    FORMATS[name](
        source,
        "a.jpg",
        f"set/{'annotations.xml' if name == 'cvat' else 'labels.' + ('csv' if name == 'csv' else 'json')}",
    )
    assert source.convert(name).objects_written == 1


def test_a_data_yaml_one_folder_down_is_named(source: Any) -> None:
    source.photo("set/images/a.jpg")
    source.write("set/data.yaml", "names: [x]\n")
    with pytest.raises(UserError, match=r"there is set/data.yaml: convert that folder"):
        source.convert("yolo")


BOX = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
XML = f"<annotation><filename>{{name}}</filename><object><name>x</name>{BOX}</object></annotation>"


@pytest.mark.parametrize(
    ("xml", "photo", "split"),
    [
        ("annotations/a.xml", "images/a.jpg", "train"),
        ("a.xml", "a.jpg", "train"),
        ("valid/a.xml", "valid/a.jpg", "val"),
        ("VOCdevkit/VOC2012/Annotations/a.xml", "VOCdevkit/VOC2012/JPEGImages/a.jpg", "train"),
        ("Annotations/site/a.xml", "JPEGImages/site/a.jpg", "train"),
    ],
)
def test_layouts_of_pascal_voc(source: Any, xml: str, photo: str, split: str) -> None:
    for name in ("a", "b"):
        source.write(xml.replace("a.xml", f"{name}.xml"), XML.format(name=f"{name}.jpg"))
        source.photo(photo.replace("a.jpg", f"{name}.jpg"))
    if split == "val":
        source.write("train/c.xml", XML.format(name="c.jpg"))
        source.photo("train/c.jpg")
    report = source.convert("pascal_voc")
    assert report.splits[split]["photos"] == 2 and not report.photos_skipped


def test_numbered_classes_take_their_names_from_a_list(source: Any) -> None:
    source.photo("a.jpg")
    source.write("metadata.jsonl", '{"file_name": "a.jpg", "objects": {"bbox": [[1, 1, 9, 9]], "categories": [1]}}')
    with pytest.raises(UserError, match=r"is 1, a class without a name; write the names in .*classes.txt"):
        source.convert("hf_dataset")
    source.write("classes.txt", "nut\nbolt\n")
    source.convert("hf_dataset")
    assert source.objects()[0]["desc"] == "bolt"


def test_completions_are_annotations(source: Any) -> None:
    source.photo("a.jpg")
    FORMATS["label_studio"](source, "a.jpg")
    path = source.root / "project.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"annotations"', '"completions"'), encoding="utf-8")
    assert source.convert("label_studio").objects_written == 1


def test_a_source_that_gives_no_row_leaves_its_reports(source: Any) -> None:
    source.photo("a.jpg")
    csv = "image,x1,y1,x2,y2,desc\na.jpg,10,10,10,20,x\na.jpg,30,10,20,20,y\na.jpg,90,90,99,99,z\n"
    source.write("labels.csv", csv)
    with pytest.raises(
        UserError, match=r"none of 1 photos could be converted.*objects: 1 x .*invalid_samples"
    ) as caught:
        source.convert("csv")
    reasons = {row["reason"] for row in source.lines("invalid_objects.jsonl")}
    assert reasons and all(f"1 x {reason}" in str(caught.value) for reason in reasons)
    assert len(source.lines("invalid_samples.jsonl")) == 1 and (source.out / "conversion_report.json").is_file()
    assert not (source.out / "train.jsonl").exists()


def test_reports_of_a_failure_do_not_replace_earlier_rows(source: Any) -> None:
    source.photo("a.jpg")
    source.write("labels.csv", "image,x1,y1,x2,y2,desc\na.jpg,10,10,30,20,x\n")
    source.convert("csv")
    before = {path.name: path.read_bytes() for path in source.out.iterdir()}
    source.write("labels.csv", "image,x1,y1,x2,y2,desc\na.jpg,10,10,10,20,x\n")
    with pytest.raises(UserError, match=r"out/nothing_converted/invalid_samples.jsonl"):
        source.convert("csv")
    assert {path.name: path.read_bytes() for path in source.out.iterdir() if path.is_file()} == before
    assert (source.out / "nothing_converted" / "invalid_objects.jsonl").is_file()
