"""Whatever stands in a file: it is read, or refused in one line that names it. No traceback, nothing lost unsaid.

Damage is drawn by seed. Another seed and more of it:

    BBU_FUZZ_SEED=7 BBU_FUZZ_CASES=10 python -m pytest -s tests/test_fuzzing.py
"""

from __future__ import annotations

import io
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from bbu.config import Config, load_config
from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.evaluation.calibration import Calibration, fit_calibration
from bbu.images import load_image
from bbu.inference.operating_points import OperatingPoints
from bbu.jsonl import write_jsonl
from bbu.records import (
    FewShotSample,
    ObjectRow,
    PredictionRow,
    Row,
    iter_predictions,
    iter_rows,
    read_predictions,
    read_rows,
    read_samples,
    resolve_image,
)
from data_conversion.export import export
from data_conversion.formats import FORMATS
from data_conversion.pipeline import convert
from data_conversion.report import ConversionReport
from tests.data_conversion.conftest import SIZE, Source, bbu_object
from tests.data_conversion.formats import test_csv_table, test_cvat, test_hf_dataset, test_visual_genome
from tests.evaluation.photo_sets import random_rows
from tests.fuzzing import JUNK, Tally, damage_files, damaged_bytes, damaged_json, damaged_value
from tests.tiny import build_tiny, tiny_config, tiny_processor

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

Record = Callable[[str, object], None]


# ---------------------------------------------------------------- rows and predictions


def plain(rows: list[Any]) -> list[Any]:
    """As JSON values."""
    return [json.loads(json.dumps(row.to_json())) for row in rows]


TRUTH, FOUND = random_rows(0, photos=4, most=4)
ROWS = [
    *plain(TRUTH),
    {
        "images": ["图.jpg"], "width": 80, "height": 60, "summary": "two", "metadata": {"group": "site", "n": [1, {}]},
        "objects": [{"desc": "a/b", "poly": [1, 1, 9, 1, 9, 9, 1, 8]}, {"desc": "线", "line": [0, 0, 80, 60]}],
    },
]  # fmt: skip
SAMPLES = [{"student": ROWS[0], "teachers": [ROWS[4], ROWS[1]], "context": [ROWS[2]]}, ROWS[3]]
PREDICTIONS = [
    *plain(FOUND),
    {"images": ["a.jpg"], "error": "is damaged"},
    {
        "images": ["b.jpg"], "width": 80, "height": 60,
        "predictions": [{"bbox_2d": [1, 2, 3, 4], "desc": "a/b", "score": 0.5, "objectness": 1, "levels": [0.8, 0.5]}],
    },
]  # fmt: skip


