"""Photos kept, linked, copied or made anew: a row's photo shows what the row says; sources stay as they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from bbu.errors import UserError
from bbu.images import load_image, open_image
from data_conversion.base import RawObject, SourceImage
from data_conversion.formats import FORMATS, Format
from data_conversion.photo_files import fit


def fill(source: Any, bbu_object: Any) -> None:
    source.bbu("upright", [bbu_object("a/b", (10, 10, 30, 20))])
    source.bbu("deep/turned", [bbu_object("a/b", (10, 10, 30, 20))], orientation=6)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("mode", ["keep", "link", "copy", "reencode"])
def test_rows_fit_their_photos_and_the_source_is_untouched(source: Any, bbu_object: Any, mode: str) -> None:
    fill(source, bbu_object)
    before = digests(source.root)
    source.convert(images=mode)
    assert digests(source.root) == before
    root = source.root if mode == "keep" else source.out / "photos"
    assert (source.out / "photos").exists() == (mode != "keep")
    for row in source.rows():
        assert load_image(root / row.images[0]).size == (row.width, row.height)


def test_a_link_shares_the_file_and_a_copy_does_not(source: Any, bbu_object: Any) -> None:
    fill(source, bbu_object)
    original = source.root / "upright.jpg"
    source.convert(images="link")
    assert (source.out / "photos" / "upright.jpg").samefile(original)
    source.convert(images="copy")
    copy = source.out / "photos" / "upright.jpg"
    assert not copy.samefile(original) and copy.read_bytes() == original.read_bytes()
    source.convert()
    assert not (source.out / "photos").exists(), "photos of an earlier conversion do not stay"


def test_a_reencoded_photo_is_upright_smaller_and_its_objects_lie_on_the_same_pixels(
    source: Any, bbu_object: Any
) -> None:
    """A black rectangle on a turned photo: the row's box covers it in the new file."""
    image = Image.new("RGB", (400, 300), "white")
    image.paste("black", (100, 60, 200, 160))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6
    source.bbu("a", [bbu_object("a/b", (100, 60, 200, 160))], size=(400, 300))
    image.save(source.root / "a.jpg", exif=exif, quality=98)
    report = source.convert(images="reencode", max_pixels=30_000)
    (row,) = source.rows()
    photo = load_image(source.out / "photos" / "a.jpg")
    assert photo.size == (row.width, row.height) == (150, 200)
    assert open_image(source.out / "photos" / "a.jpg").getexif().get(ExifTags.Base.Orientation, 1) == 1
    ys, xs = np.nonzero(np.asarray(photo.convert("L")) < 128)
    found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert np.abs(found - np.array(row.objects[0].box)).max() <= 1
    assert report.notes["exif_orientation_6"] == 1


def test_png_stays_png_and_other_kinds_become_jpeg(source: Any, bbu_object: Any) -> None:
    for name, kind in (("a.png", "PNG"), ("b.bmp", "BMP")):
        Image.new("RGB", (80, 60), (9, 80, 20)).save(source.root / name, format=kind)
        source.write(f"{name[0]}.json", source.bbu(f"x{name[0]}", [bbu_object()]).read_bytes())
        for suffix in (".json", ".jpg"):
            (source.root / f"x{name[0]}{suffix}").unlink()
    source.convert(images="reencode")
    assert sorted(digests(source.out / "photos")) == ["a.png", "b.bmp.jpg"]
    assert [row.images[0] for row in source.rows()] == ["a.png", "b.bmp.jpg"]


@pytest.mark.parametrize(("size", "limit", "expected"), [((400, 300), 0, (400, 300)), ((400, 300), 30_000, (200, 150))])
def test_a_photo_keeps_its_shape_and_never_grows(size: Any, limit: int, expected: Any) -> None:
    assert fit(size, limit) == expected
    assert fit((10, 10), 10**9) == (10, 10)
    assert fit((10_000, 1), 4) == (200, 1)


