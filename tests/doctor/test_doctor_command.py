"""The command: from raw annotations to a status, a JSON report that keeps its schema, and nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbu.cli import main
from bbu.doctor.findings import CODES, SEVERITIES

FINDING_KEYS = {"code", "severity", "title", "count", "examples", "meaning", "fix"}
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Raw photos with JSON beside them: 14 for train, 3 for val and test each."""
    for split, count in (("train", 14), ("val", 3), ("test", 3)):
        (tmp_path / "raw" / split).mkdir(parents=True)
        for number in range(count):
            annotate(tmp_path / "raw" / split / f"{number}.jpg", seed=100 * len(split) + 31 * number + ord(split[0]))
    return tmp_path / "raw"


def annotate(photo: Path, seed: int, labels: tuple[str, str] = ("标签/可读", "挡风板/完整")) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((224, 168), Image.Resampling.BICUBIC).save(photo)
    features = [
        {
            "geometry": {
                "type": "ExtentPolygon",
                "coordinates": [[x, 20], [x + 60, 20], [x + 60, 90], [x, 90], [x, 20]],
            },
            "properties": {"contentZh": {"标签": label}},
        }
        for x, label in zip((10, 110), labels, strict=True)
    ]
    value = {"info": {"width": 224, "height": 168, "depth": 3}, "markResult": {"features": features}}
    photo.with_suffix(".json").write_text(json.dumps(value), encoding="utf-8")


def doctor(source: Path, *arguments: str) -> int:
    """The command on a tiny model, with one sample proven."""
    config = source.parent / "small.yaml"
    config.write_text(
        f"""
data: {{source: {{format: bbu_json, path: {source}}}, min_pixels: 3136, max_pixels: 50176, max_length: 2000}}
model:
  scratch: {{vision_width: 32, vision_depth: 2, vision_heads: 2, text_width: 64, vocab_size: 400}}
  detection: {{width: 32, heads: 4, layers: 1}}
training: {{max_steps: 8, batch_size: 2}}
output_dir: {source.parent / "run"}
""",
        encoding="utf-8",
    )
    return main(["doctor", str(config), *arguments, "--samples", "1"])


def test_clean_raw_data_pass_and_leave_nothing_behind(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(source.parent))
    assert doctor(source, "--strict") == 0
    assert "small: nothing found in 20 photos with 40 objects" in capsys.readouterr().out
    assert sorted(os.listdir(source.parent)) == sorted([*before, "small.yaml"])


def break_a_file(source: Path) -> None:
    (source / "train" / "0.json").write_text('{"info": ', encoding="utf-8")


def test_a_broken_file_is_a_finding_and_not_the_end(source: Path, tmp_path: Path) -> None:
    break_a_file(source)
    report = tmp_path / "report.json"
    assert doctor(source, "--json", str(report)) == 1  # the job itself would stop there
    (found,) = json.loads(report.read_text(encoding="utf-8"))["findings"]
    assert (found["code"], found["severity"], found["count"]) == ("skipped_malformed", "error", 1)
    assert found["examples"][0]["where"] == "train/0.json"
    assert doctor(source, "data.source.on_error=skip") == 0
    assert doctor(source, "data.source.on_error=skip", "--strict") == 1


def test_an_unknown_term_is_named_with_its_count(source: Path, tmp_path: Path) -> None:
    taxonomy = tmp_path / "taxonomy.yaml"
    taxonomy.write_text("hierarchy: {标签: null, 挡风板: [完整]}\n", encoding="utf-8")
    annotate(source / "train" / "3.jpg", 900, ("标签/可读", "挡风板/缺失"))
    report = tmp_path / "report.json"
    arguments = (f"data.source.taxonomy={taxonomy}", "--json", str(report))
    assert doctor(source, *arguments) == 0 and doctor(source, *arguments, "--strict") == 1
    (found,) = json.loads(report.read_text(encoding="utf-8"))["findings"]
    assert (found["code"], found["count"]) == ("dropped_outside_hierarchy", 1)
    assert "挡风板/缺失 1" in found["meaning"] and "缺失" in found["examples"][0]["detail"]


def test_the_json_keeps_its_schema(source: Path, tmp_path: Path) -> None:
    break_a_file(source)
    doctor(source, "--json", str(tmp_path / "report.json"), "--html", str(tmp_path / "report.html"))
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    page = (PROJECT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert report["schema"] == "bbu.doctor/1"
    assert report["verdict"] in (*SEVERITIES, "clean") and set(report["counts"]) == set(SEVERITIES)
    for item in report["findings"]:
        assert set(item) == FINDING_KEYS and item["code"] in CODES and item["severity"] in SEVERITIES
        assert all(set(example) == {"where", "photo", "object", "detail"} for example in item["examples"])
    for key in (*report, *report["tokens"], *report["object_sizes"], *report["training"], *report["memory"]):
        assert f"`{key}`" in page, f"docs/doctor.md does not say what {key} is"
    for key in (*report["geometry"]["samples"][0], *FINDING_KEYS, "where", "object", "detail", "level", "descriptions"):
        assert f"`{key}`" in page, f"docs/doctor.md does not say what {key} is"
    assert sum(bar["count"] for bar in report["tokens"]["histogram"]) == report["splits"]["train"]["photos"] == 13
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_every_code_is_on_the_page_of_the_docs() -> None:
    page = (PROJECT / "docs" / "doctor.md").read_text(encoding="utf-8")
    listed = {line.split("`")[1]: line.split("|")[2].strip() for line in page.splitlines() if line.startswith("| `")}
    stated = {code: severity for code, severity in listed.items() if code in CODES}
    assert stated == {code: entry.severity for code, entry in CODES.items()}


def test_a_bad_number_of_samples_is_one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "x.yaml", "--samples", "-1"]) == 2
    assert "--samples" in capsys.readouterr().err
