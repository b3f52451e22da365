"""The report page as a file: whole, self-contained, escaped, within its budget, and equal to the scorer's numbers."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbu import stages
from bbu.cli import main
from bbu.config import load_config
from bbu.drawing.fonts import glyphs_data_uri
from bbu.drawing.pages import script_json
from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.evaluation.page import write_report
from bbu.evaluation.page.photos import LARGE, OVER_BUDGET, SMALL, embed_photos
from bbu.images import open_image
from bbu.jsonl import write_json, write_jsonl
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row
from tests.conftest import MakePhoto, MakeRow
from tests.evaluation.predicted import crowded_rows, perturbed
from tests.test_layers import HEAVY, loaded_by

VOID = {"meta", "input"}
HOSTILE = "螺丝/</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>\"'&amp;{{ 7 * 7 }}"


class Outline(HTMLParser):
    """Tags must close in order; scripts, addresses and ids are kept."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.targets: list[str] = []
        self.scripts: dict[str, str] = {}
        self.identity = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.targets += [values[name] for name in ("src", "href", "data", "action") if name in values]
        self.identity = values.get("id", f"script {len(self.scripts)}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing to close."""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self.identity] = self.scripts.get(self.identity, "") + data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(path: Path) -> Outline:
    outline = Outline()
    outline.feed(path.read_text(encoding="utf-8"))
    assert outline.open == []
    return outline


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read_page(path).scripts["data"])
    return content


def write(
    path: Path, rows: list[Row], predictions: list[PredictionRow], root: Path | str = "nowhere", **options: Any
) -> dict[str, Any]:
    metrics = evaluate(rows, predictions, bootstrap_samples=0, **options)
    write_report(path, rows, predictions, metrics, image_root=root, title="Test")
    return metrics


@pytest.fixture
def rows(make_row: MakeRow) -> list[Row]:
    return [make_row(f"site {n}/照片{n}.jpg", 3, (400, 300), seed=n) for n in range(4)]


# ---------------------------------------------------------------- the file


def test_the_page_needs_nothing_from_outside(rows: list[Row], photo_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "page.html", rows, perturbed(rows), photo_folder)
    outline = read_page(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert outline.targets == []
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"url\((?!\"data:)|@import|\bfetch\(|XMLHttpRequest|innerHTML", html)
    assert "default-src 'none'" in html and 'charset="utf-8"' in html


def test_the_same_input_gives_the_same_bytes(rows: list[Row], photo_folder: Path, tmp_path: Path) -> None:
    predictions = perturbed(rows)
    write(tmp_path / "a.html", rows, predictions, photo_folder)
    write(tmp_path / "b.html", rows[::-1], predictions[::-1], photo_folder)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_hostile_text_comes_back_as_text_and_closes_nothing(
    make_row: MakeRow, photo_folder: Path, tmp_path: Path
) -> None:
    half = "half a pair \ud83d"  # a predicted text may hold one
    row = make_row("a.jpg", [ObjectRow(HOSTILE, "bbox_2d", (1, 2, 30, 40))])
    said = PredictionRow(row.images, row.width, row.height, (PredictedObject((1, 2, 30, 40), half, 0.5, 0.5),))
    failed = PredictionRow((HOSTILE + ".jpg",), error=HOSTILE)
    rows = [row, Row((HOSTILE + ".jpg",), (), 10, 10)]
    metrics = evaluate(rows, [said, failed], bootstrap_samples=0)
    write_report(tmp_path / "p.html", rows, [said, failed], metrics, image_root=photo_folder, title=HOSTILE)
    content = content_of(tmp_path / "p.html")
    assert content["descriptions"] == sorted([half, HOSTILE])
    assert content["photos"][1]["error"] == HOSTILE and content["photos"][1]["name"] == HOSTILE + ".jpg"
    scripts = list(read_page(tmp_path / "p.html").scripts)
    assert scripts == ["script 0", "data", "script 2", "small-0"]  # theme, data, program, photo: as without the words


def judged(verdict: str, images: list[str], **more: Any) -> dict[str, Any]:
    return {"group": "site", "images": images, "verdict": verdict, "reason": "because", "evidence": [], **more}


def test_verdicts_come_with_the_photos_that_made_them_or_with_all_of_their_group(
    rows: list[Row], tmp_path: Path
) -> None:
    names = [row.images[0] for row in rows]
    box = {"bbox_2d": [1, 2, 3, 4], "desc": "a", "score": 0.5}
    evidence = [
        {"rule": "r", "photos": [{"image": names[1], "count": 1, "boxes": [box]}]},
        {"rule": None, "photos": [{"image": names[0], "error": "is damaged"}]},
    ]
    verdicts = [judged("pass", names[2:], truth="fail"), judged("fail", names[:2], evidence=evidence)]
    metrics = evaluate(rows, [], bootstrap_samples=0)
    write_report(tmp_path / "p.html", rows, [], metrics, image_root="nowhere", title="Test", verdicts=verdicts)
    passed, failed = content_of(tmp_path / "p.html")["verdicts"]
    assert passed["truth"] == "fail" and passed["photos"] == [[2, []], [3, []]]
    assert failed["truth"] is None and failed["photos"] == [[0, []], [1, [[1, 2, 3, 4]]]]


