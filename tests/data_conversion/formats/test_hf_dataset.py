"""Hugging Face: what ``datasets`` itself saves and shards is read again, without network, cache or decoding."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_conversion.base import BadSource, Dropped, RawObject, SourceImage
from data_conversion.formats.hf_dataset import iter_records
from tests.data_conversion.formats.bad_hf_dataset import good, row
from tests.data_conversion.formats.exporting import convert_or_one_error, damaged, sound_source

NAMES = ["RBC", "screw/loose"]
BOX = datasets.List(datasets.Value("float32"))
LABEL = datasets.ClassLabel(names=NAMES)
# As the object detection guide of datasets has it, as older versions of it had, and as a list of mappings
AS_LISTS = {"bbox": datasets.List(BOX), "category": datasets.List(LABEL)}
AS_SEQUENCE = datasets.Sequence({"bbox": BOX, "category": LABEL})
AS_MAPPINGS = datasets.List({"bbox": BOX, "category": LABEL})


@pytest.fixture(autouse=True)
def nothing_but_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no progress bars while the tests write."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a data set on disk needs no network")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    datasets.disable_progress_bars()


def photo(number: int, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (80, 60), (number, 99, 0)).save(stream, kind)
    return stream.getvalue()


def data_set(count: int = 3, objects: Any = AS_LISTS, paths: Any = None, **columns: Any) -> datasets.Dataset:
    """Photos with one screw each; ``paths`` are the names that the photos had."""
    one = {"bbox": [[10, 10, 20, 10]], "category": [1]}
    if objects is AS_MAPPINGS:
        one = [{"bbox": [10, 10, 20, 10], "category": 1}]  # type: ignore[assignment]
    images = [{"bytes": photo(n), "path": paths[n] if paths else None} for n in range(count)]
    features = {"image": datasets.Image(), "objects": objects}
    features |= {name: datasets.Value("string") for name in columns}
    rows = {"image": images, "objects": [one] * count, **columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def read(root: Path) -> list[SourceImage]:
    items = list(iter_records(root))
    assert all(isinstance(item, SourceImage) for item in items), items
    return [item for item in items if isinstance(item, SourceImage)]


def objects_of(item: SourceImage) -> list[tuple[str, tuple[float, ...]]]:
    return [(obj.desc, obj.points) for obj in item.objects if isinstance(obj, RawObject)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- saved by datasets


@pytest.mark.parametrize("objects", [AS_LISTS, AS_SEQUENCE, AS_MAPPINGS], ids=["lists", "sequence", "mappings"])
def test_a_saved_data_set_is_read_row_by_row(tmp_path: Path, objects: Any) -> None:
    data_set(3, objects, caption=["dusty", " ", "clean"]).save_to_disk(tmp_path)
    items = read(tmp_path)
    assert [item.image for item in items] == ["00000000.jpg", "00000001.jpg", "00000002.jpg"]
    assert [item.content for item in items] == [photo(n) for n in range(3)]
    assert [item.summary for item in items] == ["dusty", None, "clean"]
    assert all(objects_of(item) == [("screw/loose", (10, 10, 30, 20))] for item in items)
    assert all((item.source, item.split, item.displayed) == ("state.json", None, True) for item in items)


def test_splits_of_a_saved_dictionary(tmp_path: Path) -> None:
    splits = {"train": data_set(2), "validation": data_set(1), "test": data_set(1), "extra": data_set(1)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path, num_shards={"train": 2, "validation": 1, "test": 1, "extra": 1})
    assert [(item.image, item.split) for item in read(tmp_path)] == [
        ("train/00000000.jpg", "train"),
        ("train/00000001.jpg", "train"),
        ("validation/00000000.jpg", "val"),
        ("test/00000000.jpg", "test"),
        ("extra/00000000.jpg", None),
    ]


def test_a_saved_split_knows_its_name(tmp_path: Path) -> None:
    data = data_set(1)
    data.info.splits = None
    named = datasets.Dataset(data.data, info=data.info, split=datasets.Split.TEST)
    named.save_to_disk(tmp_path)
    assert [(item.image, item.split) for item in read(tmp_path)] == [("test/00000000.jpg", "test")]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/b.JPG", "c:\\y\\a.png"], ["b.jpg", "a.jpg"]),
        (["x/a.jpg", "y/A.jpg"], ["00000000.jpg", "00000001.jpg"]),
        (["x/a.jpg", None], ["00000000.jpg", "00000001.jpg"]),
        (["a.jpg", ".."], ["00000000.jpg", "00000001.jpg"]),
        (["a.jpg", "b\n.jpg"], ["00000000.jpg", "00000001.jpg"]),
    ],
)
def test_photos_keep_their_names_if_all_have_one(tmp_path: Path, paths: list[Any], names: list[str]) -> None:
    data_set(2, paths=paths).save_to_disk(tmp_path)
    assert [item.image for item in read(tmp_path)] == names


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_the_suffix_is_that_of_the_bytes(tmp_path: Path, kind: str) -> None:
    table = {"image": [{"bytes": photo(1, kind), "path": "a.dat"}], "objects": [{"bbox": [], "category": []}]}
    features = datasets.Features({"image": datasets.Image(), "objects": AS_LISTS})
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path)
    (item,) = read(tmp_path)
    assert Path(item.image).stem == "a" and Image.registered_extensions()[Path(item.image).suffix] == kind
    assert item.objects == ()


def test_rows_that_cannot_be_used_are_named_and_the_others_read(tmp_path: Path) -> None:
    box = [10.0, 10.0, 20.0, 10.0]
    rows = [
        (photo(0), {"bbox": [box], "category": [0]}),
        (b"<html>", {"bbox": [box], "category": [0]}),
        (photo(2), None),
        (None, {"bbox": [box], "category": [0]}),
        (photo(4), {"bbox": [box, box, [1, 1, 0, 5], [1, 1, -3, 5]], "category": [None, -1, 1, 1]}),
    ]
    images = [raw and {"bytes": raw, "path": None} for raw, _ in rows]
    table = {"image": images, "objects": [objects for _, objects in rows]}
    features = datasets.Features({"image": datasets.Image(), "objects": AS_LISTS})
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path)
    items = list(iter_records(tmp_path))
    assert [(item.field, item.detail[:20]) for item in items if isinstance(item, BadSource)] == [
        ("rows[1].image", "holds 6 bytes that a"),
        ("rows[2].objects", "is missing; a photo "),
        ("rows[3].image", "must name a photo or"),
    ]
    last = items[-1]
    assert isinstance(last, SourceImage) and last.image == "00000004.jpg"
    reasons = [obj.reason for obj in last.objects if isinstance(obj, Dropped)]
    assert reasons == ["no_description", "no_description", "zero_area", "inverted_box"]


def test_a_crowd_is_dropped_and_other_columns_and_keys_are_noted(tmp_path: Path) -> None:
    good_row = row(
        "a.jpg", {"bbox": [[1, 1, 5, 5]] * 2, "label": ["x", "x"], "iscrowd": [0, 1], "id": [1, 2], "z": [3, 0]}
    )
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**good_row, "image_id": 5}))
    (item,) = read(tmp_path)
    assert [obj.reason for obj in item.objects if isinstance(obj, Dropped)] == ["crowd"]
    assert item.notes == ("object key not read: z", "column not read: image_id")


def test_reading_writes_nothing_and_needs_no_home(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    home.mkdir()
    datasets.DatasetDict({"train": data_set(2)}).save_to_disk(source)
    before = tree(source)
    code = (
        "import sys; from pathlib import Path; from data_conversion.formats.hf_dataset import iter_records\n"
        "assert not {'datasets', 'pyarrow', 'pandas'} & set(sys.modules), 'a format must not slow the start'\n"
        f"assert len(list(iter_records(Path({str(source)!r})))) == 2"
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    subprocess.run([sys.executable, "-c", code], check=True, env={**plain, "HOME": str(home), "PYTHONPATH": "src:."})
    assert tree(source) == before and not list(home.rglob("*"))


@pytest.mark.parametrize("name", ["dataset_dict.json", "train/state.json", "train/dataset_info.json", "train/*.arrow"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[{}]", "标签".encode("utf-16"), None])
def test_a_damaged_part_of_a_saved_data_set_is_one_error(tmp_path: Path, name: str, content: bytes | None) -> None:
    datasets.DatasetDict({"train": data_set(2), "test": data_set(1)}).save_to_disk(tmp_path)
    (path,) = tmp_path.glob(name)
    path.write_bytes(content) if content is not None else path.unlink()
    items = list(iter_records(tmp_path))
    bad = [item for item in items if isinstance(item, BadSource)]
    if name != "dataset_dict.json":
        assert len(items) == 2 and len(bad) == 1 and bad[0].source == "train/state.json"
        assert isinstance(items[1], SourceImage) and items[1].split == "test"
    elif content is not None:
        assert items == bad and len(bad) == 1 and bad[0].source == "dataset_dict.json"


def test_a_split_is_not_looked_for_outside(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../secret"]}')
    (item,) = iter_records(tmp_path)
    assert isinstance(item, BadSource) and item.field == "splits[0]"


# ---------------------------------------------------------------- Parquet


def test_parquet_shards_of_a_split_go_on_counting(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        data_set(20).to_parquet(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet")
    data_set(1).to_parquet(tmp_path / "data" / "validation-00000-of-00001-abcdef.parquet")
    items = read(tmp_path)
    assert [item.image for item in items[:40]] == [f"train/{number:08d}.jpg" for number in range(40)]
    assert (items[40].image, items[40].split) == ("validation/00000000.jpg", "val")
    assert {item.split for item in items[:40]} == {"train"} and len(items) == 41
    assert all(objects_of(item) == [("screw/loose", (10, 10, 30, 20))] for item in items)
    assert items[21].objects[0].field == "rows[1].objects.bbox[0]"
    assert items[21].source == "data/train-00001-of-00002.parquet"


@pytest.mark.parametrize("name", ["plain.parquet", "test.parquet", "test/0000.parquet"])
def test_other_places_of_parquet_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    data_set(1, paths=["a.jpg"]).to_parquet(tmp_path / name)
    (item,) = read(tmp_path)
    assert (item.image, item.split) == (("a.jpg", None) if name[0] == "p" else ("test/a.jpg", "test"))


def test_photos_in_tables_are_converted(tmp_path: Path, source: Any) -> None:
    data_set(3).to_parquet(source.root / "train-00000-of-00001.parquet")
    report = source.convert("hf_dataset", images="copy")
    assert report.photos_written == 3 and source.rows()[0].images == ("train/00000000.jpg",)
    assert (source.out / "photos" / "train/00000000.jpg").read_bytes() == photo(0)
    assert source.lines("all_samples.jsonl")[0]["objects"] == [{"desc": "screw/loose", "bbox_2d": [10, 10, 30, 20]}]


@pytest.mark.parametrize("form", ["arrow", "parquet"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_tables_are_records_or_errors(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / f"damaged_{form}"
    if not root.exists():
        root.mkdir()
        data_set(2).save_to_disk(root) if form == "arrow" else data_set(2).to_parquet(root / "train.parquet")
        for path in root.glob(f"*.{form}"):
            path.with_suffix(".sound").write_bytes(path.read_bytes())
    (sound,) = root.glob("*.sound")
    sound.with_suffix(f".{form}").write_bytes(data.draw(damaged(sound.read_bytes())))
    items = list(iter_records(root))
    assert items and all(isinstance(item, BadSource) or len(item.objects) < 10 for item in items)
    assert all("\n" not in item.detail for item in items if isinstance(item, BadSource))


# ---------------------------------------------------------------- image folder


def test_metadata_lies_beside_or_above_the_photos(source: Any) -> None:
    good(source)
    for name in ("validation/a.jpg", "deep/er/b.jpg", "test/c.jpg"):
        source.photo(name)
    source.write(
        "metadata.jsonl", "\ufeff" + json.dumps(row("validation/a.jpg")) + "\r\n\r\n" + json.dumps(row("test/c.jpg"))
    )
    source.write("deep/metadata.jsonl", json.dumps(row("er/b.jpg")))
    assert [(item.image, item.split, item.source) for item in read(source.root)] == [
        ("validation/a.jpg", "val", "metadata.jsonl"),
        ("test/c.jpg", "test", "metadata.jsonl"),
        ("deep/er/b.jpg", None, "deep/metadata.jsonl"),
        ("train/good.jpg", "train", "train/metadata.jsonl"),
    ]


def test_the_three_kinds_of_metadata_say_the_same(source: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [row("a.jpg", text="dusty", width=80, height=60), row("b.jpg", {"bbox": [], "categories": []}, text=None)]
    rows[1] |= {"width": 80, "height": 60}
    found = []
    for kind in ("jsonl", "csv", "parquet"):
        folder = source.root / kind
        for name in "ab":
            source.photo(f"{kind}/{name}.jpg")
        if kind == "jsonl":
            source.write("jsonl/metadata.jsonl", "\n".join(json.dumps(value) for value in rows))
        elif kind == "csv":
            with (folder / "metadata.csv").open("w", newline="") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows({**value, "objects": json.dumps(value["objects"])} for value in rows)
        else:
            parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
        items = read(folder)
        found.append([(item.image, objects_of(item), item.summary, item.size, item.displayed) for item in items])
    assert found[0] == [
        ("a.jpg", [("RBC", (10, 10, 30, 20))], "dusty", (80, 60), False),
        ("b.jpg", [], None, (80, 60), False),
    ]
    assert found[0] == found[1] == found[2]


def test_datasets_itself_reads_the_folder_alike(source: Any, tmp_path: Path) -> None:
    source.photo("train/a.jpg", orientation=6)
    source.write("train/metadata.jsonl", json.dumps(row("a.jpg")))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(source.root), cache_dir=str(tmp_path / "cache"))
    theirs = loaded["train"][0]
    source.convert("hf_dataset")
    (mine,) = source.rows()
    assert (mine.width, mine.height) == theirs["image"].size == (60, 80)
    x, y, width, height = theirs["objects"]["bbox"][0]
    assert mine.objects[0].points == (x, y, x + width, y + height)
    assert mine.objects[0].desc == theirs["objects"]["categories"][0]


def test_photos_that_no_row_names_are_counted(source: Any) -> None:
    good(source)
    source.photo("train/more.jpg")
    assert source.convert("hf_dataset").photos_skipped == {"no_annotation": 1}


SOUND = json.dumps(row("a.jpg")) + "\n" + json.dumps(row("b.jpg", [{"bbox": [1, 1, 5, 5], "label": "x"}], text="标签"))


@settings(max_examples=80, deadline=None)
@given(content=damaged(SOUND.encode()))
def test_a_damaged_file_is_records_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "hf_dataset"
    write = sound_source(root, {"metadata.jsonl": SOUND}, ["a.jpg", "b.jpg"])
    write("metadata.jsonl", content)
    convert_or_one_error("hf_dataset", root)
