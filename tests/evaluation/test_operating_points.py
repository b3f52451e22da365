"""Thresholds that reach what is asked for, description by description."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.evaluation.operating_points import operating_points, operating_table
from bbu.records import PredictionRow
from tests.evaluation.photo_sets import DESCRIPTIONS, cell, guess, photo, photo_sets, random_rows


def cut(found, points):
    """Predictions at or above the threshold of their description, as predict keeps them."""
    default = points["default"]["threshold"]
    kept = []
    for row in found:
        items = [
            i for i in row.predictions if i.score >= points["points"].get(i.desc, {"threshold": default})["threshold"]
        ]
        kept.append(PredictionRow(row.images, row.width, row.height, tuple(items)))
    return kept


def tally(truth, found, desc):
    """Right, wrong and annotated of one description, from the ordinary evaluation of what was kept."""
    only = [
        PredictionRow(r.images, r.width, r.height, tuple(i for i in r.predictions if i.desc == desc)) for r in found
    ]
    metrics = evaluate(truth, only, score_threshold=0, bootstrap_samples=0)
    wrong, said = metrics["false_positives"], metrics["predictions_at_threshold"]
    return said - wrong, wrong, sum(item.desc == desc for row in truth for item in row.objects)


@pytest.mark.parametrize(("goal", "value"), [("precision", 0.8), ("recall", 0.6), ("fppi", 0.5)])
@pytest.mark.parametrize("minimum", [1, 60, 10_000])
def test_the_figures_of_each_point_are_those_of_the_predictions_it_keeps(goal, value, minimum):
    truth, found = random_rows(1, photos=60)
    points = operating_points(truth, found, goal, value, minimum=minimum)
    kept = cut(found, points)
    assert sorted(points["points"]) == sorted(DESCRIPTIONS)
    for desc, point in points["points"].items():
        right, wrong, annotated = tally(truth, kept, desc)
        assert (point["truth"], point["predicted"]) == (annotated, right + wrong)
        assert point["recall"] == pytest.approx(right / annotated)
        assert point["fppi"] == pytest.approx(wrong / 60)
        assert point["precision"] == (pytest.approx(right / (right + wrong)) if right + wrong else None)
        if point["reached"] or goal != "precision":
            assert point["pooled"] == (annotated < minimum)
        if point["pooled"]:
            assert point["threshold"] == points["default"]["threshold"]


@given(photo_sets, st.sampled_from(["precision", "recall", "fppi"]), st.integers(0, 4).map(lambda n: n / 4))
def test_no_other_threshold_would_be_better(photo_set, goal, value):
    truth, found = photo_set
    try:
        points = operating_points(truth, found, goal, value, minimum=1)
    except UserError as error:
        assert "nothing to choose on" in str(error)
        return
    share = value / (len(points["points"]) + 1)  # one is the pool's
    for desc, point in points["points"].items():
        scores = {item.score for row in found for item in row.predictions if item.desc == desc}
        good = {}
        for score in scores:
            alone = {"points": {desc: {"threshold": score}}, "default": {"threshold": 2}}
            right, wrong, annotated = tally(truth, cut(found, alone), desc)
            good[score] = {
                "precision": right >= value * (right + wrong) - 1e-9,
                "recall": right >= value * annotated - 1e-9,
                "fppi": wrong <= share * len(truth) + 1e-9,
            }[goal]
        best = [score for score, holds in good.items() if holds]
        if best:
            assert point["reached"] and point["threshold"] == (max(best) if goal == "recall" else min(best))
        elif scores and goal != "precision":
            assert not point["reached"] and not point["pooled"] and point["threshold"] in scores
        elif scores:
            assert point["pooled"] and not point["reached"]
        else:
            assert point["pooled"] and point["predicted"] == 0


@pytest.mark.parametrize("minimum", [1, 60, 10_000])
@pytest.mark.parametrize("fppi", [0.2, 1.0, 3.0])
def test_false_positives_of_all_descriptions_and_unknown_ones_together_keep_to_the_goal(fppi, minimum):
    truth, found = random_rows(2, photos=80)
    assert any(item.desc == "noise" for row in found for item in row.predictions)
    points = operating_points(truth, found, "fppi", fppi, minimum=minimum)
    kept = evaluate(truth, cut(found, points), score_threshold=0, bootstrap_samples=0)
    assert kept["false_positives_per_image"] <= fppi + 1e-9
    assert all(point["reached"] for point in points["points"].values())


def rare_and_common():
    """A common description that needs a high threshold, and a rare one in the same photos."""
    truth, found = [], []
    for n in range(20):
        rare = [(cell(1), "rare")] if n < 3 else []
        truth.append(photo(f"{n:02}.jpg", (cell(0), "common"), *rare))
        found.append(guess(f"{n:02}.jpg", (cell(0), "common", 0.9), (cell(5), "common", 0.5), (cell(1), "rare", 0.7)))
    return truth, found


def test_few_examples_share_the_threshold_of_the_pool():
    points = operating_points(*rare_and_common(), "precision", 0.95, minimum=10)
    assert points["points"]["common"]["threshold"] == 0.9 and not points["points"]["common"]["pooled"]
    # The pool, widened to all predictions because it has 3 boxes: above 0.7 only right ones.
    assert points["default"]["threshold"] == points["points"]["rare"]["threshold"] == 0.9
    assert points["default"]["truth"] == 23
    assert points["points"]["rare"] == {
        "threshold": 0.9, "pooled": True, "reached": False, "truth": 3, "predicted": 0, "precision": None,
        "recall": 0.0, "fppi": 0.0,
    }  # fmt: skip


def test_a_pool_with_enough_examples_is_not_widened():
    truth, found = rare_and_common()
    other = [
        (photo(f"x{n}.jpg", (cell(0), f"odd{n}")), guess(f"x{n}.jpg", (cell(0), f"odd{n}", 0.3))) for n in range(9)
    ]
    points = operating_points(truth + [t for t, _ in other], found + [f for _, f in other], "recall", 1.0, minimum=10)
    assert points["default"]["truth"] == 12  # 3 rare, 9 odd
    assert points["points"]["odd4"]["threshold"] == points["default"]["threshold"] == 0.3


def test_a_precision_out_of_reach_takes_the_threshold_of_the_pool():
    """A description that is hardly ever right must not flood the photos at the lowest of scores."""
    truth, found = rare_and_common()
    truth = [photo(row.images[0], *((item.box, item.desc) for item in row.objects), (cell(7), "hard")) for row in truth]
    found = [
        guess(row.images[0], *((i.box, i.desc, i.score) for i in row.predictions), (cell(6), "hard", 0.1))
        for row in found
    ]
    points = operating_points(truth, found, "precision", 0.95)
    assert points["points"]["hard"]["threshold"] == points["default"]["threshold"] == 0.9
    assert points["points"]["hard"]["pooled"] and not points["points"]["hard"]["reached"]


def test_where_no_threshold_reaches_the_goal_the_nearest_is_taken_and_said_so():
    truth = [photo(f"{n}.jpg", (cell(0), "a")) for n in range(4)]
    found = [
        guess("0.jpg", (cell(5), "a", 0.9)), guess("1.jpg", (cell(0), "a", 0.8)), guess("2.jpg", (cell(0), "a", 0.7)),
        guess("3.jpg", (cell(5), "a", 0.6)),
    ]  # fmt: skip

    def chosen(goal, value):
        point = operating_points(truth, found, goal, value, minimum=1)["points"]["a"]
        return point["threshold"], point["reached"]

    assert chosen("precision", 0.9) == (0.7, False)  # two of three
    assert chosen("recall", 0.9) == (0.6, False)
    assert chosen("fppi", 0.0) == (0.9, False)
    assert chosen("recall", 0.5) == (0.7, True)


def test_the_order_of_rows_changes_nothing_and_the_file_is_json():
    truth, found = random_rows(3, photos=15)
    points = operating_points(truth, found, "recall", 0.5)
    assert operating_points(truth[::-1], found[::-1], "recall", 0.5) == points
    assert json.loads(json.dumps(points, allow_nan=False)) == points
    assert points["goal"] == {"recall": 0.5} and points["photos"] == 15
    table = operating_table(points)
    assert all(desc in table for desc in (*DESCRIPTIONS, "(all others)"))


@pytest.mark.parametrize(
    ("goal", "value", "minimum"),
    [
        ("precision", 1.5, 1),
        ("recall", -1, 1),
        ("fppi", -1, 1),
        ("fppi", float("inf"), 1),
        ("recall", 0.5, 0),
        ("speed", 1, 1),
    ],
)
def test_goals_out_of_range_are_errors(goal, value, minimum):
    with pytest.raises(UserError, match=r"precision|recall|fppi|minimum|speed"):
        operating_points(*random_rows(4, photos=3), goal, value, minimum=minimum)


@pytest.mark.parametrize(("truth", "found"), [([], []), ([photo("a.jpg", (cell(0), "a"))], []), ([photo("a.jpg")], [])])
def test_nothing_to_choose_on_is_an_error(truth, found):
    with pytest.raises(UserError, match="nothing to choose on"):
        operating_points(truth, found, "recall", 0.9)
