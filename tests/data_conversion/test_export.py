"""Exporting: what is written where, photos upright, nothing lost without a count, the output whole or not there."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from bbu.errors import UserError
from bbu.images import open_image
from bbu.jsonl import write_jsonl
from data_conversion import export as module
from data_conversion.base import ExportLosses, ExportPhoto, Format, SourceOptions
from data_conversion.export import export
from data_conversion.formats import FORMATS
from data_conversion.photos import read_photo

SIZE = (80, 60)


def row(image: str, *objects: Any, size: tuple[int, int] = SIZE, **more: Any) -> dict[str, Any]:
    return {"images": [image], "width": size[0], "height": size[1], "objects": list(objects), **more}


def box(desc: str = "x", points: Any = (8, 6, 28, 36)) -> dict[str, Any]:
    return {"desc": desc, "bbox_2d": list(points)}


def predicted(image: str, *scores: float, **changes: Any) -> dict[str, Any]:
    found = [
        {"bbox_2d": [8, 6, 28, 36], "desc": "x", "score": score, "objectness": score, **changes} for score in scores
    ]
    return {"images": [image], "width": SIZE[0], "height": SIZE[1], "predictions": found}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[ExportPhoto]:
    """A format that keeps what it was given and writes one file."""
    kept: list[ExportPhoto] = []

    def write(photos: Iterator[ExportPhoto], folder: Path) -> ExportLosses:
        assert list(folder.iterdir()) == []
        kept.extend(photos)
        (folder / "list.txt").write_text("\n".join(photo.image for photo in kept), encoding="utf-8")
        return ExportLosses({"line written as its box": 3})

    place = lambda image, split: f"images/{split or 'all'}/{image}"  # noqa: E731
    monkeypatch.setitem(FORMATS, "kept", Format(None, "for tests", write, place))
    return kept


@pytest.fixture
def run(source: Any, written: list[ExportPhoto]) -> Callable[..., Any]:
    """Export these rows, whose photos lie in the source folder, in the format ``kept``."""

    def call(*rows: Any, **options: Any) -> Any:
        path = source.root.parent / "rows.jsonl"
        write_jsonl(path, rows)
        options.setdefault("image_root", source.root)
        return export("kept", path, source.out, **options)

    return call


# ---------------------------------------------------------------- rows


def test_records(source: Any, run: Any, written: list[ExportPhoto]) -> None:
    source.photo("d/a.jpg")
    line = {"desc": "线缆/蛇形管", "line": [1, 2, 30, 2]}
    report = run(row("d/./a.jpg", line, box(), summary="dusty", metadata={"split": "val"}))
    (photo,) = written
    assert (photo.image, photo.width, photo.height, photo.split, photo.summary) == ("d/a.jpg", 80, 60, "val", "dusty")
    assert [(obj.desc, obj.kind, obj.points, obj.score) for obj in photo.objects] == [
        ("线缆/蛇形管", "line", (1, 2, 30, 2), None),
        ("x", "bbox_2d", (8, 6, 28, 36), None),
    ]
    assert (report.photos, report.objects, report.losses) == (1, 2, {"line written as its box": 3})
    assert (
        "photos   1 written, 0 skipped\nobjects  2 written, 0 left out\nlost     3 x line written" in report.summary()
    )
    assert not report.skipped
    assert (source.out / "list.txt").read_text() == "d/a.jpg"
    assert read_photo(source.out / "images/val/d/a.jpg") == read_photo(source.root / "d/a.jpg")


def test_predictions_and_photos_that_were_not_predicted(source: Any, run: Any, written: list[ExportPhoto]) -> None:
    for name in ("a", "b"):
        source.photo(f"{name}.jpg")
    rows = [{"images": ["c.jpg"], "error": "is damaged"}, predicted("a.jpg", 0.9, 0.3), predicted("b.jpg")]
    report = run(*rows, min_score=0.5)
    assert [[obj.score for obj in photo.objects] for photo in written] == [[0.9], []]
    assert (report.skipped, report.problems) == ({"not_predicted": 1}, ["c.jpg: is damaged"])
    assert report.left_out == {"score_too_low": 1}
    assert "skipped  c.jpg: is damaged" in report.summary()


def test_photos_that_nobody_annotated_are_left_out(source: Any, run: Any, written: list[ExportPhoto]) -> None:
    """In other formats they would say that nothing is there."""
    for name in ("a", "b"):
        source.photo(f"{name}.jpg")
    report = run(row("a.jpg"), {**row("b.jpg"), "objects": None})
    assert [(photo.image, photo.objects) for photo in written] == [("a.jpg", ())]
    assert (report.skipped, report.problems) == (
        {"not_annotated": 1}, ['b.jpg: is not annotated ("objects": null)']
    )  # fmt: skip


def test_predicted_objects_are_cut_to_the_photo_and_useless_ones_counted(source: Any, run: Any, written: Any) -> None:
    source.photo("a.jpg")
    value = predicted("a.jpg", 0.9, 0.9, 0.9)
    for obj, changes in zip(
        value["predictions"],
        ({"bbox_2d": [-5, 2, 100, 70]}, {"bbox_2d": [90, 2, 100, 7]}, {"desc": " "}),
        strict=True,
    ):
        obj.update(changes)
    report = run(value)
    assert [obj.points for obj in written[0].objects] == [(0, 2, 80, 60)]
    assert report.left_out == {"zero_area": 1, "no_description": 1}
    assert report.objects + report.left_out.total() == 3


def test_a_folder_of_converted_rows(source: Any, written: list[ExportPhoto]) -> None:
    rows = source.root.parent / "rows"
    for name in ("train", "val", "teacher", "all_samples"):
        source.photo(f"{name}.jpg")
        write_jsonl(rows / f"{name}.jsonl", [row(f"{name}.jpg", box(), metadata={"split": "test"})])
    export("kept", rows, source.out, image_root=source.root)
    assert [(photo.image, photo.split) for photo in written] == [
        ("train.jpg", "train"),
        ("val.jpg", "val"),
        ("teacher.jpg", "train"),
    ]


def test_only_some_splits(source: Any, run: Any, written: list[ExportPhoto]) -> None:
    for name in ("a", "b", "c"):
        source.photo(f"{name}.jpg")
    rows = [
        row(f"{name}.jpg", metadata=more)
        for name, more in (("a", {"split": "val"}), ("b", {"split": "teacher"}), ("c", {}))
    ]
    report = run(*rows, splits=("train",))
    assert [(photo.image, photo.split) for photo in written] == [("b.jpg", "train"), ("c.jpg", None)]
    assert report.notes == {"row_of_another_split": 1} and not report.skipped


def test_few_shot_samples_give_every_photo_once(source: Any, run: Any, written: list[ExportPhoto]) -> None:
    for name in ("a", "b", "t"):
        source.photo(f"{name}.jpg")
    samples = [{"teachers": [row("t.jpg", box())], "student": row(f"{name}.jpg", box())} for name in ("a", "b")]
    report = run(*samples)
    assert [photo.image for photo in written] == ["t.jpg", "a.jpg", "b.jpg"]
    assert (report.notes, report.left_out) == ({"photo_again": 1}, {"photo_again": 1})


# ---------------------------------------------------------------- photos


@pytest.mark.parametrize(
    ("name", "orientation"),
    [(f"a.{suffix}", turn) for suffix in ("jpg", "png", "webp", "tiff") for turn in range(1, 9)],
)
def test_turned_photos_are_written_upright_and_originals_stay(
    source: Any, run: Any, name: str, orientation: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(source.root / name, exif=exif, **({"quality": 95} if name == "a.jpg" else {"lossless": True}))
    before = (source.root / name).read_bytes()
    with open_image(source.root / name) as stored:
        wanted = ImageOps.exif_transpose(stored).convert("RGB")
    report = run(row(name, box(points=(0, 0, 9, 9)), size=wanted.size))
    target = source.out / "images/all" / name
    photo = read_photo(target)
    assert (photo.orientation, photo.displayed) == (1, wanted.size)
    with open_image(target) as found:
        difference = np.abs(np.asarray(found.convert("RGB"), dtype=int) - np.asarray(wanted, dtype=int))
    assert difference.mean() <= (2 if name == "a.jpg" and orientation != 1 else 0)  # noise squares: 60 apart
    assert (source.root / name).read_bytes() == before
    assert report.notes == ({"written_upright": 1} if orientation != 1 else {})
    assert os.path.samefile(target, source.root / name) == (orientation == 1)


def test_grey_photos_with_a_colour_profile_stay_so(source: Any, run: Any) -> None:
    image = Image.new("L", SIZE, 90)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 3
    image.save(source.root / "a.jpg", exif=exif, icc_profile=b"a profile")
    run(row("a.jpg"))
    with open_image(source.out / "images/all/a.jpg") as found:
        assert (found.mode, found.info["icc_profile"]) == ("L", b"a profile")


def test_links_copies_and_neither(source: Any, written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = source.photo("a.jpg")
    rows = source.root.parent / "rows.jsonl"
    write_jsonl(rows, [row("a.jpg")])
    place = Path("images/all/a.jpg")
    outs = {mode: source.root.parent / f"out_{mode}" for mode in module.MODES}
    reports = {mode: export("kept", rows, out, image_root=source.root, photos=mode) for mode, out in outs.items()}
    assert os.path.samefile(outs["link"] / place, original) and not (outs["link"] / place).is_symlink()
    assert not os.path.samefile(outs["copy"] / place, original)
    assert (outs["copy"] / place).read_bytes() == original.read_bytes()
    assert [path.name for path in outs["none"].iterdir()] == ["list.txt"]
    assert "no photo was opened" in reports["none"].summary() and "opened" not in reports["copy"].summary()

    def no_hard_links(*_: Any) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", no_hard_links)
    report = export("kept", rows, source.root.parent / "deeper" / "out", image_root=source.root)
    link = source.root.parent / "deeper" / "out" / place
    assert link.is_symlink() and not os.path.isabs(os.readlink(link)) and os.path.samefile(link, original)
    assert report.notes == {"symbolic_link": 1}


def test_photos_that_cannot_be_written_are_counted_listed_and_left_out(source: Any, run: Any, written: Any) -> None:
    source.photo("a.jpg")
    source.photo("small.jpg", size=(40, 30))
    source.write("text.jpg", "no photo")
    whole = source.photo("cut.jpg").read_bytes()
    source.write("cut.jpg", whole[:-40])
    (source.root.parent / "secret.jpg").write_bytes(whole)
    (source.root / "link.jpg").symlink_to("../secret.jpg")
    names = (
        "a.jpg",
        "none.jpg",
        "text.jpg",
        "cut.jpg",
        "small.jpg",
        "../secret.jpg",
        "link.jpg",
        "/etc/passwd",
        "a\0b",
    )
    report = run(*(row(name, box()) for name in names))
    assert [photo.image for photo in written] == ["a.jpg"]
    assert report.skipped == {"unreadable": 3, "size_differs": 1, "outside_image_root": 4}
    assert [problem.split(":")[0] for problem in report.problems] == list(names[1:])
    assert "small.jpg: is 40x30 as displayed, its row says 80x60" in report.problems
    assert report.left_out == {"photo_skipped": 8}
    assert [path.name for path in (source.out / "images/all").iterdir()] == ["a.jpg"]


def test_names_that_mean_the_same_photo_are_one_and_two_photos_never_share_a_place(
    source: Any, run: Any, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/x.jpg", "b/x.jpg"):
        source.photo(name)
    absolute = str(source.root / "a/x.jpg")
    report = run(row("a/x.jpg"), row("b/../a/x.jpg"), row(absolute))
    assert [photo.image for photo in written] == ["a/x.jpg"] and report.notes == {"photo_again": 2}
    flat = Format(None, "", FORMATS["kept"].write, lambda image, split: f"images/{Path(image).name}")
    monkeypatch.setitem(FORMATS, "kept", flat)
    source.out = source.root.parent / "second"
    report = export("kept", source.root.parent / "rows.jsonl", source.out, image_root=source.root)
    assert report.skipped == {}
    write_jsonl(source.root.parent / "rows.jsonl", [row("a/x.jpg"), row("b/x.jpg")])
    report = export("kept", source.root.parent / "rows.jsonl", source.root.parent / "third", image_root=source.root)
    assert report.skipped == {"same_place": 1} and "a/x.jpg is at images/x.jpg already" in report.problems[0]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"photos": "move"}, "photos must be one of link, copy, none, is 'move'"),
        ({"min_score": 2}, r"min_score must lie in \[0, 1\], is 2"),
        ({"min_score": float("nan")}, "min_score must lie"),
        ({"splits": ("training",)}, "splits training: unknown; known splits: train, val, test"),
        ({"image_root": None}, "image_root is needed"),
        ({"image_root": "nowhere"}, "nowhere: image root does not exist"),
    ],
)
def test_bad_arguments(source: Any, run: Any, options: Any, why: str) -> None:
    source.photo("a.jpg")
    with pytest.raises(UserError, match=why):
        run(row("a.jpg"), **options)
    assert not source.out.exists()


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "holds no rows to export"),
        ([row("none.jpg")], "none of 1 photos could be exported; the first: none.jpg: cannot be read"),
        ([row("a.jpg"), {"images": ["b.jpg"]}], r"rows.jsonl:2: objects: is missing"),
        ([row("a.jpg"), predicted("a.jpg")], r"rows.jsonl:2: .*is missing"),
        ([predicted("a.jpg", 0.5), row("a.jpg")], r"rows.jsonl:2: .*is missing"),
        ([{**row("a.jpg"), "images": ["a.jpg", "b.jpg"]}], "images: names 2 photos"),
        ([5], "rows.jsonl:1: row: must be a JSON object"),
    ],
)
def test_bad_rows_leave_nothing_behind(source: Any, run: Any, rows: Any, why: str) -> None:
    source.photo("a.jpg")
    with pytest.raises(UserError, match=why) as caught:
        run(*rows)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in source.root.parent.iterdir()) == ["rows.jsonl", "source"]


def test_an_output_with_something_in_it_is_left_alone_and_an_empty_one_used(source: Any, run: Any) -> None:
    source.photo("a.jpg")
    source.out.mkdir()
    (source.out / "precious").touch()
    with pytest.raises(UserError, match="output folder is not empty"):
        run(row("a.jpg"))
    (source.out / "precious").unlink()
    run(row("a.jpg"))
    assert (source.out / "list.txt").exists()
    with pytest.raises(UserError, match="output exists and is not a folder"):
        export("kept", source.root.parent / "rows.jsonl", source.root / "a.jpg", image_root=source.root)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("keptt", "'keptt' is unknown; did you mean 'kept'"),
        ("bbu_json", "'bbu_json' can only be read; .*formats that can be written: .*kept"),
    ],
)
def test_a_format_that_cannot_be_written(source: Any, written: Any, name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        export(name, source.root, source.out)


def test_a_folder_without_rows_and_a_file_that_is_not_there(source: Any, written: Any) -> None:
    with pytest.raises(UserError, match=r"has none of train\.jsonl"):
        export("kept", source.root, source.out, image_root=source.root)
    with pytest.raises(UserError, match="does not exist or is not a file"):
        export("kept", source.root / "none.jsonl", source.out, image_root=source.root)
    assert [path.name for path in source.root.parent.iterdir()] == ["source"]


def test_a_writer_that_fails_leaves_nothing_behind(source: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(photos: Iterator[ExportPhoto], folder: Path) -> ExportLosses:
        next(photos)
        raise OSError(28, "No space left on device")

    source.photo("a.jpg")
    monkeypatch.setitem(FORMATS, "kept", Format(None, "", write))
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        run(row("a.jpg"))
    assert sorted(path.name for path in source.root.parent.iterdir()) == ["rows.jsonl", "source"]


def test_photos_beside_converted_rows_are_found(source: Any, written: Any) -> None:
    source.photo("photos/a.jpg")
    write_jsonl(source.root / "train.jsonl", [row("a.jpg")])
    assert export("kept", source.root, source.out).photos == 1


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    entry = FORMATS["label_studio"]

    def write(photos: Iterator[ExportPhoto], folder: Path) -> ExportLosses:
        def watched() -> Iterator[ExportPhoto]:
            for number, photo in enumerate(photos):
                if number in (600, 1100):  # the first hundreds fill caches of fixed size
                    gc.collect()
                    held.append(tracemalloc.get_traced_memory()[0])
                yield photo

        assert entry.write is not None
        return entry.write(watched(), folder)

    monkeypatch.setitem(FORMATS, "label_studio", replace(entry, write=write))
    write_jsonl(tmp_path / "rows.jsonl", (row(f"{number}.jpg", box(), box("y")) for number in range(1101)))
    tracemalloc.start()
    try:
        assert export("label_studio", tmp_path / "rows.jsonl", tmp_path / "out", photos="none").photos == 1101
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 500 * 200  # bytes; a photo with two objects takes more than 1,000


def test_what_is_written_can_be_read_without_the_photos(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row("a.jpg", box("螺丝/安装正确"))])
    report = export("label_studio", tmp_path / "rows.jsonl", tmp_path / "out", photos="none")
    entry = FORMATS["label_studio"].read
    assert entry is not None and report.photos == 1
    (item,) = entry(tmp_path / "out", SourceOptions())
    assert json.loads((tmp_path / "out/tasks.json").read_text(encoding="utf-8"))[0]["data"]["image"].endswith("a.jpg")
    assert item.objects[0].desc == "螺丝/安装正确"  # type: ignore[union-attr]
