"""``bbu summarize``: a row for each group, resumable, one bad photo spoils no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bbu.cli import main
from bbu.inference import Inference
from bbu.jsonl import write_jsonl
from bbu.models.checkpoint import save_model
from bbu.records import Row
from tests.tiny import DEFAULT, build_tiny, noise_photo, tiny_config, tiny_processor

SIZES = [(112, 84), (56, 56), (168, 112), (60, 60), (110, 80)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that may be asked for summaries; what it writes has no sense, but differs by photo."""
    place, processor = tmp_path_factory.mktemp("model"), tiny_processor(DEFAULT)
    processor.spec = replace(processor.spec, summary_instruction="概括。")
    save_model(place, build_tiny(tiny_config(model={"family": DEFAULT}), shake=0.5), processor)
    return place


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of two sites and one alone, one of them broken."""
    place = tmp_path / "photos"
    for number, size in enumerate(SIZES):
        site = place / ("b" if number in (0, 3) else "a")
        site.mkdir(parents=True, exist_ok=True)
        noise_photo(number, *size).image.save(site / f"{number}.png")
    (place / "a" / "broken.png").write_text("no picture", encoding="utf-8")
    return place


def summarize(model: Path, source: Path, output: Path, *options: str) -> int:
    common = ("--batch-size", "2", "--workers", "0", "--precision", "fp32", "--max-tokens", "6")
    return main(["summarize", str(model), str(source), str(output), *common, *options])


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_a_row_is_a_group_with_a_summary_or_an_error_of_each_photo(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summarize(model, photos, tmp_path / "out.jsonl", "--group-by", "folder") == 1
    found = rows_of(tmp_path / "out.jsonl")
    assert [(row["group"], row["images"]) for row in found] == [
        ("a", ["a/1.png", "a/2.png", "a/4.png", "a/broken.png"]), ("b", ["b/0.png", "b/3.png"])
    ]  # fmt: skip
    assert [list(item) for row in found for item in row["per_image"]] == [
        *[["summary", "finished"]] * 3, ["error"], *[["summary", "finished"]] * 2
    ]  # fmt: skip
    inference = Inference(model, device="cpu", precision="fp32")
    for row in found:
        for image, item in zip(row["images"], row["per_image"], strict=True):
            if "error" not in item:
                assert item["summary"] == inference.summarize(photos / image, max_new_tokens=6)
    assert "6 photos, 1 of them failed, " in capsys.readouterr().out


def test_groups_are_those_of_the_rows_and_photos_without_one_stand_alone(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    groups = {"a/1.png": "x", "a/2.png": None, "a/4.png": "x", "b/0.png": None}
    rows = [Row((name,), (), 9, 9, metadata={"group": group} if group else {}) for name, group in groups.items()]
    write_jsonl(photos / "list.jsonl", rows)
    assert summarize(model, photos / "list.jsonl", tmp_path / "out.jsonl") == 0
    assert [(row["group"], row["images"]) for row in rows_of(tmp_path / "out.jsonl")] == [
        ("x", ["a/1.png", "a/4.png"]), (None, ["a/2.png"]), (None, ["b/0.png"])
    ]  # fmt: skip


def test_a_run_that_was_cut_off_goes_on_and_writes_the_same(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    summarize(model, photos, whole)
    real, calls = Inference.write_summaries, iter([True, False])

    def dies(*arguments: Any, **options: Any) -> Any:
        if not next(calls):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(Inference, "write_summaries", dies)
        assert summarize(model, photos, broken) == 130
    assert not broken.exists()
    asked: list[int] = []

    def counted(self: Inference, samples: Any, **options: Any) -> Any:
        asked.append(len(samples))
        return real(self, samples, **options)

    monkeypatch.setattr(Inference, "write_summaries", counted)
    assert summarize(model, photos, broken) == 1
    assert sum(asked) < 5, "what was written before was not written again"
    assert broken.read_bytes() == whole.read_bytes()
    assert "resuming: 2 of 6 photos are done" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*.partial"))


def test_a_model_that_was_not_trained_with_summaries_is_refused(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "plain", build_tiny(tiny_config(model={"family": DEFAULT})), tiny_processor(DEFAULT))
    assert summarize(tmp_path / "plain", photos, tmp_path / "out.jsonl") == 2
    assert "data.answers.summary above 0" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists() and not list(tmp_path.glob(".*.partial"))
