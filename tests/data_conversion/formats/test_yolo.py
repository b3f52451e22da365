"""YOLO: data.yaml in all its spellings, both kinds of rows, a real data set, and the way out and back in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.errors import UserError
from bbu.geometry import enclosing_box, thicken
from data_conversion.base import BadSource, Dropped, ExportObject, ExportPhoto, RawObject, SourceImage, SourceOptions
from data_conversion.formats.yolo import iter_records
from data_conversion.formats.yolo_writer import photo_place, write_records
from tests.data_conversion.formats.bad_yolo import YAML, good
from tests.data_conversion.formats.exporting import (
    convert_or_one_error,
    damaged,
    export_photos,
    in_pixels,
    out_and_in,
    sound_source,
)


def read(source: Any) -> dict[str, SourceImage]:
    """Photo → item; no item is bad."""
    items = list(iter_records(source.root))
    assert all(isinstance(item, SourceImage) for item in items), items
    return {item.image: item for item in items if isinstance(item, SourceImage)}


def only_bad(source: Any) -> BadSource:
    """The one item of a source that cannot be read at all."""
    (item,) = iter_records(source.root)
    assert isinstance(item, BadSource)
    return item


# ---------------------------------------------------------------- rows


def test_boxes_and_polygons_are_shares_of_the_displayed_photo(source: Any) -> None:
    good(source)
    source.write("labels/train/good.txt", "1 0.5 0.5 0.25 0.5\r\n\r\n0 0.25 0 0.5 0 0.5 0.5\n0 0 0 1 0 1 1 0 1\n")
    source.convert("yolo")
    assert source.objects() == [
        {"desc": "RBC", "poly": [0, 0, 80, 0, 80, 60, 0, 60]},
        {"desc": "RBC", "poly": [20, 0, 40, 0, 40, 30]},
        {"desc": "WBC", "bbox_2d": [30, 15, 50, 45]},
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shares_are_of_the_photo_turned_by_its_exif_tag(source: Any, orientation: int) -> None:
    good(source)
    source.photo("images/train/good.jpg", orientation=orientation)
    source.convert("yolo")
    width, height = (60, 80) if orientation > 4 else (80, 60)
    assert source.objects() == [{"desc": "RBC", "bbox_2d": [width * 3 / 8, height / 4, width * 5 / 8, height * 3 / 4]}]


def test_a_box_without_area_is_dropped_and_a_repeated_row_too(source: Any) -> None:
    good(source)
    source.write("labels/train/good.txt", "0 .5 .5 .2 .2\n" * 2 + "1 .5 .5 0 .2\n1 .5 .5 .2 0\n")
    report = source.convert("yolo")
    assert report.dropped == {("WBC", "zero_area"): 2, ("RBC", "duplicate"): 1}


def test_a_rounding_outside_the_photo_is_accepted(source: Any) -> None:
    good(source)
    source.write("labels/train/good.txt", "0 0.5 0.5 1.0001 1")
    source.convert("yolo")
    assert source.objects() == [{"desc": "RBC", "bbox_2d": [0, 0, 80, 60]}]


def test_a_class_may_be_written_as_a_float(source: Any) -> None:
    good(source)
    source.write("labels/train/good.txt", "0.0 .5 .5 .2 .2\n1.000000000000000000e+00 .5 .5 .5 .5\n0.5 .5 .5 .1 .1")
    report = source.convert("yolo")
    assert {item["desc"] for item in source.objects()} == {"RBC", "WBC"}
    assert report.dropped == {("RBC", "malformed_object"): 1}


@pytest.mark.parametrize("shape", ["[2, 3]", "[3, 2]"])
def test_of_a_pose_the_box_is_read_and_the_key_points_are_counted(source: Any, shape: str) -> None:
    good(source)
    source.write("data.yaml", f"{YAML}kpt_shape: {shape}\nflip_idx: [0, 1]\ncolours: [red]\n")
    source.write("labels/train/good.txt", "0 .5 .5 .25 .5 .5 .5 2 .4 .4 1\n0 .5 .5 .25 .25\n1 .5 .5 .25 .5 .5 .5\n")
    report = source.convert("yolo")
    assert [item["bbox_2d"] for item in source.objects()] == [[30, 15, 50, 45], [30, 22.5, 50, 37.5]]
    assert report.notes == {"key points not read": 1, "data.yaml key not read: colours": 1}
    assert report.dropped == {("WBC", "malformed_object"): 1}


POSES = ["0 .5 .5 .25 .5 .5 .55 .45 .5", "0 .5 .5 .25 .5 .5 .55 0 0", "0 .5 .5 .25 .5 .5 .55 2 .45 .5 1"]


@pytest.mark.parametrize("row", POSES)
def test_rows_that_are_poses_as_well_as_polygons_are_asked_about(source: Any, row: str) -> None:
    good(source)
    source.write("labels/train/good.txt", f"{row}\n{row}\n")
    bad = only_bad(source)
    assert (bad.source, bad.field) == ("data.yaml", "kpt_shape")
    assert "task: segment" in bad.detail and "labels/train/good.txt line 1" in bad.detail
    source.write("data.yaml", f"{YAML}task: segment\n")
    kinds = {item.kind for item in read(source)["images/train/good.jpg"].objects if isinstance(item, RawObject)}
    assert kinds <= {"poly"}


@pytest.mark.parametrize(
    "rows",
    [
        "0 .4 .4 .6 .4 .6 .6 .4 .6",  # a box by its corners
        "0 .5 .4 .6 .5 .5 .6 .4 .5",  # a turned one
        f"{POSES[0]}\n0 .5 .5 .6 .5 .55 .6",  # polygons have any number of corners
        f"{POSES[0]}\n0 .1 .1 .4 .1 .3 .4 .1 .3",  # as a pose its box would leave the photo
    ],
)
def test_polygons_are_not_mistaken_for_poses(source: Any, rows: str) -> None:
    good(source)
    source.write("labels/train/good.txt", rows)
    assert all(item.kind == "poly" for item in read(source)["images/train/good.jpg"].objects)


def test_an_empty_label_file_and_none_are_photos_with_nothing_to_see(source: Any) -> None:
    good(source)
    source.write("labels/train/empty.txt", "\n")
    source.photo("images/train/empty.jpg")
    source.photo("images/train/none.jpg")
    report = source.convert("yolo")
    assert (report.photos_written, report.objects_written) == (3, 1)
    assert report.notes == {"no_label_file": 1}


def test_a_byte_order_mark_is_accepted(source: Any) -> None:
    good(source)
    source.write("labels/train/good.txt", b"\xef\xbb\xbf0 .5 .5 .25 .5")
    source.write("data.yaml", b"\xef\xbb\xbf" + YAML.encode())
    source.convert("yolo")
    assert source.objects() == [{"desc": "RBC", "bbox_2d": [30, 15, 50, 45]}]


# ---------------------------------------------------------------- where photos and labels are


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.jpg", "labels/a.txt"),
        ("train/images/a.rf.7.jpg", "train/labels/a.rf.7.txt"),
        ("images/x/images/a.jpg", "images/x/labels/a.txt"),
        ("photos/a.jpg", "photos/a.txt"),
        ("my_images/a.jpg", "my_images/a.txt"),
    ],
)
def test_the_last_folder_images_becomes_labels(source: Any, image: str, label: str) -> None:
    source.photo(image)
    source.write(label, "0 .5 .5 .5 .5")
    source.write("data.yaml", "names: [x]")
    assert [(item.source, len(item.objects)) for item in read(source).values()] == [(label, 1)]


@pytest.mark.parametrize(
    ("lines", "images"),
    [
        ("train: images/train\nval: images/val", ["images/train/a.jpg", "images/val/b.jpg"]),
        ("train: [images/train]\nval:\n  - images/val\ntest:\n", ["images/train/a.jpg", "images/val/b.jpg"]),
        ("train: ../images/train\nvalid: ./images/val/\n", ["images/train/a.jpg", "images/val/b.jpg"]),
        ("path: images\ntrain: train\nvalidation: val\n", ["images/train/a.jpg", "images/val/b.jpg"]),
        ("path: images\ntrain: ../images/train\n", ["images/train/a.jpg"]),
        ("path: ../datasets/screws\ntrain: images/train\ntest: null", ["images/train/a.jpg"]),
        ("path: /content/set\ntrain: images\\train\n", ["images/train/a.jpg"]),
        ("train: lists/train.txt\n", ["images/train/a.jpg"]),
        ("train: [images/train, lists/train.txt]\n", ["images/train/a.jpg"]),
    ],
)
def test_entries_are_found_however_they_are_written(source: Any, lines: str, images: list[str]) -> None:
    source.photo("images/train/a.jpg")
    source.photo("images/val/b.jpg")
    source.write("lists/train.txt", "\ufeff./images/train/a.jpg\n\n..\\images\\train\\a.jpg\r\n")
    source.write("data.yaml", f"names: {{0: x}}\n{lines}")
    found = read(source)
    assert list(found) == images
    assert [item.split for item in found.values()] == ["train", "val"][: len(images)]


def test_an_absolute_path_to_the_source_itself_is_inside(source: Any) -> None:
    good(source)
    source.write("data.yaml", f"{YAML.replace('images', str(source.root / 'images'))}\npath: {source.root}")
    assert list(read(source)) == ["images/train/good.jpg"]


def test_a_path_to_another_folder_that_is_there_is_refused(source: Any) -> None:
    good(source)
    (source.root.parent / "other").mkdir()
    source.write("data.yaml", f"{YAML}path: ../other")
    assert "leaves the source folder" in only_bad(source).detail


@pytest.mark.parametrize("name", ["classes.txt", "obj.names", "labels/classes.txt", "data.yaml"])
def test_without_entries_every_photo_is_read_and_folders_are_the_splits(source: Any, name: str) -> None:
    source.write(name, "names: [x, y]" if name == "data.yaml" else "x\ny\n\n")
    for folder in ("train", "valid", "test2017", "more"):
        source.photo(f"images/{folder}/a.jpg")
        source.write(f"labels/{folder}/a.txt", "1 .5 .5 .5 .5")
    source.photo(".hidden/a.jpg")
    found = read(source)
    assert {item.split for item in found.values()} == {"train", "val", "test", None}
    assert {obj.desc for item in found.values() for obj in item.objects} == {"y"}  # type: ignore[union-attr]


def test_labels_that_no_entry_reaches_are_counted(source: Any) -> None:
    good(source)
    source.photo("images/extra/b.JPG")
    source.write("labels/extra/b.txt", "0 .5 .5 .5 .5")
    assert source.convert("yolo").photos_skipped == {"not_in_image_sets": 1}


def test_the_output_folder_is_not_read(source: Any) -> None:
    good(source)
    source.write("data.yaml", "names: [RBC, WBC]")
    source.photo("out/images/b.jpg")
    source.write("out/labels/b.txt", "9")
    (item,) = iter_records(source.root, SourceOptions(ignore=source.root / "out"))
    assert isinstance(item, SourceImage)


# ---------------------------------------------------------------- data.yaml


@pytest.mark.parametrize(
    ("names", "known"),
    [
        ("[a, 'b/c', 线缆]", {0: "a", 1: "b/c", 2: "线缆"}),
        ("{0: a, 2: b}", {0: "a", 2: "b"}),
        ("\n  '0': no\n  1: 007\n  2: 1e3\n  3: ~\n", {0: "no", 1: "007", 2: "1e3", 3: "~"}),
    ],
)
def test_names_are_read_as_they_are_written(source: Any, names: str, known: dict[int, str]) -> None:
    good(source)
    source.write("data.yaml", f"names: {names}\ntrain: images/train")
    source.write("labels/train/good.txt", "".join(f"{number} .5 .5 .5 .5\n" for number in known))
    (item,) = read(source).values()
    assert [obj.desc for obj in item.objects] == list(known.values())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must hold names"),
        ("- a\n- b", "must hold names"),
        ("train: images/train", "names: must be a list"),
        ("names: RBC", "names: must be a list"),
        ("names: [[a]]", "names.'0': must be text, is list"),
        ("names: {a: 0}", "names.'a': must be a class number"),
        ("names: {-1: a}", "names.'-1': must be a class number"),
        ("names: {0: a, 00: b}", "one number twice"),
        ("names: {0: a, 0: b}", "'0': appears twice"),
        ("names: [a]\nnames: [b]", "'names': appears twice"),
        ("names: [a]\nnc: 2", "nc: is '2', but names has 1"),
        ("names: [a]\ntrain: {x: y}", "train: must be a folder, a list of folders or a .txt, is dict"),
        ("names: [a]\nkpt_shape: {a: b}", "kpt_shape: must be [points, 2 or 3]"),
        ("names: [a]\ntask: pose it", "task: must be one of detect, segment, obb, pose"),
        ("names: [a", "is not valid YAML"),
        ("names: &x [*x]", "is not valid YAML"),
        ("[" * 3000, "nested too deeply"),
        ("names: [\x07]", "is not valid YAML"),
        ('names: ["\\ud83d"]', "holds a broken character"),
        (b"\xff\xfen", "is not UTF-16"),
    ],
)
def test_a_bad_data_yaml_is_one_error_and_no_photos(source: Any, text: str | bytes, why: str) -> None:
    good(source)
    source.write("data.yaml", text)
    bad = only_bad(source)
    assert bad.source == "data.yaml" and why in f"{bad.field}: {bad.detail}"


def test_without_names_or_with_two_descriptions_there_is_one_error(source: Any) -> None:
    good(source)
    (source.root / "data.yaml").rename(source.root / "cells.yaml")
    assert list(read(source)) == ["images/train/good.jpg"]
    source.write("other.yml", YAML)
    assert "one of cells.yaml, other.yml" in only_bad(source).detail
    (source.root / "cells.yaml").unlink()
    (source.root / "other.yml").unlink()
    with pytest.raises(UserError, match=r"data.yaml: file: is missing, and so are classes.txt"):
        source.convert("yolo", on_error="skip")


# ---------------------------------------------------------------- a real data set


@pytest.fixture
def screws(shared_dir: Path) -> Path:
    folder = shared_dir / "data" / "amv_screws_yolo"
    if not folder.is_dir():
        pytest.skip(f"the screws data set is not at {folder}")
    return folder


def count_by_hand(screws: Path) -> Counter[tuple[str, str]]:
    """(split, class) → boxes, from the text files alone."""
    names = ["Black screw", "Long screw", "Medium screw", "Short screw"]
    counts: Counter[tuple[str, str]] = Counter()
    for folder, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        for file in (screws / folder / "labels").glob("*.txt"):
            for line in file.read_text().splitlines():
                counts[split, names[int(line.split()[0])]] += 1
    return counts


def test_the_real_screws_lose_nothing(screws: Path, tmp_path: Path) -> None:
    from data_conversion.pipeline import convert

    items = [item for item in iter_records(screws) if isinstance(item, SourceImage)]
    assert Counter(item.split for item in items) == {"train": 210, "val": 20, "test": 10}
    counts = Counter((str(item.split), obj.desc) for item in items for obj in item.objects)  # type: ignore[union-attr]
    assert counts == count_by_hand(screws)
    assert counts.total() == 683
    assert sum(count for (split, _), count in counts.items() if split == "val") == 53
    assert sum(count for (split, _), count in counts.items() if split == "test") == 39
    report = convert("yolo", screws, tmp_path / "out", taxonomy=None, workers=1)
    assert (report.photos_read, report.photos_written) == (240, 240)
    assert (report.objects_read, report.objects_written) == (683, 683)
    assert report.notes.get("clipped_object", 0) == 0


def test_the_real_screws_written_and_read_again_are_the_same(screws: Path) -> None:
    items = [item for item in iter_records(screws) if isinstance(item, SourceImage)][:40]
    photos = [
        ExportPhoto(
            item.image,
            640,
            640,
            tuple(ExportObject(p.desc, p.kind, tuple(v * 640 for v in p.points)) for p in item.objects),  # type: ignore[union-attr]
            item.split,
        )
        for item in items
    ]
    losses, found = out_and_in("yolo", photos)
    assert not losses
    for photo in photos:
        again = in_pixels(found[photo_place(photo.image, photo.split)], photo)
        assert [desc for desc, _, _ in again] == [obj.desc for obj in photo.objects]
        for (_, _, points), obj in zip(again, photo.objects, strict=True):
            assert points == pytest.approx(obj.points, abs=1e-4)


# ---------------------------------------------------------------- writing


@settings(max_examples=60, deadline=None)
@given(export_photos())
def test_what_is_written_is_read_again(photos: list[ExportPhoto]) -> None:
    losses, found = out_and_in("yolo", photos)
    objects = [obj for photo in photos for obj in photo.objects]
    polygons = any(obj.kind == "poly" for obj in objects)
    for photo in photos:
        item = found[photo_place(photo.image, photo.split)]
        assert item.split == (photo.split or "train")
        again = in_pixels(item, photo)
        assert [desc for desc, _, _ in again] == [obj.desc for obj in photo.objects]
        for (_, kind, points), obj in zip(again, photo.objects, strict=True):
            assert kind == ("poly" if polygons else "bbox_2d")
            if obj.kind == "poly":
                assert points == pytest.approx(obj.points, abs=1e-4)
            else:
                box = enclosing_box(obj.points)
                box = thicken(box, photo.width, photo.height) if obj.kind == "line" else box
                assert enclosing_box(points) == pytest.approx(box, abs=1e-4)
    assert losses["line written as its box"] == sum(obj.kind == "line" for obj in objects)
    boxes = sum(obj.kind != "poly" for obj in objects)
    assert losses["box written as a polygon of four corners"] == (boxes if polygons else 0)
    assert losses["score not kept"] == sum(obj.score is not None for obj in objects)
    assert losses["summary not kept"] == sum(photo.summary is not None for photo in photos)
    assert losses["photo without a split written to train"] == sum(photo.split is None for photo in photos)


@settings(max_examples=50, deadline=None)
@given(export_photos(kinds=("bbox_2d",), largest=20_000))
def test_boxes_of_huge_photos_survive_to_a_thousandth_of_a_pixel(
    tmp_path_factory: pytest.TempPathFactory, photos: list[ExportPhoto]
) -> None:
    folder = tmp_path_factory.mktemp("huge")
    write_records(iter(photos), folder)
    names = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))["names"]
    for photo in photos:
        label = folder / photo_place(photo.image, photo.split).replace("images/", "labels/", 1)
        rows = [line.split() for line in label.with_suffix(".txt").read_text(encoding="utf-8").splitlines()]
        assert [names[int(row[0])] for row in rows] == [obj.desc for obj in photo.objects]
        for row, obj in zip(rows, photo.objects, strict=True):
            cx, cy, width, height = (float(text) for text in row[1:])
            x1, y1, x2, y2 = obj.points
            assert [cx * photo.width, width * photo.width] == pytest.approx([(x1 + x2) / 2, x2 - x1], abs=1e-3)
            assert [cy * photo.height, height * photo.height] == pytest.approx([(y1 + y2) / 2, y2 - y1], abs=1e-3)


def test_data_yaml_is_readable_and_labels_lie_in_labels(tmp_path: Path) -> None:
    obj = ExportObject("螺丝连接点/BBU安装螺丝/安装正确", "bbox_2d", (0, 0, 40, 30))
    photos = [
        ExportPhoto("images/a.jpg", 80, 60, (obj,), "val"),
        ExportPhoto("b.jpg", 80, 60, (), "train"),
    ]
    assert not write_records(iter(photos), tmp_path)
    text = (tmp_path / "data.yaml").read_text(encoding="utf-8")
    assert text == "train: images/train\nval: images/val\nnames:\n  0: 螺丝连接点/BBU安装螺丝/安装正确\n"
    label = tmp_path / "labels" / "val" / "images_" / "a.txt"
    assert label.read_text() == "0 0.25000000 0.25000000 0.50000000 0.50000000\n"
    assert (tmp_path / "labels" / "train" / "b.txt").read_text() == ""


def test_no_two_photos_share_a_place() -> None:
    names = ["a.jpg", "images/a.jpg", "images_/a.jpg", "images__/a.jpg", "x/images/a.jpg", "images.jpg"]
    assert len({photo_place(name, "train") for name in names}) == len(names)


def test_photos_that_would_share_a_label_file_are_an_error(tmp_path: Path) -> None:
    photos = [ExportPhoto(name, 80, 60, (), "train") for name in ("x/a.jpg", "x/a.png")]
    with pytest.raises(UserError, match=r"x/a.png: another photo has the annotation file labels/train/x/a.txt already"):
        write_records(iter(photos), tmp_path)


def test_rounding_outside_the_photo_is_cut_because_readers_refuse_it(tmp_path: Path) -> None:
    objects = (
        ExportObject("x", "bbox_2d", (-0.5, 0, 80.5, 60)),
        ExportObject("x", "bbox_2d", (80, 0, 80.5, 60)),
        ExportObject("x", "poly", (-0.4, 0, 80.4, 0, 40, 60.5)),
    )
    losses = write_records(iter([ExportPhoto("a.jpg", 80, 60, objects, "train")]), tmp_path)
    assert losses["object without area inside the photo not written"] == 1
    rows = [line.split() for line in (tmp_path / "labels/train/a.txt").read_text().splitlines()]
    assert all(0 <= float(text) <= 1 for row in rows for text in row[1:])
    assert [len(row) for row in rows] == [9, 7]


# ---------------------------------------------------------------- damage

SOUND = {
    "data.yaml": "path: .\nnames:\n  0: RBC\n  1: WBC/大\ntrain: images\nval: [val.txt]\n",
    "labels/a.txt": "0 0.5 0.5 0.25 0.5\n1 0.25 0 0.5 0 0.5 0.5\n",
    "val.txt": "./photos/b.jpg\n",
    "photos/b.txt": "0 0.5 0.5 0.1 0.1\n",
}


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(SOUND)), data=st.data())
def test_whatever_stands_in_a_file_it_is_rows_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged_yolo"
    write = sound_source(root, SOUND, ["images/a.jpg", "photos/b.jpg"])
    write(name, data.draw(damaged(SOUND[name].encode())))
    convert_or_one_error("yolo", root)


def test_a_dropped_row_names_its_line(source: Any) -> None:
    good(source)
    source.write("labels/train/good.txt", "0 .5 .5 .2 .2\n\n1 .5 .5 0 .2")
    (item,) = read(source).values()
    assert item.objects[1] == Dropped("WBC", "zero_area", "width 0 and height .2 leave no area", "line 3")
