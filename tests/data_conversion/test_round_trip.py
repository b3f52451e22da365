"""Out to every format that can be written and read, and back in: what comes back, and that the rest is counted."""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from bbu.geometry import displayed_size
from bbu.jsonl import write_jsonl
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row, read_rows
from bbu.taxonomy import Taxonomy
from data_conversion.base import SPLITS
from data_conversion.export import ExportReport, export
from data_conversion.formats import FORMATS
from data_conversion.pipeline import convert

ways = importlib.import_module("tests.data_conversion.formats.exporting")
BOTH_WAYS = [name for name, entry in FORMATS.items() if entry.read and entry.write]
LOSS_BEGINS = {"line": "line", "poly": "polygon", "bbox_2d": "box"}  # kind → how writers name what they change of it
TOLERANCE = 0.5  # displayed pixels


@dataclass(frozen=True)
class Sample:
    """A row, and how its photo lies in the file."""

    row: Row
    orientation: int

    @property
    def image(self) -> str:
        return self.row.images[0]

    @property
    def split(self) -> str | None:
        return self.row.metadata.get("split")


@st.composite
def objects(draw: st.DrawFn, width: int, height: int) -> ObjectRow:
    """A box, a polygon of three or four corners or a bent line, at least 3 pixels wide and high."""
    kind = draw(st.sampled_from(["bbox_2d", "poly", "line"]))
    x1, y1 = draw(st.floats(0, width - 3)), draw(st.floats(0, height - 3))
    x2, y2 = draw(st.floats(x1 + 3, width)), draw(st.floats(y1 + 3, height))
    middle = (draw(st.floats(x1 + 1, x2 - 1)), draw(st.floats(y1, y2)))
    points = {
        "bbox_2d": (x1, y1, x2, y2),
        "poly": (x1, y1, x2, y1, x2, y2) if draw(st.booleans()) else ((x1 + x2) / 2, y1, x2, y2, x1, (y1 + y2) / 2),
        "line": (x1, y1, *middle, x2, y2),
    }[kind]
    desc = draw(ways.descriptions().filter(Taxonomy().normalise))
    return ObjectRow(desc, kind, tuple(round(value, 2) for value in points))


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    """A few photos in awkward folders, in all orientations; the first is for training, with something to learn."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        width, height = draw(st.integers(8, 60)), draw(st.integers(8, 60))
        places = st.lists(objects(width, height), min_size=not number, max_size=4, unique_by=lambda obj: obj.box)
        folders = draw(st.lists(st.sampled_from(ways.FOLDERS), max_size=2 if number else 0))
        image = "/".join([*folders, f"p {number}&'.{draw(st.sampled_from(['jpg', 'png']))}"])
        split = "train" if number == 0 else draw(st.sampled_from([None, *SPLITS]))
        summary = draw(st.sampled_from([None, "有灰尘, blurred"]))
        row = Row((image,), tuple(draw(places)), width, height, summary, {"split": split} if split else {})
        found.append(Sample(row, draw(st.integers(1, 8))))
    return found


def make_photo(path: Path, sample: Sample, number: int) -> None:
    """A photo of its own colours, stored as its orientation wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = displayed_size(sample.row.width, sample.row.height, sample.orientation)  # its own inverse
    image = Image.new("RGB", size, (40 * number, 80, 90))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = sample.orientation
    image.save(path, exif=exif)


def out_and_in(name: str, folder: Path, rows: Sequence[Any], root: Path) -> tuple[ExportReport, dict[str, Row]]:
    """What the export reports, and the rows that come back, by path of their photo."""
    write_jsonl(folder / "rows.jsonl", rows)
    report = export(name, folder / "rows.jsonl", folder / "out", image_root=root)
    convert(name, folder / "out", folder / "back", taxonomy=None, on_error="fail", val_fraction=0.0, workers=1)
    return report, {row.images[0]: row for row in read_rows(folder / "back" / "all_samples.jsonl")}


def near(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= TOLERANCE for x, y in zip(a, b, strict=True))


