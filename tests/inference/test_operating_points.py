"""Operating points: a threshold for each description."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bbu.errors import UserError
from bbu.evaluation.operating_points import operating_points
from bbu.inference.operating_points import OperatingPoints
from bbu.jsonl import write_json
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row


def found(desc: str, score: float, x: float = 0) -> PredictedObject:
    return PredictedObject((x, 0, x + 10, 10), desc, score, 1.0)


def test_each_description_has_its_threshold_and_the_others_the_default(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text('{"points": {"a": {"threshold": 0.6}}, "default": {"threshold": 0.3, "recall": null}}', "utf-8")
    items = [found("a", 0.6), found("a", 0.59), found("b", 0.3), found("b", 0.29)]
    assert OperatingPoints.load(path).passed(items) == (items[0], items[2])


def test_the_output_of_bbu_thresholds_is_read(tmp_path: Path) -> None:
    """At the precision asked for on the set it was chosen on."""
    rows = [Row((f"{n}.jpg",), (ObjectRow("a", "bbox_2d", (0, 0, 10, 10)),), 50, 50) for n in range(20)]
    predictions = [
        PredictionRow(row.images, 50, 50, (found("a", 0.5 + n / 100), found("a", 0.02 * n, 30)))
        for n, row in enumerate(rows)
    ]
    write_json(tmp_path / "points.json", operating_points(rows, predictions, "precision", 1.0))
    points = OperatingPoints.load(tmp_path / "points.json")
    kept = [points.passed(row.predictions) for row in predictions]
    assert all(item.box[0] == 0 for items in kept for item in items) and sum(map(len, kept)) == 20


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("[]", "needs 'points' and 'default'"),
        ({"points": {}}, "needs 'points' and 'default'"),
        ({"points": [], "default": {"threshold": 0}}, "needs 'points'"),
        ({"points": {"a": {}}, "default": {"threshold": 0}}, r"points\['a'\].threshold must be a number .* is None"),
        ({"points": {"a": 0.5}, "default": {"threshold": 0}}, r"points\['a'\].threshold"),
        ({"points": {}, "default": {"threshold": 1.5}}, r"default.threshold .* is 1.5"),
        ({"points": {}, "default": {"threshold": True}}, r"default.threshold"),
        ('{"points": {}, "default": {"threshold": NaN}}', "NaN is not valid JSON"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_malformed_file_is_one_line(value: object, why: str, tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match=why):
        OperatingPoints.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"points\.json: cannot be read"):
        OperatingPoints.load(tmp_path / "points.json")
