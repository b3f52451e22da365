"""Visual Genome: phrases as descriptions, photos as their addresses say, and the counts of the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from data_conversion.base import BadSource, Dropped, RawObject, SourceImage
from data_conversion.formats.visual_genome import SLASH_IN_PHRASE, iter_records
from tests.data_conversion.formats.bad_visual_genome import good, image, photo, region
from tests.data_conversion.formats.exporting import convert_or_one_error, damaged, sound_source


def write(source: Any, images: list[Any], photos: list[Any]) -> None:
    source.write("image_data.json", json.dumps(images))
    source.write("region_descriptions.json", json.dumps(photos))


def test_a_region_is_an_object_described_by_its_phrase(source: Any) -> None:
    good(source)
    source.convert("visual_genome")
    assert source.objects() == [{"desc": "the clock is green", "bbox_2d": [10, 10, 30, 20]}]
    (item,) = iter_records(source.root)
    assert isinstance(item, SourceImage)
    assert (item.image, item.size, item.split, item.displayed) == ("VG_100K/1.jpg", (80, 60), None, False)


def test_a_slash_in_a_phrase_is_no_level(source: Any) -> None:
    source.photo("VG_100K/1.jpg")
    write(source, [image()], [photo(1, region(phrase=" silver/gray mouse "), region(phrase="a cat, asleep"))])
    (item,) = iter_records(source.root)
    assert isinstance(item, SourceImage) and item.notes == (SLASH_IN_PHRASE,)
    assert [obj.desc for obj in item.objects if isinstance(obj, RawObject)] == [
        "silver／gray mouse",
        "a cat, asleep",
    ]


@pytest.mark.parametrize("place", ["VG_100K_2/1.jpg", "images/VG_100K_2/1.jpg", "images/1.jpg", "all/photos/1.jpg"])
def test_photos_are_found_where_people_unpack_them(source: Any, place: str) -> None:
    source.photo(place)
    write(source, [image(folder="VG_100K_2")], [photo()])
    (item,) = iter_records(source.root)
    assert isinstance(item, SourceImage) and item.image == place


def test_without_photos_the_place_is_that_of_the_address(source: Any) -> None:
    write(source, [image(folder="VG_100K_2")], [photo()])
    (item,) = iter_records(source.root)
    assert isinstance(item, SourceImage) and item.image == "VG_100K_2/1.jpg"


def test_useless_regions_are_dropped_by_reason(source: Any) -> None:
    objects = [region(), region(phrase=" "), region(width=0), region(height=-1)]
    write(source, [image()], [photo(1, *objects)])
    (item,) = iter_records(source.root)
    assert isinstance(item, SourceImage)
    reasons = [obj.reason for obj in item.objects if isinstance(obj, Dropped)]
    assert reasons == ["no_description", "zero_area", "inverted_box"] and len(item.objects) == 4


def test_a_photo_without_an_entry_of_regions_is_not_annotated_and_one_with_none_is_empty(source: Any) -> None:
    for number in (1, 2, 3, 4):
        source.photo(f"VG_100K/{number}.jpg")
    write(source, [image(1), image(2), image(3)], [photo(3), photo(1, regions=[])])
    report = source.convert("visual_genome")
    assert report.photos_skipped == {"no_annotation": 2}  # 2 has no regions, 4 is in no file
    assert [(row.images[0], len(row.objects)) for row in source.rows()] == [("VG_100K/1.jpg", 0), ("VG_100K/3.jpg", 1)]


def test_every_phrase_of_the_real_files_is_read(shared_dir: Path) -> None:
    items = list(iter_records(shared_dir / "data" / "vg_regions_text"))
    photos = [item for item in items if isinstance(item, SourceImage)]
    objects = [(obj, item.size) for item in photos for obj in item.objects]
    assert len(items) == len(photos) == 100 and len(objects) == 7278
    assert all(isinstance(obj, RawObject) and size for obj, size in objects)
    boxes = [(obj.points, size) for obj, size in objects if isinstance(obj, RawObject) and size]
    # SOURCE.md counts four boxes outside: by a corner beyond an edge of the declared size, all left of 0.
    outside = [box for box, (width, height) in boxes if min(box) < 0 or box[2] > width or box[3] > height]
    assert [box[0] for box in outside] == [-2, -2, -1, -1] and all(box[2] > 0 for box in outside)
    assert sum(note == SLASH_IN_PHRASE for item in photos for note in item.notes) == 3
    assert photos[0].image == "VG_100K_2/1.jpg" and photos[0].size == (800, 600)
    assert objects[0][0] == RawObject("the clock is green in colour", "bbox_2d", (421, 57, 503, 196), "[0].regions[0]")


FILES = {
    "image_data.json": json.dumps([image(1), image(2)]),
    "region_descriptions.json": json.dumps([photo(1, region(1), region(1, phrase="挡风板")), photo(2)]),
}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, deadline=None)
@given(content=damaged(FILES["region_descriptions.json"].encode()))
def test_a_damaged_file_is_records_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    root = tmp_path_factory.getbasetemp() / "visual_genome"
    write_one = sound_source(root, FILES, ["VG_100K/1.jpg", "VG_100K/2.jpg"])
    write_one(name, content)
    convert_or_one_error("visual_genome", root)


def test_a_file_of_sizes_that_cannot_be_read_is_one_bad_source_and_its_photos_are_named(source: Any) -> None:
    source.write("image_data.json", "[")
    source.write("region_descriptions.json", json.dumps([photo()]))
    first, second = iter_records(source.root)
    assert isinstance(first, BadSource) and first.source == "image_data.json"
    assert isinstance(second, BadSource) and second.field == "[0].id"
