"""``bbu write-verdicts``: a row for each group, resumable; a photo that cannot be read fails its group alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bbu.cli import main
from bbu.data.photo import Photo
from bbu.images import load_image
from bbu.inference import Inference
from bbu.judging.written import read_written
from bbu.models.checkpoint import save_model
from tests.tiny import DEFAULT, build_tiny, noise_photo, tiny_config, tiny_processor

SITES = {"a": [(112, 84), (56, 56)], "b": [(168, 112), (60, 60), (110, 80)], "c": [(84, 84), (84, 56)]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that may be asked for verdicts."""
    place, processor = tmp_path_factory.mktemp("model"), tiny_processor(DEFAULT)
    processor.spec = replace(processor.spec, verdict_instruction="合格吗？")
    save_model(place, build_tiny(tiny_config(model={"family": DEFAULT}), shake=0.5), processor)
    return place


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    for number, (site, sizes) in enumerate(SITES.items()):
        (place / site).mkdir(parents=True)
        for photo, size in enumerate(sizes):
            noise_photo(10 * number + photo, *size).image.save(place / site / f"{photo}.png")
    return place


def write(model: Path, source: Path, output: Path, *options: str) -> int:
    common = ("--batch-size", "2", "--workers", "0", "--precision", "fp32", "--max-tokens", "6")
    return main(["write-verdicts", str(model), str(source), str(output), "--group-by", "folder", *common, *options])


def test_a_row_is_a_group_with_the_answer_and_the_probability_of_pass(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b" / "2.png").write_text("no picture", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    assert write(model, photos, output) == 1
    a, b, c = read_written(output)
    assert (a.group, a.images, len(b.images)) == ("a", ("a/0.png", "a/1.png"), 3)
    assert b.error is not None and b.error.startswith("b/2.png could not be read: ") and not b.passes(0.0)
    inference = Inference(model, device="cpu", precision="fp32")
    for row in (a, c):
        group = [Photo(load_image(photos / image), image) for image in row.images]
        (alone,) = inference.write_verdicts([group], max_new_tokens=6)
        assert alone.text == row.text and alone.pass_probability == pytest.approx(row.pass_probability, abs=1e-5)
        assert row.answer is None, "an untrained model writes no verdict"
    assert "3 groups of 7 photos, 1 of them failed, 2 answers malformed" in capsys.readouterr().out
    assert main(["judge", str(output), "--metrics", str(tmp_path / "m.json")]) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (metrics["judged_fail"], metrics["malformed"]) == (3, 2)


def test_a_run_that_was_cut_off_goes_on_and_writes_the_same(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert write(model, photos, whole) == 0
    real, calls = Inference.write_verdicts, iter([True, False, True])

    def dies(*arguments: Any, **options: Any) -> Any:
        if not next(calls):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(Inference, "write_verdicts", dies)
    assert write(model, photos, broken) == 130
    assert not broken.exists()
    assert write(model, photos, broken) == 0
    assert next(calls, None) is None and broken.read_bytes() == whole.read_bytes()
    assert "resuming: 2 of 3" in capsys.readouterr().err


def test_a_group_of_one_photo_or_none_is_named(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a" / "1.png").unlink()
    assert write(model, photos, tmp_path / "out.jsonl") == 2
    assert "1 of 3 groups have one photo: a (a/0.png)" in capsys.readouterr().err
    assert write(model, photos, tmp_path / "out.jsonl", "--allow-single-photos") == 0
    noise_photo(1, 56, 56).image.save(photos / "alone.png")
    assert write(model, photos, tmp_path / "other.jsonl", "--group-by", r"^(\w)/") == 2
    assert "photo 'alone.png' has no group" in capsys.readouterr().err


def test_a_model_that_was_not_trained_with_verdicts_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "plain", build_tiny(tiny_config(model={"family": DEFAULT})), tiny_processor(DEFAULT))
    assert write(tmp_path / "plain", photos, tmp_path / "out.jsonl") == 2
    assert "data.answers.verdict above 0" in capsys.readouterr().err and not list(tmp_path.glob(".*.partial"))
