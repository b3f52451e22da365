"""``bbu predict``: many photos into one atomically written file, resumable, with pictures and exports."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbu.cli import main
from bbu.evaluation.calibration import Calibration
from bbu.images import open_image
from bbu.inference import Inference, job
from bbu.inference.partial import PartialRows
from bbu.models.checkpoint import save_model
from bbu.records import PredictionRow, read_predictions
from tests.damaged_photos import POSTSCRIPT, encoded, exif_kinds, no_files, pixels, with_exif
from tests.tiny import DEFAULT, build_tiny, noise_photo, tiny_config, tiny_processor

SIZES = [(112, 84), (56, 56), (168, 112), (60, 60), (110, 80), (160, 120), (58, 56)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder; calibrated, because untrained captions have scores that round to 0."""
    place = tmp_path_factory.mktemp("model")
    config = tiny_config(model={"family": DEFAULT})
    save_model(place, build_tiny(config), tiny_processor(DEFAULT, caption_max_tokens=24))
    rough = {"ECE": None, "Brier": None}
    Calibration("temperature", 20.0, (), "val", 1, 1, rough, rough).save(place / "calibration.json")
    return place


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good photos, one of them deep, between two bad ones."""
    place = tmp_path_factory.mktemp("photos")
    (place / "deep").mkdir()
    for number, size in enumerate(SIZES):
        noise_photo(number, *size).image.save(place / ("deep/" * (number == 3) + f"照片{number}.png"))
    (place / "a note.png").write_text("no picture", encoding="utf-8")
    Image.new("RGB", (900, 3)).save(place / "thin.png")  # 300 times longer than wide
    return place


@pytest.fixture
def good(photos: Path, tmp_path: Path) -> Path:
    """A list of the good photos."""
    return listed(tmp_path / "good.txt", [str(path.relative_to(photos)) for path in sorted(photos.rglob("照片*"))])


def listed(path: Path, names: list[str]) -> Path:
    path.write_text("\n".join(names), encoding="utf-8")
    return path


def predict(model: Path, source: Path, output: Path, *options: str) -> int:
    return main(
        [
            "predict",
            str(model),
            str(source),
            str(output),
            "--batch-size",
            "2",
            "--workers",
            "0",
            "--precision",
            "fp32",
            *options,
        ]
    )


def alike(one: PredictionRow, other: PredictionRow, score: float = 1e-4, pixels: float = 0.05) -> bool:
    """Equal within float32 and the rounding of the file."""
    a, b = one.predictions, other.predictions
    return (
        (one.images, one.width, one.height, one.error) == (other.images, other.width, other.height, other.error)
        and sorted(item.desc for item in a) == sorted(item.desc for item in b)
        and np.allclose(sorted(item.score for item in a), sorted(item.score for item in b), atol=score)
        and np.allclose(np.sort([item.box for item in a], 0), np.sort([item.box for item in b], 0), atol=pixels)
    )


def test_names_as_long_as_a_file_may_have_and_longer(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = "照" * 83 + "a.png"  # 254 bytes
    folder = tmp_path / "long"
    folder.mkdir()
    noise_photo(0, 60, 60).image.save(folder / longest)
    names = listed(tmp_path / "names.txt", [longest, "x" * 300 + ".png", "y/" * 3000 + "z.png"])
    options = ("--image-root", str(folder), "--pictures", str(tmp_path / "pictures"))
    assert predict(model, names, tmp_path / "out.jsonl", *options) == 1
    rows = read_predictions(tmp_path / "out.jsonl")
    assert rows[0].error is None and all("File name too long" in str(row.error) for row in rows[1:])
    assert len(list((tmp_path / "pictures").iterdir())) == 1
    for source, output in ((tmp_path / ("x" * 300), "out.jsonl"), (names, "x" * 300), (names, "y/" * 3000 + "z")):
        capsys.readouterr()
        assert predict(model, source, tmp_path / output) == 2
        assert "File name too long" in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- rows


def test_a_folder_is_predicted_in_order_and_a_bad_photo_costs_only_itself(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(model, photos, tmp_path / "out.jsonl") == 1
    assert "9 photos, 2 of them failed" in capsys.readouterr().out
    rows = read_predictions(tmp_path / "out.jsonl")
    assert [row.images[0] for row in rows] == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert [row.images[0] for row in rows if row.error] == ["a note.png", "thin.png"]
    inference = Inference(model, device="cpu", precision="fp32", batch_size=2)
    expected = list(inference.predict_rows([row.images[0] for row in rows], str(photos)))
    assert all(alike(one, other) for one, other in zip(rows, expected, strict=True) if not one.error)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("options", [(), ("--tiles", "2x1", "--flips")])
def test_neither_order_nor_size_of_batches_changes_a_photo(
    options: tuple[str, ...], model: Path, photos: Path, good: Path, tmp_path: Path
) -> None:
    names = good.read_text(encoding="utf-8").splitlines()
    turned = listed(tmp_path / "turned.txt", names[::-1])
    root = ("--image-root", str(photos))
    assert predict(model, good, tmp_path / "one.jsonl", *root, *options) == 0
    assert predict(model, turned, tmp_path / "two.jsonl", *root, *options, "--batch-size", "5") == 0
    one, two = (read_predictions(tmp_path / name) for name in ("one.jsonl", "two.jsonl"))
    assert [row.images[0] for row in two] == names[::-1]
    assert all(alike(a, b) for a, b in zip(one, reversed(two), strict=True))


def test_worker_processes_change_no_byte(model: Path, photos: Path, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        assert predict(model, photos, tmp_path / workers, "--tiles", "2x1", "--workers", workers) == 1
    assert (tmp_path / "0").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_photo_listed_twice_is_predicted_twice(model: Path, photos: Path, tmp_path: Path) -> None:
    frames = listed(tmp_path / "frames.txt", ["照片1.png", "照片0.png", "照片1.png"])
    assert predict(model, frames, tmp_path / "out.jsonl", "--image-root", str(photos)) == 0
    one, _, again = read_predictions(tmp_path / "out.jsonl")
    assert alike(one, again)


def test_an_undecodable_file_name_is_predicted_like_any_other(model: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    shutil.copy(photos / "照片0.png", os.fsdecode(bytes(folder) + b"/\xff.png"))
    assert predict(model, folder, tmp_path / "out.jsonl") == 0
    assert read_predictions(tmp_path / "out.jsonl")[0].images == ("\\xff.png",)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_overnight_every_bad_photo_costs_its_own_row_and_odd_exif_data_none(
    workers: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that ended a prediction, or left it waiting, or was dropped, in one folder."""
    folder = tmp_path / "night"
    folder.mkdir()
    exif = exif_kinds(6)
    for number, kind in enumerate(exif):
        (folder / f"exif{number:02d}.jpg").write_bytes(with_exif(exif[kind], pixels((112, 84))))
    bad = {
        "avif.jpg": encoded("AVIF", pixels((112, 84)))[:300],
        "eps.jpg": POSTSCRIPT,
        "heic.heic": b"\0\0\0\x18ftypheic" + bytes(99),
        "note.gif": b"no picture",
        os.fsdecode(b"\xff.jpg"): b"no picture",
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    kinds = no_files(folder, "a.jpg")
    (folder / "note.txt").touch()
    assert predict(model, folder, tmp_path / "out.jsonl", "--workers", workers) == 1
    rows = {row.images[0]: row for row in read_predictions(tmp_path / "out.jsonl")}
    failed = {name for name, row in rows.items() if row.error}
    wanted = {"avif.jpg", "eps.jpg", "heic.heic", "note.gif", "\\xff.jpg", *(f"{kind}_a.jpg" for kind in kinds)}
    assert failed == wanted - {"folder_a.jpg"}
    assert len(rows) == len(failed) + len(exif) and rows["exif00.jpg"].width == 84
    printed = capsys.readouterr()
    assert f"{len(rows)} photos, {len(failed)} of them failed" in printed.out
    assert "bbu: note: 1 file not called like photos: 1 .txt" in printed.err


# ---------------------------------------------------------------- stopped and resumed


class KilledError(Exception):
    """Simulates a power cut."""


def kill_after(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PartialRows.add

    def add(self: PartialRows, index: int, row: PredictionRow) -> None:
        nonlocal rows
        if not rows:
            raise KilledError
        rows -= 1
        real(self, index, row)

    monkeypatch.setattr(PartialRows, "add", add)


@pytest.mark.parametrize("rows", [0, 1, 4, 8])
def test_a_stopped_prediction_resumes_to_the_same_bytes(
    rows: int,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert predict(model, photos, tmp_path / "whole.jsonl") == 1
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_after(rows, patch)
        predict(model, photos, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / ".out.jsonl.partial").exists()
    capsys.readouterr()
    seen = count_detections(monkeypatch)
    assert predict(model, photos, tmp_path / "out.jsonl") == 1
    assert ("resuming" in capsys.readouterr().err) == (rows > 0)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / ".out.jsonl.partial").exists()
    assert sum(seen) < 7 if rows > 4 else sum(seen) <= 7


def count_detections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from bbu.inference.predictor import Predictor

    seen: list[int] = []
    real = Predictor.detect

    def detect(self: Predictor, samples: Any) -> Any:
        seen.append(len(samples))
        return real(self, samples)

    monkeypatch.setattr(Predictor, "detect", detect)
    return seen


@pytest.mark.parametrize("change", [("--max-detections", "3"), ("--min-score", "0.1"), ("--flips",)])
def test_other_options_start_over(
    change: tuple[str, ...],
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_after(5, patch)
        predict(model, photos, tmp_path / "out.jsonl")
    assert predict(model, photos, tmp_path / "out.jsonl", *change) == 1
    assert "with other settings" in capsys.readouterr().err
    assert predict(model, photos, tmp_path / "fresh.jsonl", *change) == 1
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_another_model_under_the_same_name_is_noticed(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "model")
    before = job.content_hash(copy)
    assert before == job.content_hash(model)
    weights = copy / "detection_head.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert job.content_hash(copy) != before


# ---------------------------------------------------------------- what is left out, drawn and exported


@pytest.fixture
def scores(model: Path, good: Path, photos: Path, tmp_path: Path) -> Iterator[list[float]]:
    predict(model, good, tmp_path / "all.jsonl", "--image-root", str(photos))
    yield sorted(item.score for row in read_predictions(tmp_path / "all.jsonl") for item in row.predictions)


def test_predictions_below_min_score_are_left_out(
    scores: list[float], model: Path, photos: Path, good: Path, tmp_path: Path
) -> None:
    middle = scores[len(scores) // 2]
    root = ("--image-root", str(photos))
    predict(model, good, tmp_path / "few.jsonl", *root, "--min-score", str(middle + 1e-5))
    kept = sorted(item.score for row in read_predictions(tmp_path / "few.jsonl") for item in row.predictions)
    assert kept == [score for score in scores if score > middle + 1e-5] and kept
    points = tmp_path / "points.json"
    everything = {item.desc for row in read_predictions(tmp_path / "all.jsonl") for item in row.predictions}
    chosen = sorted(everything)[0]
    points.write_text(json.dumps({"points": {chosen: {"threshold": 0.0}}, "default": {"threshold": 1.0}}), "utf-8")
    predict(model, good, tmp_path / "one.jsonl", *root, "--operating-points", str(points))
    assert {item.desc for row in read_predictions(tmp_path / "one.jsonl") for item in row.predictions} == {chosen}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_photo_has_a_picture(
    workers: str, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--pictures", str(tmp_path / "pictures"), "--threshold", "0", "--workers", workers)
    assert predict(model, photos, tmp_path / "out.jsonl", *options) == 1
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    rows = read_predictions(tmp_path / "out.jsonl")
    stems = [f"{n:06d}_{Path(row.images[0]).stem}.png" for n, row in enumerate(rows, start=1) if row.error is None]
    assert names == stems and len(names) == 7
    assert all(open_image(tmp_path / "pictures" / name).width > 700 for name in names)
    assert "7 pictures" in capsys.readouterr().out


def test_predictions_are_exported_too(model: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    assert predict(model, photos, tmp_path / "out.jsonl", "--export", "coco", "--export-to", str(tmp_path / "c")) == 1
    printed = capsys.readouterr().out
    assert "photos   7 written, 2 skipped" in printed and "2 x not_predicted" in printed
    assert any((tmp_path / "c").rglob("*.json"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--export", "yolo"), "give both or neither"),
        (("--export", "coco_segmentations", "--export-to", "new"), "formats that can be written"),
        (("--export", "yolo", "--export-to", "."), "not an empty folder"),
        (("--tiles", "3"), "columns x rows"),
        (("--tile-size", "300"), "--tile-size needs --tiles"),
        (("--min-score", "2"), "--min-score"),
        (("--operating-points", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--taxonomy", "nowhere"), "taxonomy 'nowhere'"),
    ],
)
def test_a_wrong_argument_fails_before_any_photo_is_predicted(
    options: tuple[str, ...], why: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(tmp_path / "no model", photos, tmp_path / "out.jsonl", *options) == 2
    message = capsys.readouterr().err
    assert why in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())