def naming(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; its error must name the file."""
    try:
        return read()
    except UserError as error:
        assert path.name in str(error), f"names no file: {error}"
        raise


def decoded(path: Path) -> list[Any]:
    """The values of a file that was read, by a plain reader."""
    return [json.loads(line) for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]


def lost_row(path: Path, rows: list[Any]) -> str | None:
    """What a reader left out of a file that it did not refuse."""
    values = decoded(path)
    if len(values) != len(rows):
        return f"{len(rows)} of {len(values)} rows"
    for value, row in zip(values, rows, strict=True):
        if isinstance(row, FewShotSample):
            row, value = row.student, value.get("student", value)
        kept, given = (
            (row.predictions, value.get("predictions", []))
            if isinstance(row, PredictionRow)
            else (row.objects, value["objects"])
        )
        if len(kept) != len(given):
            return f"{len(kept)} of {len(given)} objects of {row.images}"
    return None


@pytest.mark.parametrize(
    ("area", "values", "read"),
    [("rows", ROWS, read_rows), ("samples", SAMPLES, read_samples), ("predictions", PREDICTIONS, read_predictions)],
    ids=["rows", "samples", "predictions"],
)
def test_rows(area: str, values: list[Any], read: Any, tmp_path: Path, record_property: Record) -> None:
    tally, path = Tally(area), tmp_path / f"{area}.jsonl"
    for number, draw in tally.cases(250):
        path.write_bytes(damaged_json(draw, values, lines=True))

        tally.attempt(number, "JSON lines", lambda: lost_row(path, naming(path, lambda: read(path))))
    tally.finish(record_property, least=150)


def test_evaluation(tmp_path: Path, record_property: Record) -> None:
    """Damaged truth beside damaged predictions: refused, or every object is matched or missed."""
    tally, truth, found = Tally("evaluation"), tmp_path / "truth.jsonl", tmp_path / "found.jsonl"
    for number, draw in tally.cases(80):
        truth.write_bytes(damaged_json(draw, plain(TRUTH), lines=True) if draw.random() < 0.5 else lines(TRUTH))
        found.write_bytes(damaged_json(draw, plain(FOUND), lines=True) if draw.random() < 0.7 else lines(FOUND))

        def case() -> str | None:
            metrics = evaluate(iter_rows(truth), iter_predictions(found), bootstrap_samples=2)
            objects = sum(len(row.objects) for row in read_rows(truth))
            json.dumps(metrics, allow_nan=False)
            kept = metrics["matched_boxes"] + metrics["missed_boxes"]
            return None if kept == objects == metrics["truth_boxes"] else f"{kept} of {objects} objects counted"

        tally.attempt(number, "evaluate", case)
    tally.finish(record_property, least=30)


def lines(rows: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, plain(rows))).encode()


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibration(kind: str, tmp_path: Path, record_property: Record) -> None:
    truth, found = random_rows(3, photos=40)
    value, path = fit_calibration(truth, found, kind=kind).to_json(), tmp_path / "calibration.json"
    tally = Tally(f"calibration by {kind}")
    for number, draw in tally.cases(60):
        path.write_bytes(damaged_json(draw, value))

        def case() -> str | None:
            calibration = Calibration.load(path)
            assert calibration is not None
            scores = calibration.apply([0.0, 0.3, 1.0])
            return None if ((scores >= 0) & (scores <= 1)).all() else f"scores {scores}"

        tally.attempt(number, "calibration.json", case)
    tally.finish(record_property, least=25)


def test_operating_points(tmp_path: Path, record_property: Record) -> None:
    path = tmp_path / "points.json"
    value = {"format": 1, "points": {"a": {"threshold": 0.4}, "b/c": {"threshold": 1}}, "default": {"threshold": 0.2}}
    tally = Tally("operating points")
    for number, draw in tally.cases(60):
        path.write_bytes(damaged_json(draw, value))

        def case() -> str | None:
            points = OperatingPoints.load(path)
            limits = [*points.thresholds.values(), points.default]
            return None if all(0 <= limit <= 1 for limit in limits) else f"thresholds {limits}"

        tally.attempt(number, "points.json", case)
    tally.finish(record_property, least=25)


# ---------------------------------------------------------------- photos


def photo_files() -> dict[str, bytes]:
    """Format → a sound file with as much in it as the format holds."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    colour, exif = Image.fromarray(noise[..., :3].copy()), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"text"
    files = {}
    for name, image, options in (
        ("JPEG", colour, {"exif": exif}),
        ("JPEG", colour.convert("CMYK"), {"exif": exif}),
        ("JPEG", colour.convert("L"), {"progressive": True}),
        ("PNG", Image.fromarray(noise), {"exif": exif}),
        ("PNG", colour.quantize(16), {"transparency": 3}),
        ("PNG", Image.fromarray(noise[..., 0].astype(np.uint16)), {}),
        ("TIFF", colour, {"exif": exif, "compression": "tiff_lzw"}),
        ("TIFF", Image.fromarray(noise[..., 0].astype(np.float32)), {}),
        ("WEBP", colour, {"exif": exif}),
        ("BMP", colour, {}),
        ("GIF", colour.quantize(16), {"save_all": True, "append_images": [colour.quantize(8)]}),
        ("ICO", colour, {}),
        ("PPM", colour, {}),
        ("EPS", colour, {}),
        ("MPO", colour, {"save_all": True, "append_images": [colour]}),
    ):
        stream = io.BytesIO()
        image.save(stream, format=name, **options)
        files[f"{name} {image.mode}"] = stream.getvalue()
    return files


def test_photos(tmp_path: Path, record_property: Record) -> None:
    tally, files, path = Tally("photos"), list(photo_files().items()), tmp_path / "photo.jpg"
    for number, draw in tally.cases(400):
        name, data = draw.choice(files)
        if draw.random() < 0.5:  # where the tags are
            start = draw.randrange(120)
            data = data[:start] + damaged_bytes(draw, data[start : start + 60]) + data[start + 60 :]
        else:
            data = damaged_bytes(draw, data)
        path.write_bytes(data)

        def case() -> str | None:
            image = naming(path, lambda: load_image(path))
            whole = image.mode == "RGB" and np.asarray(image).shape == (image.height, image.width, 3)
            return None if whole else f"an image of mode {image.mode}"

        tally.attempt(number, name, case)
    tally.finish(record_property, least=120)


def test_image_paths(tmp_path: Path, record_property: Record) -> None:
    """Whatever a row calls its photo: a file inside the root, or an error."""
    tally, root = Tally("image paths"), tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").write_bytes(photo_files()["JPEG RGB"])
    (root / "out.jpg").symlink_to("/etc/passwd")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "folder.jpg").mkdir()
    parts = [
        "a.jpg",
        "out.jpg",
        "loop.jpg",
        "folder.jpg",
        "..",
        ".",
        "/",
        "\0",
        "\ud800",
        "\udcff",
        "x" * 300,
        "~",
        "é",
        "",
    ]
    for number, draw in tally.cases(80):
        name = draw.choice(("", "/", "./")) + "/".join(draw.choices(parts, k=draw.randrange(1, 4)))
        tally.attempt(number, repr(name[:40]), lambda name=name: opened(root, name))
    tally.finish(record_property, least=40)


