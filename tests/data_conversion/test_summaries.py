"""Summaries count objects, in the language asked for, and never replace the source's own; groups may be given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bbu.errors import UserError
from bbu.records import read_rows
from data_conversion.base import RawObject, SourceImage
from data_conversion.cabinet_photos import draw_data_set, sites
from data_conversion.photo_files import WITHOUT
from data_conversion.photo_task import PhotoTask
from data_conversion.pipeline import convert
from data_conversion.summaries import count_objects

PHOTOS = {"train": 5, "val": 3}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "raw"
    draw_data_set(folder, PHOTOS, seed=1, workers=1)
    return folder


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", "1 × label, 2 × screw/loose; 3 objects"),
        ("zh", "label×1，screw/loose×2；共3个目标"),
        ("", ""),
    ],
)
def test_they_come_by_name_in_the_language_asked_for_and_the_total_last(language: str, words: str) -> None:
    assert count_objects(["screw/loose", "label", "screw/loose"], language) == words


def test_first_levels_may_be_counted_together() -> None:
    descs = ["screw/loose", "label", "screw/tight/rusty", "screw/tight"]
    assert count_objects(descs, "en", 1) == "1 × label, 3 × screw; 4 objects"
    assert count_objects(descs, "en", 2) == "1 × label, 1 × screw/loose, 2 × screw/tight; 4 objects"


def test_nothing_to_see_is_a_summary_too() -> None:
    assert (count_objects([], "en"), count_objects(["a"], "en"), count_objects([], "zh")) == (
        "0 objects",
        "1 × a; 1 object",
        "共0个目标",
    )


@pytest.mark.parametrize("language", ["zh", "en"])
def test_summaries_and_groups_change_nothing_else_in_the_rows(drawn: Path, tmp_path: Path, language: str) -> None:
    convert("bbu_json", drawn, tmp_path / "plain", taxonomy=None, workers=1)
    groups = sites(PHOTOS, 1)
    convert("bbu_json", drawn, tmp_path / "more", taxonomy=None, workers=1, summaries=language, groups=groups)
    for split in PHOTOS:
        plain, more = (read_rows(tmp_path / name / f"{split}.jsonl") for name in ("plain", "more"))
        assert [row.objects for row in plain] == [row.objects for row in more]
        assert [row.images for row in plain] == [row.images for row in more]
        assert {row.summary for row in plain} == {row.group for row in plain} == {None}
        assert [row.group for row in more] == [groups[row.images[0]] for row in more]
        for row in more:
            counts = Counter(item.desc for item in row.objects)
            assert row.summary == count_objects([item.desc for item in row.objects], language)
            assert all(desc in row.summary and str(count) in row.summary for desc, count in counts.items())


@pytest.mark.parametrize(("own", "summary"), [("A dog.", "A dog."), (None, "1 × dog; 1 object")])
def test_a_summary_of_the_source_stays(tmp_path: Path, own: str | None, summary: str) -> None:
    dog = RawObject("dog", "bbox_2d", (1, 1, 5, 5), "objects[0]")
    item = SourceImage("a.jpg", "a.json", (dog,), size=(8, 8), summary=own)
    row = PhotoTask(tmp_path, images=WITHOUT, summaries="en")(item).row
    assert row is not None and row.summary == summary


def test_an_unknown_language_is_refused(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="summaries must be zh, en or left out, is 'fr'"):
        convert("bbu_json", drawn, tmp_path / "out", taxonomy=None, summaries="fr")