def test_a_page_without_verdicts_has_no_place_for_them_and_one_with_a_strange_photo_is_refused(
    rows: list[Row], tmp_path: Path
) -> None:
    metrics = write(tmp_path / "page.html", rows, [])
    assert "verdicts" not in content_of(tmp_path / "page.html")
    assert 'id="verdicts"' not in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"verdict on 'site': its photo 'other.jpg' is not among the annotated photos"):
        strange = [judged("pass", ["other.jpg"])]
        write_report(tmp_path / "x.html", rows, [], metrics, image_root="nowhere", title="Test", verdicts=strange)
    assert not (tmp_path / "x.html").exists()


def test_script_json_reads_back_and_never_holds_a_tag() -> None:
    value = {"text": [HOSTILE, "\u2028", "\ud800", "</SCRIPT >"], "n": 0.1}
    assert json.loads(script_json(value)) == value and "<" not in script_json(value)


def test_a_page_that_cannot_be_written_says_so(rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        write(tmp_path / "page.html", rows, [])


# ---------------------------------------------------------------- its numbers


@pytest.mark.parametrize("seed", range(3))
def test_curves_average_to_the_scorers_figures(seed: int, tmp_path: Path) -> None:
    rows = crowded_rows(8, seed=seed)
    metrics = write(tmp_path / "p.html", rows, perturbed(rows, seed))
    mean = {curve["name"]: np.mean(curve["points"]) for curve in content_of(tmp_path / "p.html")["curves"]}
    # points are rounded to four decimals
    assert mean["class-agnostic"] == pytest.approx(metrics["AP50_agnostic"], abs=1e-4)
    assert mean["full description, macro average"] == pytest.approx(metrics["AP50"], abs=1e-4)
    assert mean["first level, macro average"] == pytest.approx(metrics["AP50_level1"], abs=1e-4)
    assert mean["first 2 levels, macro average"] == pytest.approx(metrics["AP50_level2"], abs=1e-4)
    for desc, row in metrics["per_description"].items():
        assert mean[desc] == pytest.approx(row["AP50"], abs=1e-4)


def test_boxes_and_scores_keep_every_digit(tmp_path: Path) -> None:
    box = (0.1, 1 / 3, 10.7, 20.123456789)
    row = Row(("a.jpg",), (ObjectRow("x", "poly", (0, 0, 9, 0, 9, 9.5)), ObjectRow("x", "bbox_2d", box)), 64, 48)
    said = PredictionRow(row.images, 64, 48, (PredictedObject(box, "x", 0.123456, 0.2),))
    write(tmp_path / "p.html", [row], [said])
    (photo,) = content_of(tmp_path / "p.html")["photos"]
    assert photo["truth"] == [[0, 0, 9, 9.5, 0], [*box, 0]] and photo["found"] == [[*box, 0, 0.123456, [1]]]
    assert photo["outlines"] == {"0": ["poly", 0, 0, 9, 0, 9, 9.5]}


def test_confusions_are_the_scorers(tmp_path: Path) -> None:
    rows = crowded_rows(6)
    metrics = write(tmp_path / "p.html", rows, perturbed(rows))
    content = content_of(tmp_path / "p.html")
    assert sum(count for *_, count in content["confusions"]) == metrics["truth_boxes"]
    assert sum(count for _, said, count in content["confusions"] if said < 0) == metrics["missed_boxes"]
    assert content["calibration"]["score"]["ECE"] == pytest.approx(metrics["ECE"], rel=1e-12)


# ---------------------------------------------------------------- photos


def jpeg_size(photo: str) -> tuple[int, int]:
    return open_image(base64.b64decode(photo)).size


def test_photos_are_shown_as_displayed_in_two_sizes(make_photo: MakePhoto, photo_folder: Path) -> None:
    make_photo("turned.jpg", (2000, 1000), orientation=6)
    make_photo("small.jpg", (200, 100))
    found = embed_photos([Row(("turned.jpg",), (), 1000, 2000), Row(("small.jpg",), (), 200, 100)], photo_folder)
    assert found.problems == {} and list(found.large) == ["turned.jpg"]
    assert jpeg_size(found.small["turned.jpg"]) == (SMALL // 2, SMALL)
    assert jpeg_size(found.large["turned.jpg"]) == (LARGE // 2, LARGE)
    assert jpeg_size(found.small["small.jpg"]) == (200, 100)


def test_photos_fill_the_budget_and_no_more_and_each_one_left_out_has_a_reason(
    make_photo: MakePhoto, photo_folder: Path
) -> None:
    rows = []
    for number in range(12):
        make_photo(f"{number}.jpg", (640, 480), seed=number)
        rows.append(Row((f"{number}.jpg",), (), 640, 480))
    rows[1] = Row(("gone.jpg",), (), 640, 480)
    rows[2] = replace(rows[2], width=641)
    for budget in (30_000, 80_000, 10_000_000):
        found = embed_photos(rows, photo_folder, budget)
        assert sum(map(len, [*found.small.values(), *found.large.values()])) <= budget
        assert found.small.keys() | found.problems.keys() == {row.images[0] for row in rows}
        assert found.small.keys().isdisjoint(found.problems) and found.large.keys() <= found.small.keys()
        assert "no such photo" in found.problems["gone.jpg"] and "641x480" in found.problems["2.jpg"]
        assert (OVER_BUDGET in found.problems.values()) == (budget < 1_000_000)


def test_the_worst_photos_get_the_room(monkeypatch: pytest.MonkeyPatch, rows: list[Row], tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "bbu.evaluation.page.render.embed_photos",
        lambda rows, root: asked.extend(row.images[0] for row in rows) or embed_photos([], root),
    )
    right = [PredictedObject(item.box, item.desc, 0.9, 0.9) for item in rows[2].objects]
    false_positive = PredictedObject((390, 290, 399, 299), "挡风板", 0.9, 0.9)
    below = PredictedObject((0, 0, 9, 9), "挡风板", 0.2, 0.9)
    found = {0: right[:0], 1: [false_positive, false_positive], 2: [*right, below], 3: right[:0]}
    predictions = [PredictionRow(rows[n].images, 400, 300, tuple(said)) for n, said in found.items()]
    write(tmp_path / "p.html", rows, predictions)
    assert asked == [rows[n].images[0] for n in (1, 0, 3, 2)]


# ---------------------------------------------------------------- typeface and command


def test_the_page_brings_the_glyphs_it_needs_and_few_more() -> None:
    pytest.importorskip("fontTools")
    from fontTools.ttLib import TTFont

    words = "螺丝连接点/未拧紧 CPRI"
    kept = base64.b64decode(glyphs_data_uri(words).partition("base64,")[2])
    characters = set(TTFont(io.BytesIO(kept)).getBestCmap())
    assert characters == {ord(glyph) for glyph in words if ord(glyph) > 127}
    assert len(kept) < 8000 and glyphs_data_uri("screw/loose") == ""
    assert glyphs_data_uri(words) == glyphs_data_uri(words)


def test_the_command_writes_the_page_beside_the_table(
    rows: list[Row], photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found, page = tmp_path / "truth.jsonl", tmp_path / "found.jsonl", tmp_path / "out" / "report.html"
    write_jsonl(truth, rows)
    write_jsonl(found, perturbed(rows))
    arguments = ["evaluate", str(truth), str(found), "--report", str(page)]
    assert main([*arguments, "--image-root", str(photo_folder)]) == 0
    assert f"4 of 4 photos shown in {page}" in capsys.readouterr().out
    assert "<title>truth.jsonl: evaluation</title>" in page.read_text(encoding="utf-8")
    assert main(arguments) == 0  # without the photos
    assert f"0 of 4 photos shown in {page}" in capsys.readouterr().out
    assert [photo["problem"] for photo in content_of(page)["photos"]] == [f"{r.images[0]}: no such photo" for r in rows]


def test_a_run_draws_the_page_of_its_evaluation_split(
    rows: list[Row], photo_folder: Path, tmp_path: Path, project: Path
) -> None:
    run = tmp_path / "run"
    config = load_config(str(project / "configs" / "demo.yaml"), [f"output_dir={run}", "evaluation.pictures=1"])
    predictions = perturbed(rows)
    write_jsonl(tmp_path / "rows" / "test.jsonl", rows)
    write_jsonl(run / "predictions.jsonl", predictions)
    write_json(run / "metrics.json", evaluate(rows, predictions, score_threshold=0.2, bootstrap_samples=20))
    assert len(stages.draw(stages.Run(config, stages.PreparedData(tmp_path / "rows", str(photo_folder))))) == 1
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "<title>demo, test split: evaluation</title>" in html and content_of(run / "report.html")["threshold"] == 0.2
    assert html.count('id="small-') == len(rows)


def test_the_page_needs_no_torch() -> None:
    assert loaded_by("import bbu.evaluation.page").isdisjoint({*HEAVY, "fontTools", "jinja2"})