def opened(root: Path, name: str) -> str | None:
    path = resolve_image(root, name)
    load_image(path, name)
    return None if path.is_relative_to(root.resolve()) else f"{path} is outside"


# ---------------------------------------------------------------- configs


def test_configs(project: Path, tmp_path: Path, record_property: Record) -> None:
    tally, path = Tally("configs"), tmp_path / "run.yaml"
    texts = [file.read_bytes() for file in sorted((project / "configs").glob("*.yaml"))]
    for number, draw in tally.cases(80):
        text = draw.choice(texts)
        if draw.random() < 0.7:
            value = damaged_value(draw, yaml.safe_load(text))
            text = yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
        if draw.random() < 0.4:
            text = damaged_bytes(draw, text)
        path.write_bytes(text)
        tally.attempt(number, "YAML", lambda: loaded(path))
    tally.finish(record_property, least=35)


def test_overrides(project: Path, record_property: Record) -> None:
    tally, demo = Tally("overrides"), project / "configs" / "demo.yaml"
    keys = [
        "seed", "model", "model.scratch", "model.freeze", "data.min_pixels", "data.source.splits", "evaluation.fppi",
        "training.learning_rates.llm", "training.max_steps.x", "", ".", "data..x", "nowhere",
    ]  # fmt: skip
    for number, draw in tally.cases(40):
        key, value = draw.choice(keys), draw.choice(JUNK)
        text = str(value) if draw.random() < 0.5 else json.dumps(value)
        override = f"{key}{draw.choice(('=', '=', '=', '==', ''))}{text}"
        tally.attempt(number, repr(override[:60]), lambda override=override: loaded(demo, override))
    tally.finish(record_property, least=25)


def loaded(path: Path, *overrides: str) -> str | None:
    config = load_config(path, overrides)
    return None if isinstance(config, Config) else f"a {type(config).__name__}"


# ---------------------------------------------------------------- model folders


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bbu.models.checkpoint import save_model

    folder, config = tmp_path_factory.mktemp("saved") / "model", tiny_config()
    save_model(folder, build_tiny(config), tiny_processor(config.model.family))
    return folder


def test_model_folders(model_folder: Path, tmp_path: Path, record_property: Record) -> None:
    """A damaged model folder is refused, or its weights are those that were saved."""
    from bbu.inference import Inference

    tally, folder = Tally("model folders"), tmp_path / "model"
    whole = {name: value.clone() for name, value in Inference(model_folder).model.state_dict().items()}
    for number, draw in tally.cases(60):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model_folder, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        what = damage_files(draw, files)

        def case() -> str | None:
            found = Inference(folder).model.state_dict()
            wrong = [name for name, value in whole.items() if not value.equal(found[name])]
            return f"other weights: {', '.join(wrong[:3])}" if wrong else None

        with little_memory():
            tally.attempt(number, what, case)
    tally.finish(record_property, least=20)


