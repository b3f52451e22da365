"""The whole conversion: nothing lost silently, the same bytes every time, all files or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bbu.errors import UserError
from bbu.taxonomy import Taxonomy
from data_conversion import outputs, pipeline
from data_conversion.outputs import OUTPUTS


def fill(source: Any, bbu_object: Any, count: int = 12) -> None:
    """Photos of 1 to 3 objects in three kinds; one object in all is outside the image."""
    for index in range(count):
        objects = [bbu_object(f"标签/{'abc'[index % 3]}", (10 * i, 5, 10 * i + 8, 15)) for i in range(index % 3 + 1)]
        source.bbu(f"p{index:02}", objects)
    source.bbu("p99", [bbu_object(), bbu_object("标签/远", (200, 200, 210, 210))])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_objects_in_are_objects_out_plus_dropped(source: Any, bbu_object: Any) -> None:
    fill(source, bbu_object)
    source.bbu("lost", [bbu_object("只有/外面", (200, 200, 210, 210))])
    report = source.convert(val_fraction=0.2, test_fraction=0.1, max_teachers=2)
    assert report.objects_read == report.objects_written + report.objects_dropped
    assert report.photos_read == report.photos_written + report.photos_skipped.total()
    assert report.dropped == {("标签/远", "outside_image"): 1, ("只有/外面", "outside_image"): 1}
    assert report.photos_skipped == {"no_objects_left": 1}
    written = sum(len(row.objects) for row in source.rows())
    assert written == report.objects_written
    assert len(source.lines("invalid_objects.jsonl")) == report.objects_dropped
    assert len(source.lines("invalid_samples.jsonl")) == report.photos_skipped.total()


def test_terms_missing_from_the_taxonomy_are_listed_by_label(
    source: Any, bbu_object: Any, bbu_taxonomy: Taxonomy
) -> None:
    source.bbu("a", [bbu_object("标签"), *[bbu_object("连接点/松", (10, 10 + i, 20, 20 + i)) for i in range(7)]])
    report = source.convert(taxonomy=bbu_taxonomy)
    assert report.dropped_by_label() == {"连接点/松": {"outside_hierarchy": 7}}
    assert "dropped  7 x 连接点/松: outside_hierarchy" in report.summary()
    first = source.lines("invalid_objects.jsonl")[0]
    assert first["source"] == "a.json"
    assert first["field"] == "markResult.features[1]"
    assert "'连接点' is not in the hierarchy" in first["detail"]


def test_every_row_is_in_one_split_and_in_all_samples(source: Any, bbu_object: Any) -> None:
    fill(source, bbu_object)
    source.convert(val_fraction=0.2, test_fraction=0.1, max_teachers=3)
    names = [row.images for split in ("train", "val", "test", "teacher") for row in source.rows(split)]
    assert sorted(names) == [row.images for row in source.rows("all_samples")]
    assert len(set(names)) == len(names) == 13
    assert len(source.rows("teacher")) == 3
    vocabulary = json.loads((source.out / "label_vocabulary.json").read_text(encoding="utf-8"))
    assert sum(vocabulary["all"].values()) == sum(len(row.objects) for row in source.rows())
    for label, count in vocabulary["all"].items():
        assert count == sum(vocabulary[split].get(label, 0) for split in ("train", "val", "test", "teacher"))


def test_a_row_says_where_it_comes_from(source: Any, bbu_object: Any) -> None:
    source.bbu("val/a", [bbu_object()])
    source.bbu("train/b", [bbu_object()])
    source.convert()
    assert source.rows("val")[0].metadata == {"source": "val/a.json", "split": "val"}


def test_the_same_input_and_seed_give_the_same_bytes(source: Any, bbu_object: Any, tmp_path: Path) -> None:
    fill(source, bbu_object)
    options: dict[str, Any] = {"val_fraction": 0.3, "max_teachers": 3, "seed": 5}
    source.convert(**options)
    first = contents(source.out)
    shutil.copytree(source.root, tmp_path / "copy")
    source.root, source.out = tmp_path / "copy", tmp_path / "again"
    source.convert(**options)
    assert contents(source.out) == first
    source.convert(**{**options, "seed": 6})
    assert contents(source.out)["train.jsonl"] != first["train.jsonl"]


def test_copies_of_a_photo_share_a_split_and_are_never_teachers(source: Any, bbu_object: Any) -> None:
    for index in range(6):
        source.bbu(f"p{index}", [bbu_object()], text=f"photo {index // 2}")
    source.bbu("single", [bbu_object()])
    source.convert(val_fraction=0.4, max_teachers=2)
    for split in ("train", "val"):
        names = {row.images[0] for row in source.rows(split)}
        assert all((f"p{2 * i}.jpg" in names) == (f"p{2 * i + 1}.jpg" in names) for i in range(3))
    assert {row.images[0] for row in source.rows("teacher")} <= {"single.jpg"}


def test_a_split_left_out_is_counted(source: Any, bbu_object: Any) -> None:
    source.bbu("train/a", [bbu_object()])
    source.bbu("test/b", [bbu_object(), bbu_object(box=(1, 1, 9, 9))])
    report = source.convert(splits={"train": "train"})
    assert report.photos_skipped == {"split_left_out": 1}
    assert report.dropped_by_reason() == {"split_left_out": 2}
    assert report.objects_read == report.objects_written + report.objects_dropped
    assert not (source.out / "test.jsonl").exists()


def test_a_second_conversion_replaces_the_first_and_leaves_other_files(source: Any, bbu_object: Any) -> None:
    fill(source, bbu_object)
    source.convert(test_fraction=0.2)
    (source.out / "notes.txt").write_text("mine", encoding="utf-8")
    source.convert()
    names = {path.name for path in source.out.iterdir()}
    assert names == {*OUTPUTS, "notes.txt"} - {"test.jsonl"}


def test_a_failure_while_writing_leaves_the_old_output(
    source: Any, bbu_object: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, bbu_object)
    source.convert()
    before = contents(source.out)

    def full_disk(path: Path, value: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_json", full_disk)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        source.convert(val_fraction=0.5)
    assert contents(source.out) == before
    assert sorted(path.name for path in source.out.parent.iterdir()) == ["out", "source"], "no temporary folder stays"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"source_format": "bbu_jsn"}, "did you mean 'bbu_json'"),
        ({"source_format": "xyz"}, "known formats: .*bbu_json, .*pascal_voc"),
        ({"val_fraction": 1.0}, "val_fraction must lie in"),
        ({"val_fraction": float("nan")}, "val_fraction must lie in"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "leaves nothing to train on"),
        ({"max_teachers": -1}, "max_teachers must be 0 or more"),
        ({"max_teachers": 13}, "leaves no photo to train on: train has 13"),
        ({"on_error": "ignore"}, "on_error must be 'fail' or 'skip'"),
        ({"splits": {"train": "trian"}}, "'trian' is not one of"),
    ],
)
def test_bad_arguments_are_one_error_and_no_output(
    source: Any, bbu_object: Any, options: dict[str, Any], why: str
) -> None:
    fill(source, bbu_object)
    with pytest.raises(UserError, match=why):
        source.convert(**options)
    assert not source.out.exists()


def test_folders_that_cannot_serve(source: Any, bbu_object: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no bbu_json annotations found"):
        source.convert()
    source.bbu("a", [bbu_object()])
    with pytest.raises(UserError, match="output folder holds the input"):
        pipeline.convert("bbu_json", source.root, source.root, taxonomy=None)
    with pytest.raises(UserError, match="output exists and is not a folder"):
        pipeline.convert("bbu_json", source.root, source.root / "a.jpg", taxonomy=None)
    with pytest.raises(UserError, match="input folder does not exist"):
        pipeline.convert("bbu_json", tmp_path / "nowhere", source.out, taxonomy=None)
