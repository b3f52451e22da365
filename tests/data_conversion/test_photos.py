"""Boxes follow the photo: EXIF orientation, rescaling, and sizes that disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw, ImageOps

from bbu.errors import ImageError, UserError
from bbu.geometry import transform_points
from bbu.images import load_image, open_image
from data_conversion.photos import Photo, points_to_displayed, read_photo
from tests.damaged_photos import exif_kinds, no_files, with_exif


def marked_photo(path: Path, orientation: int, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """A dark JPEG with one bright rectangle (stored pixels, right and lower edge exclusive)."""
    image = Image.new("RGB", size, (10, 10, 10))
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(250, 250, 250))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, quality=95, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_box_lands_on_the_same_pixels_after_the_exif_transpose(
    tmp_path_factory: pytest.TempPathFactory, orientation: int, data: st.DataObject
) -> None:
    import json

    from data_conversion.pipeline import convert

    width, height = 96, 64
    x1, y1 = data.draw(st.integers(0, 5)) * 8, data.draw(st.integers(0, 3)) * 8
    box = (x1, y1, x1 + 8 * data.draw(st.integers(2, 5)), y1 + 8 * data.draw(st.integers(2, 4)))
    root = tmp_path_factory.mktemp("source")
    marked_photo(root / "a.jpg", orientation, (width, height), box)
    before = (root / "a.jpg").read_bytes()
    ring = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]], [box[0], box[1]]]
    feature = {
        "geometry": {"type": "ExtentPolygon", "coordinates": ring},
        "properties": {"contentZh": {"标签": "marker"}},
    }
    value = {"info": {"width": width, "height": height}, "markResult": {"features": [feature]}}
    (root / "a.json").write_text(json.dumps(value), encoding="utf-8")
    convert("bbu_json", root, root / "out", taxonomy=None, val_fraction=0.0)
    row = json.loads((root / "out" / "train.jsonl").read_text(encoding="utf-8"))
    with open_image(root / "a.jpg") as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("L")) > 128
    expected = np.zeros((row["height"], row["width"]), dtype=bool)
    left, top, right, bottom = row["objects"][0]["bbox_2d"]
    expected[top:bottom, left:right] = True
    assert (shown == expected).all(), "exactly the marker is inside the box"
    assert (root / "a.jpg").read_bytes() == before, "the photo is never changed"


def photo(width: int = 400, height: int = 200, orientation: int = 1) -> Photo:
    return Photo(width, height, orientation, "digest")


@pytest.mark.parametrize(
    ("orientation", "declared", "point", "lands", "notes"),
    [
        (1, None, (100, 50), (100, 50), []),
        (1, (800, 400), (100, 50), (50, 25), ["rescaled"]),
        (1, (100, 100), (100, 50), (400, 100), ["rescaled_unevenly"]),
        (6, (400, 200), (100, 50), (150, 100), []),
        (6, (800, 400), (100, 50), (175, 50), ["rescaled"]),
        (6, (200, 400), (100, 50), (100, 50), ["size_declared_as_displayed"]),
        (8, (100, 200), (100, 50), (200, 100), ["size_declared_as_displayed", "rescaled"]),
        (3, (400, 200), (100, 50), (300, 150), []),
    ],
)
def test_declared_sizes(orientation: int, declared: Any, point: Any, lands: Any, notes: list[str]) -> None:
    affine, found = points_to_displayed(photo(orientation=orientation), declared, already_displayed=False)
    assert transform_points(np.array(point, dtype=float), affine) == pytest.approx(lands)
    assert found == notes


def test_points_already_displayed_are_not_turned_again() -> None:
    affine, _ = points_to_displayed(photo(orientation=6), None, already_displayed=True)
    assert affine == (1, 0, 0, 0, 1, 0)


def test_relative_points_keep_the_note_that_their_frame_is_the_displayed_photo() -> None:
    affine, notes = points_to_displayed(photo(orientation=6), (100, 200), already_displayed=False, relative=True)
    assert transform_points(np.array([0.5, 0.25]), affine) == pytest.approx((100, 100)), "shares of 200x400 pixels"
    assert notes == ["size_declared_as_displayed", "rescaled"]


def test_a_photo_on_its_side_without_an_exif_turn_is_an_error() -> None:
    with pytest.raises(ImageError, match=r"declared size 200x400 is the photo \(400x200\) on its side"):
        points_to_displayed(photo(), (200, 400), already_displayed=False)
    with pytest.raises(ImageError, match="on its side"):
        points_to_displayed(photo(orientation=6), (400, 200), already_displayed=True)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_out_of_range_means_upright(tmp_path: Path, orientation: int) -> None:
    marked_photo(tmp_path / "a.jpg", orientation, (40, 20), (0, 0, 8, 8))
    assert read_photo(tmp_path / "a.jpg").orientation == 1


def test_a_cut_off_photo_is_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    raw = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ImageError, match=r"a\.jpg: is not a whole image: .*truncated"):
        read_photo(tmp_path / "a.jpg")


def test_rescaling_is_reported(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object(box=(10, 10, 30, 20))], size=(160, 120))
    source.photo("a.jpg", size=(80, 60))
    report = source.convert()
    assert source.objects()[0]["bbox_2d"] == [5, 5, 15, 10]
    assert report.notes == {"rescaled": 1}
    assert "note     1 x rescaled" in report.summary()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_size_of_the_stored_file_in_a_format_of_displayed_pixels_names_the_option(
    source: Any, orientation: int
) -> None:
    source.photo("a.jpg", size=(80, 60), orientation=orientation)
    source.write("labels.csv", "image,x1,y1,x2,y2,desc,width,height\na.jpg,10,10,30,20,x,80,60\n")
    why = rf"80x60 .*stored, which EXIF orientation {orientation} turns .*--frame stored \(data.source.frame: stored\)"
    with pytest.raises(UserError, match=why):
        source.convert("csv")
    assert source.convert("csv", frame="stored").photos_written == 1


def test_a_size_on_its_side_without_exif_says_that_no_frame_helps(source: Any) -> None:
    source.photo("a.jpg", size=(80, 60))
    source.write("labels.csv", "image,x1,y1,x2,y2,desc,width,height\na.jpg,10,10,30,20,x,60,80\n")
    with pytest.raises(UserError, match=r"no EXIF turn explains it, so --frame \(data.source.frame\) cannot help"):
        source.convert("csv")


def test_a_link_out_of_the_source_is_refused(source: Any, bbu_object: Any, tmp_path: Path) -> None:
    source.bbu("a", [bbu_object()])
    (source.root / "a.jpg").rename(tmp_path / "secret.jpg")
    (source.root / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="is behind a link that leads outside the source folder; add --follow-links"):
        source.convert()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_odd_exif_data_turns_a_photo_as_reading_its_pixels_does(orientation: int) -> None:
    for kind, exif in exif_kinds(orientation).items():
        data = with_exif(exif)
        assert read_photo(data, kind).displayed == load_image(data, kind).size


def test_what_is_called_a_photo_and_is_no_file_is_an_error_at_once(tmp_path: Path) -> None:
    for kind, path in no_files(tmp_path, "a.jpg").items():
        with pytest.raises(ImageError, match=rf"{kind}_a\.jpg: cannot be read \("):
            read_photo(path)
