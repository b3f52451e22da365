"""The terminal table and the metrics file."""

import json
import unicodedata

import pytest

from bbu.evaluation import evaluate, summary_table
from bbu.jsonl import write_json
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row


def cells(line):
    return sum(2 if unicodedata.east_asian_width(glyph) in "WF" else 1 for glyph in line)


def metrics_of(*descs):
    """One photo with an object for every description, all but the last found."""
    boxes = [(100.0 * n, 0.0, 100.0 * n + 50, 50.0) for n in range(len(descs))]
    objects = tuple(ObjectRow(desc, "bbox_2d", box) for box, desc in zip(boxes, descs, strict=True))
    found = tuple(PredictedObject(p.box, p.desc, 0.9, 0.9) for p in objects[:-1])
    return evaluate([Row(("a.jpg",), objects, 2000, 100)], [PredictionRow(("a.jpg",), 2000, 100, found)])


def description_lines(table):
    return table.partition("\n\n")[2].splitlines()


def test_columns_align_under_full_width_glyphs():
    lines = description_lines(summary_table(metrics_of("螺丝连接点/BBU安装螺丝/连接正确", "label", "标签贴纸")))
    assert len({cells(line) for line in lines}) == 1
    assert lines[0].split() == ["description", "truth", "matched", "accuracy", "AP50", "R@P0.9"]


def test_descriptions_come_most_frequent_first_with_undefined_values_as_dashes():
    lines = description_lines(summary_table(metrics_of("b", "a", "a", "c")))
    assert [line.split() for line in lines[1:]] == [
        ["a", "2", "2", "1.000", "1.000", "1.000"],
        ["b", "1", "1", "1.000", "1.000", "1.000"],
        ["c", "1", "0", "-", "0.000", "-"],
    ]


def test_intervals_stand_beside_their_figures():
    metrics = metrics_of("a", "b")
    metrics["intervals"] = {"AP50": [0.25, 0.75], "AP": None}
    lines = {line.split("  ")[0]: line for line in summary_table(metrics).splitlines()}
    assert lines["AP50"].split()[1:] == ["0.500", "0.250", "to", "0.750"]
    assert lines["AP by description"].split()[3:] == ["0.500"]


def test_every_fppi_has_a_line():
    row = Row(("a.jpg",), (), 10, 10)
    table = summary_table(evaluate([row], [], fppi=[1, 0.05]))
    assert "miss rate at 1 FPPI" in table and "miss rate at 0.05 FPPI" in table


def test_the_most_frequent_wrong_captions_are_named():
    metrics = metrics_of("a", "b")
    metrics["confusions"] = [
        {"annotated": "a", "predicted": "a", "count": 9},
        {"annotated": "b", "predicted": None, "count": 8},
        {"annotated": "a", "predicted": "b\x1b", "count": 7},
    ]
    assert [line.split() for line in summary_table(metrics).splitlines()[-2:]] == [
        ["annotated", "predicted", "count"],
        ["a", "b?", "7"],
    ]


def test_headlines_show_the_levels_of_the_path():
    table = summary_table(metrics_of("a/x", "a/y"))
    assert "AP50, levels up to 1" in table
    assert "caption accuracy, levels up to 2" in table
    assert "levels" not in summary_table(metrics_of("a", "b"))


def test_an_empty_set_still_has_headlines():
    table = summary_table(evaluate([], []))
    assert "AP by description" in table
    assert "truth" not in table


def test_descriptions_cannot_command_the_terminal_nor_push_the_numbers_away():
    lines = description_lines(summary_table(metrics_of("red\x1b[31m\n", "备注" * 100)))
    assert lines[2].startswith("red?[31m?") or lines[1].startswith("red?[31m?")
    assert max(cells(line) for line in lines) < 100


def test_the_file_gives_back_the_same_metrics(tmp_path):
    metrics = metrics_of("螺丝连接点/连接正确", "标签贴纸")
    path = tmp_path / "new folder" / "metrics.json"
    write_json(path, metrics)
    text = path.read_text(encoding="utf-8")
    assert "标签贴纸" in text
    assert json.loads(text) == metrics
    assert summary_table(json.loads(text)) == summary_table(metrics)
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.json"]


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"AP": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"AP": float("nan")})
    assert json.loads(path.read_text()) == {"AP": 0.5}
