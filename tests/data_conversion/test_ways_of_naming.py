"""Every format finds a photo under every name that tools give it, and reads nothing from outside the source."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bbu.errors import UserError
from data_conversion.formats import FORMATS as ALL_FORMATS

SECRET = "0 0.5 0.5 0.1 0.1 topsecret"


def coco(source: Any, name: str, at: str = "annotations.json") -> None:
    image = {"id": 1, "file_name": name, "width": 80, "height": 60}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 10]}
    value = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "x"}]}
    source.write(at, json.dumps(value))


def csv_table(source: Any, name: str, at: str = "labels.csv") -> None:
    source.write(at, f'image,x1,y1,x2,y2,desc\n"{name}",10,10,30,20,x\n')


def cvat(source: Any, name: str, at: str = "annotations.xml") -> None:
    box = '<box label="x" xtl="10" ytl="10" xbr="30" ybr="20"/>'
    image = f'<image id="0" name="{name.replace("&", "&amp;")}" width="80" height="60">{box}</image>'
    source.write(at, f"<annotations><version>1.1</version>{image}</annotations>")


def hf_dataset(source: Any, name: str, at: str = "metadata.jsonl") -> None:
    source.write(at, json.dumps({"file_name": name, "objects": {"bbox": [[10, 10, 20, 10]], "categories": ["x"]}}))


def label_studio(source: Any, name: str, at: str = "project.json") -> None:
    value = {"x": 12.5, "y": 16.6667, "width": 25, "height": 16.6667, "rectanglelabels": ["x"]}
    size = {"original_width": 80, "original_height": 60}
    result = {"id": "r", "type": "rectanglelabels", "from_name": "l", "to_name": "image", "value": value, **size}
    source.write(at, json.dumps([{"id": 1, "data": {"image": name}, "annotations": [{"id": 1, "result": [result]}]}]))


def labelme(source: Any, name: str, at: str = "ann/other.json") -> None:
    shape = {"label": "x", "points": [[10, 10], [30, 20]], "shape_type": "rectangle"}
    source.write(at, json.dumps({"shapes": [shape], "imagePath": name, "imageHeight": 60, "imageWidth": 80}))


def pascal_voc(source: Any, name: str, at: str = "Annotations/other.xml") -> None:
    box = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
    name = name.replace("&", "&amp;")
    source.write(at, f"<annotation><filename>{name}</filename><object><name>x</name>{box}</object></annotation>")


def visual_genome(source: Any, name: str, at: str = "region_descriptions.json") -> None:
    source.write("image_data.json", json.dumps([{"image_id": 1, "width": 80, "height": 60, "url": name}]))
    region = {"region_id": 1, "image_id": 1, "x": 10, "y": 10, "width": 20, "height": 10, "phrase": "x"}
    source.write(at, json.dumps([{"id": 1, "regions": [region]}]))


def yolo(source: Any, name: str, at: str = "train.txt") -> None:
    source.write("data.yaml", "train: train.txt\nnames: [x]\n")
    source.write(at, f"{name}\n")
    source.write("labels/set/photo é.txt", "0 0.25 0.25 0.25 0.1667\n")


# bbu_json names no photo: it lies beside its JSON (below).
FORMATS: dict[str, Callable[..., None]] = {
    "coco": coco,
    "csv": csv_table,
    "cvat": cvat,
    "hf_dataset": hf_dataset,
    "label_studio": label_studio,
    "labelme": labelme,
    "pascal_voc": pascal_voc,
    "visual_genome": visual_genome,
    "yolo": yolo,
}

# The photo is images/set/Photo é.JPG (é as two characters, as macOS writes it).
PHOTO = f"images/set/{unicodedata.normalize('NFD', 'Photo é.JPG')}"
NAMES = {
    "as written": PHOTO,
    "in one Unicode form": "images/set/Photo é.JPG",
    "in another case": "Images/set/photo é.jpg",
    "with another suffix": "images/set/Photo é.png",
    "without a suffix": "images/set/Photo é",
    "a bare name": "Photo é.JPG",
    "a bare name in another case": "photo É.jpg",
    "a path of another machine": "/home/me/line 3/images/set/Photo é.JPG",
    "a path of Windows": "D:\\data\\images\\set\\Photo é.JPG",
    "a path of Windows in another case": "d:\\DATA\\IMAGES\\SET\\PHOTO É.JPG",
    "an address": "https://host.example/bucket/set/Photo%20%C3%A9.JPG?sig=a%2Fb&x=1",
    "a storage key": "s3://bucket/set/Photo é.JPG",
    "a presigned address": "/tasks/7/presign/?fileuri="
    + base64.b64encode("s3://bucket/set/Photo é.JPG".encode()).decode(),
}


@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_photo_is_found(source: Any, name: str, way: str) -> None:
    if name == "visual_genome" and way == "a presigned address":
        pytest.skip("its photos are named by addresses")
    source.photo(PHOTO)
    source.photo("images/other set/Photo.jpg")
    FORMATS[name](source, NAMES[way])
    report = source.convert(name)
    assert (report.photos_written, report.objects_written) == (1, 1)
    assert source.rows()[0].images == (PHOTO,)


@pytest.mark.parametrize("photo", ["a é.JPG", unicodedata.normalize("NFD", "A É.jpg")])
def test_a_photo_beside_its_json_may_be_spelt_otherwise(source: Any, bbu_object: Any, photo: str) -> None:
    source.bbu("a é", [bbu_object()]).with_suffix(".jpg").rename(source.root / photo)
    assert source.convert("bbu_json").photos_read == 1
    assert source.rows()[0].images == (photo,)


def test_every_format_is_tried() -> None:
    assert set(FORMATS) | {"bbu_json"} == {name for name, entry in ALL_FORMATS.items() if entry.read is not None}


@pytest.mark.parametrize("name", FORMATS)
def test_of_two_photos_of_that_name_none_is_taken(source: Any, name: str) -> None:
    for folder in ("one", "two"):
        source.photo(f"{folder}/twin.jpg")
    FORMATS[name](source, "C:\\somewhere\\twin.jpg")
    with pytest.raises(UserError, match=r"may be any of one/twin.jpg, two/twin.jpg") as caught:
        source.convert(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_photo_that_is_nowhere_is_looked_for_at_a_path_that_the_error_shows(source: Any, name: str) -> None:
    source.photo("unrelated.jpg")
    FORMATS[name](source, "set/none.jpg")
    with pytest.raises(UserError, match=rf"no photo at {source.root}/.*set/none.jpg, and none in {source.root} has"):
        source.convert(name)


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("name", FORMATS)
def test_a_photo_behind_a_link_needs_the_option(source: Any, tmp_path: Path, name: str) -> None:
    source.photo("../disk/p.jpg")
    (source.root / "images").mkdir()
    (source.root / "images" / "p.jpg").symlink_to(tmp_path / "disk" / "p.jpg")
    FORMATS[name](source, "images/p.jpg")
    if name == "yolo":
        source.write("labels/p.txt", "0 0.25 0.25 0.25 0.1667\n")
        (source.root / "labels" / "set" / "photo é.txt").unlink()
    with pytest.raises(UserError, match=r"--follow-links \(data.source.follow_links: true\)"):
        source.convert(name)
    with pytest.raises(UserError, match="rows cannot name it; add --images link"):
        source.convert(name, follow_links=True)
    report = source.convert(name, follow_links=True, images="link")
    assert (report.photos_written, report.objects_written) == (1, 1)
    assert (source.out / "photos" / "images" / "p.jpg").read_bytes() == (tmp_path / "disk" / "p.jpg").read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_an_annotation_file_behind_a_link_is_neither_read_nor_quoted(source: Any, tmp_path: Path, name: str) -> None:
    source.photo("images/p.jpg")
    FORMATS[name](source, "images/p.jpg")
    (tmp_path / "secrets").mkdir()
    for path in [path for path in source.root.rglob("*") if path.is_file() and path.suffix != ".jpg"]:
        place = tmp_path / "secrets" / path.name
        place.write_text(f"{SECRET}\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
        path.unlink()
        path.symlink_to(place)
    with pytest.raises(UserError) as caught:
        source.convert(name)
    assert "--follow-links" in str(caught.value) and "topsecret" not in str(caught.value)
    with pytest.raises(UserError, match="none of"):
        source.convert(name, on_error="skip")
    for path in source.out.rglob("*"):
        assert "topsecret" not in path.read_text(encoding="utf-8")


def test_a_photo_on_a_disk_that_is_not_there_is_told_from_one_outside(source: Any, tmp_path: Path) -> None:
    (source.root / "p.jpg").symlink_to(tmp_path / "unmounted" / "p.jpg")
    csv_table(source, "p.jpg")
    with pytest.raises(UserError, match=r"p.jpg is a link to a file that is not there; restore it, or mount its disk"):
        source.convert("csv", follow_links=True)


def test_parquet_and_saved_data_sets_behind_a_link_are_not_read(source: Any, tmp_path: Path) -> None:
    for name, place in (("p.parquet", "train-00000-of-00001.parquet"), ("state.json", "state.json")):
        (tmp_path / name).write_text(SECRET, encoding="utf-8")
        (source.root / place).symlink_to(tmp_path / name)
        with pytest.raises(UserError, match=r"--follow-links") as caught:
            source.convert("hf_dataset")
        assert "topsecret" not in str(caught.value)


def test_a_yolo_label_behind_a_link_is_not_quoted(source: Any, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(SECRET, encoding="utf-8")
    source.photo("images/p.jpg")
    source.write("data.yaml", "names: [x]\n")
    (source.root / "labels").mkdir()
    (source.root / "labels" / "p.txt").symlink_to(tmp_path / "passwd")
    with pytest.raises(UserError, match=r"labels/p.txt: file: is behind a link that leads outside"):
        source.convert("yolo")


def test_a_linked_folder_is_named_and_followed_only_with_the_option(source: Any, tmp_path: Path) -> None:
    source.photo("../disk/far.jpg")
    source.photo("near.jpg")
    (source.root / "far").symlink_to(tmp_path / "disk")
    csv_table(source, "near.jpg")
    assert source.convert("csv").photos_skipped == {"link_not_followed": 1}
    assert source.lines("invalid_samples.jsonl")[0]["source"] == "far"
    assert source.convert("csv", follow_links=True).photos_skipped == {"no_annotation": 1}
