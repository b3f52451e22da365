"""A disk that fills up under ``bbu predict`` and ``bbu evaluate``: one line that names the file, and the same command
goes on once there is room."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bbu.cli import main
from bbu.images import load_image
from bbu.inference import predictor
from bbu.jsonl import write_jsonl
from bbu.records import PredictedObject, PredictionRow, read_predictions
from tests.small_disk import fill, make_room, small_disk
from tests.tiny import DEFAULT, build_tiny, noise_photo, tiny_config, tiny_processor


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as place:
        yield place


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        noise_photo(number, 112, 84).image.save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("bbu: error: ")]
    return line


def test_predict_goes_on_with_its_pictures_without_predicting_again(
    disk: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bbu.models.checkpoint import save_model

    config = tiny_config(model={"family": DEFAULT})
    save_model(tmp_path / "model", build_tiny(config), tiny_processor(DEFAULT, caption_max_tokens=24))
    output, pictures = disk / "out.jsonl", disk / "pictures"
    command = ["predict", str(tmp_path / "model"), str(photos), str(output), "--workers", "0", "--precision", "fp32"]
    command += ["--pictures", str(pictures), "--threshold", "0"]
    fill(disk)
    assert main(command) == 2
    assert "out.jsonl" in error_of(capsys)
    make_room(disk)
    assert main(command) == 2, "six pictures of noise do not fit into a megabyte"
    assert "pictures/" in (line := error_of(capsys)) and line.endswith("cannot be written: No space left on device")
    rows, drawn = output.read_bytes(), sorted(pictures.iterdir())
    assert len(read_predictions(output)) == 6 and all(path.name.endswith(".png") for path in drawn)
    assert all(load_image(path).width > 700 for path in drawn)
    subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
    asked: list[int] = []
    monkeypatch.setattr(predictor, "detect", lambda *arguments: asked.append(1))
    assert main(command) == 0
    assert not asked and output.read_bytes() == rows and "resuming: 6 of 6" in capsys.readouterr().err
    assert len(list(pictures.iterdir())) == 6
    assert sorted(path.name for path in disk.iterdir()) == ["out.jsonl", "pictures"]


@pytest.mark.parametrize("option", [("--output", "m.json"), ("--report", "r.html"), ("--pictures", "p")])
def test_evaluate_says_which_file_found_no_room(
    option: tuple[str, str], disk: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found = tmp_path / "photos" / "truth.jsonl", tmp_path / "found.jsonl"
    objects = [{"desc": "螺丝/松动", "bbox_2d": [10, 10, 40, 30]}]
    names = [f"{number}.png" for number in range(2)]
    write_jsonl(truth, [{"images": [name], "objects": objects, "width": 112, "height": 84} for name in names])
    item = PredictedObject((10, 10, 40, 30), "螺丝/松动", 0.9, 0.9)
    write_jsonl(found, [PredictionRow((name,), 112, 84, (item,)) for name in names])
    target = disk / option[1]
    command = ["evaluate", str(truth), str(found), "--bootstrap-samples", "0", option[0], str(target)]
    fill(disk)
    assert main(command) == 2
    assert str(target) in (line := error_of(capsys)) and "No space left on device" in line
    assert not target.is_file() and not [path for path in disk.rglob("*") if path.is_file() and path.name != "filler"]
    subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
    make_room(disk)
    assert main(command) == 0
    if target.suffix == ".json":
        assert json.loads(target.read_text(encoding="utf-8"))["matched_boxes"] == 2
    assert target.is_file() or len(list(target.iterdir())) == 2