@contextmanager
def little_memory(gigabytes: float = 4.0) -> Iterator[None]:
    """A model of absurd sizes finds no memory, instead of taking all there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * 2**30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---------------------------------------------------------------- sources of every format

SMALL = [
    Row(
        ("a.jpg",), (ObjectRow("label", "bbox_2d", (8, 6, 28, 36)), ObjectRow("a/b", "poly", (1, 1, 9, 1, 9, 9))), *SIZE
    ),
    Row(("b.jpg",), (ObjectRow("label", "bbox_2d", (40, 10, 80, 60)),), *SIZE),
    Row(("c.jpg",), (), *SIZE),
]


SOUND: dict[str, dict[str, str]] = {  # files of formats that are only read, for the photos a.jpg and b.jpg
    "csv": {"t.csv": test_csv_table.SOUND},
    "cvat": {"annotations.xml": test_cvat.SOUND},
    "hf_dataset": {"metadata.jsonl": test_hf_dataset.SOUND},
    "visual_genome": test_visual_genome.FILES,
}


def write_good(source_format: str, source: Source) -> None:
    """A sound source of two or three photos."""
    if FORMATS[source_format].write is not None:
        photos = Source(source.root.parent / "photos", source.out)
        for row in SMALL:
            photos.photo(row.images[0])
        write_jsonl(photos.root / "rows.jsonl", SMALL)
        export(source_format, photos.root / "rows.jsonl", source.root, image_root=photos.root, photos="copy")
    elif source_format == "bbu_json":
        for name in ("a", "b"):
            source.bbu(name, [bbu_object(), bbu_object("标签/不可读", (1, 1, 9, 9))])
    else:
        names = ("VG_100K/1.jpg", "VG_100K/2.jpg") if source_format == "visual_genome" else ("a.jpg", "b.jpg")
        for name in names:
            source.photo(name)
        for name, text in SOUND[source_format].items():
            source.write(name, text)


@pytest.mark.parametrize("source_format", [name for name, entry in FORMATS.items() if entry.read is not None])
def test_sources(source_format: str, tmp_path: Path, record_property: Record) -> None:
    """A damaged source is refused, or every object read is written or listed with a reason."""
    (tmp_path / "good").mkdir()
    good = Source(tmp_path / "good", tmp_path / "out")
    write_good(source_format, good)
    objects = converted(good.root, good.out, source_format, "fail").objects_read
    tally, root = Tally(f"sources of {source_format}"), tmp_path / "source"
    for number, draw in tally.cases(25):
        for folder in (root, good.out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good.root, root)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        photos = [path for path in files if path.suffix == ".jpg"]
        of_photo = draw.random() < 0.2
        what = damage_files(draw, photos if of_photo else [path for path in files if path not in photos])
        on_error = draw.choice(("skip", "skip", "fail"))
        convert_it = partial(converted, root, good.out, source_format, on_error)
        known = objects if of_photo else None
        tally.attempt(
            number, f"{what}, {on_error}", lambda run=convert_it, known=known: unaccounted(run(), good.out, known)
        )
    tally.finish(record_property, least=1)


def converted(root: Path, out: Path, source_format: str, on_error: str) -> ConversionReport:
    return convert(source_format, root, out, taxonomy=None, val_fraction=0.0, on_error=on_error, workers=1)


def unaccounted(report: ConversionReport, out: Path, objects: int | None) -> str | None:
    """What a conversion lost without a word.

    Args:
        objects: that the annotations hold, where these are sound.
    """
    rows = read_rows(out / "all_samples.jsonl")
    written = sum(len(row.objects) for row in rows)
    listed = sum(report.dropped_by_reason().values())
    if not report.objects_read == written + listed == report.objects_written + report.objects_dropped:
        return f"{report.objects_read} objects read, {written} written, {listed} listed"
    if report.photos_read != len(rows) + report.photos_skipped.total():
        return f"{report.photos_read} photos read, {len(rows)} written, {report.photos_skipped.total()} skipped"
    if objects is not None and report.objects_read != objects and not report.photos_skipped:
        return f"{report.objects_read} of {objects} objects read, and no photo skipped"
    return None