def changed_kinds(before: Row, after: Row) -> Counter[str]:
    """Kinds of the objects that came back as another kind; every object must come back, and no other."""
    left = list(after.objects)
    changed: Counter[str] = Counter()
    for obj in before.objects:
        desc = Taxonomy().normalise(obj.desc)
        same = [
            found for found in left if found.desc == desc and found.kind == obj.kind and near(found.points, obj.points)
        ]
        other = [found for found in left if found.desc == desc and found.kind != obj.kind and near(found.box, obj.box)]
        assert same or other, f"{obj} is not in {left}"
        changed[obj.kind] += not same
        left.remove((same or other)[0])
    assert not left
    return changed


@pytest.mark.parametrize("name", BOTH_WAYS)
@settings(max_examples=25, deadline=None)
@given(found=samples())
def test_rows_come_back_and_what_does_not_is_counted(name: str, found: list[Sample]) -> None:
    place = FORMATS[name].photo_place
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, sample in enumerate(found):
            make_photo(folder / "photos" / sample.image, sample, number)
        report, back = out_and_in(name, folder, [sample.row for sample in found], folder / "photos")
    assert not report.skipped and not report.left_out
    assert (report.photos, report.objects) == (len(found), sum(len(sample.row.objects) for sample in found))
    assert report.notes["written_upright"] == sum(sample.orientation != 1 for sample in found)
    assert sorted(back) == sorted(place(sample.image, sample.split) for sample in found)
    pairs = [(sample, back[place(sample.image, sample.split)]) for sample in found]
    changed = sum((changed_kinds(sample.row, row) for sample, row in pairs), Counter[str]())
    for kind, begins in LOSS_BEGINS.items():
        counted = sum(count for words, count in report.losses.items() if words.startswith(begins))
        # A line that became a box may be counted again with what happens to the boxes.
        assert changed[kind] <= counted <= changed.total(), report.losses
    for sample, row in pairs:
        assert (row.width, row.height) == (sample.row.width, sample.row.height)
    assert report.losses["summary not kept"] == sum(a.row.summary != b.summary for a, b in pairs)
    moved = sum(a.split not in (None, b.metadata["split"]) for a, b in pairs)
    assert moved <= sum(count for words, count in report.losses.items() if words.startswith("split"))


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_predictions_come_back_as_boxes(name: str, tmp_path: Path) -> None:
    found = PredictedObject((3.5, 4, 20, 30.25), "螺丝/安装正确", 0.9, 0.95)
    row = PredictionRow(("a.jpg",), 60, 40, (found, replace(found, score=0.2)))
    make_photo(tmp_path / "photos/a.jpg", Sample(Row(("a.jpg",), (), 60, 40), 6), 0)
    write_jsonl(tmp_path / "rows.jsonl", [row])
    report = export(name, tmp_path / "rows.jsonl", tmp_path / "out", image_root=tmp_path / "photos", min_score=0.5)
    convert(name, tmp_path / "out", tmp_path / "back", taxonomy=None, val_fraction=0.0, workers=1)
    (back,) = read_rows(tmp_path / "back/all_samples.jsonl")
    (obj,) = back.objects
    assert obj.desc == found.desc and near(obj.box, found.box)
    assert (report.objects, report.left_out) == (1, {"score_too_low": 1})
    assert set(report.losses) <= {"score not kept", "photo without a split written to train"}


@pytest.fixture(scope="module")
def bccd(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The real data set, and 40 of its photos as rows."""
    root = shared_dir / "data" / "bccd_voc"
    if not root.is_dir():
        pytest.skip(f"the BCCD data set is not at {root}")
    out = tmp_path_factory.mktemp("bccd") / "rows"
    convert("pascal_voc", root, out, taxonomy=None, workers=1)
    rows = read_rows(out / "all_samples.jsonl")[::9][:40]
    assert len(rows) == 40 and {row.metadata["split"] for row in rows} == set(SPLITS)
    return root, rows


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_real_photos_come_back_whole(name: str, bccd: tuple[Path, list[Row]], tmp_path: Path) -> None:
    root, rows = bccd
    report, back = out_and_in(name, tmp_path, rows, root)
    assert (report.photos, report.objects, report.skipped) == (40, sum(len(row.objects) for row in rows), {})
    place = FORMATS[name].photo_place
    for row in rows:
        assert changed_kinds(row, back[place(row.images[0], row.metadata["split"])]).total() == 0
    assert len(back) == 40