def with_items(monkeypatch: pytest.MonkeyPatch, *items: SourceImage) -> None:
    monkeypatch.setitem(FORMATS, "given", Format(lambda root, options: iter(items), "for this test"))


BOX = (RawObject("a", "bbox_2d", (10.0, 10.0, 30.0, 20.0), "box"),)


def test_labels_without_pixels(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_items(monkeypatch, SourceImage("far/away.jpg", "all.json", BOX, size=(640, 480)))
    with pytest.raises(UserError, match="cannot be read"):
        source.convert("given")
    source.convert("given", images="none")
    (row,) = source.rows()
    assert (row.images, row.width, row.height) == (("far/away.jpg",), 640, 480)
    with_items(monkeypatch, SourceImage("far/away.jpg", "all.json", BOX))
    with pytest.raises(UserError, match="declares no size"):
        source.convert("given", images="none")


def test_a_photo_inside_its_source_is_unpacked(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = source.photo("a.jpg").read_bytes()
    (source.root / "a.jpg").unlink()
    with_items(monkeypatch, SourceImage("train/0.jpg", "data.parquet", BOX, content=content))
    with pytest.raises(UserError, match=r"lies inside data\.parquet; unpack it with images = copy"):
        source.convert("given")
    for mode in ("copy", "link", "reencode"):
        source.convert("given", images=mode)
        assert load_image(source.out / "photos" / "train/0.jpg").size == (80, 60)


def test_a_name_that_leaves_the_folder_of_photos_is_refused(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = source.photo("a.jpg").read_bytes()
    with_items(monkeypatch, SourceImage("../../x.jpg", "data.parquet", BOX, content=content))
    with pytest.raises(UserError, match="leaves the folder of photos"):
        source.convert("given", images="copy")
    assert not (source.root.parent / "x.jpg").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("displayed", [True, False])
def test_shares_of_the_frame_become_pixels(
    source: Any, monkeypatch: pytest.MonkeyPatch, orientation: int, displayed: bool
) -> None:
    """The same object given in pixels and in shares gives the same row."""
    source.photo("a.jpg", orientation=orientation)
    width, height = (60, 80) if displayed and orientation > 4 else (80, 60)
    shares = tuple(value / (width, height)[i % 2] for i, value in enumerate(BOX[0].points))
    rows = []
    for item in (
        SourceImage("a.jpg", "x", BOX, displayed=displayed),
        SourceImage("a.jpg", "x", (RawObject("a", "bbox_2d", shares, "box"),), displayed=displayed, relative=True),
    ):
        with_items(monkeypatch, item)
        source.convert("given")
        rows.append(source.rows()[0])
    assert rows[0].objects[0].points == pytest.approx(rows[1].objects[0].points, abs=0.011)


def test_the_frame_may_be_told(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source.photo("a.jpg", orientation=3)
    with_items(monkeypatch, SourceImage("a.jpg", "x", BOX))
    source.convert("given", frame="displayed")
    assert source.rows()[0].objects[0].box == (10, 10, 30, 20)
    source.convert("given", frame="stored")
    assert source.rows()[0].objects[0].box == (50, 40, 70, 50)


def test_summary_and_group_reach_the_row(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source.photo("a.jpg")
    with_items(monkeypatch, SourceImage("a.jpg", "x", BOX, summary="a cabinet", group="site 7"))
    source.convert("given")
    (row,) = source.rows()
    assert row.summary == "a cabinet"
    assert row.metadata == {"source": "x", "group": "site 7", "split": "train"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"images": "move"}, "images must be one of keep, link"),
        ({"max_pixels": 100}, "needs images = reencode"),
        ({"images": "reencode", "max_pixels": -1}, "needs images = reencode"),
        ({"frame": "upright"}, "frame must be displayed or stored"),
    ],
)
def test_bad_arguments(source: Any, bbu_object: Any, options: dict[str, Any], why: str) -> None:
    source.bbu("a", [bbu_object()])
    with pytest.raises(UserError, match=why):
        source.convert(**options)
