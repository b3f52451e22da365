"""Recall at a precision, misses at an FPPI, duplicates and confusions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.evaluation import evaluate
from bbu.evaluation.inspection import sweep
from tests.evaluation.photo_sets import cell, guess, photo, photo_sets

scored = st.lists(st.tuples(st.integers(0, 5).map(lambda n: n / 5), st.booleans()), max_size=12)
goals = st.integers(0, 10).map(lambda n: n / 10)


def let_through(predictions, threshold):
    """Right and wrong predictions at or above a threshold."""
    shown = [right for score, right in predictions if score >= threshold]
    return sum(shown), len(shown) - sum(shown)


@given(scored, goals, st.integers(0, 3))
def test_every_goal_is_met_by_the_best_threshold_that_meets_it(predictions, goal, missed):
    annotated = sum(right for _, right in predictions) + missed
    found = sweep(np.array([s for s, _ in predictions]), np.array([r for _, r in predictions], dtype=bool), annotated)
    points = {t: let_through(predictions, t) for t in {score for score, _ in predictions}}

    def threshold(index):
        return None if index is None else found.thresholds_Th[index]

    precise = [t for t, (right, wrong) in points.items() if right >= goal * (right + wrong) - 1e-9]
    assert threshold(found.at_precision(goal)) == min(precise, default=None)
    complete = [t for t, (right, _) in points.items() if annotated and right >= goal * annotated - 1e-9]
    assert threshold(found.at_recall(goal)) == max(complete, default=None)
    few = [t for t, (_, wrong) in points.items() if wrong <= 10 * goal]
    assert threshold(found.at_false_positives(10 * goal)) == min(few, default=None)
    best = max((points[t][0] for t in few), default=0)
    assert found.miss_rate(10 * goal) == (pytest.approx(1 - best / annotated) if annotated else None)


def test_recall_at_the_precision_asked_for():
    truth = [photo("a.jpg", *((cell(n), "label") for n in range(4)))]
    boxes = [(cell(0), 0.9), (cell(1), 0.8), (cell(8), 0.7), (cell(2), 0.6), (cell(9), 0.5)]
    found = [guess("a.jpg", *((box, "label", score) for box, score in boxes))]

    def at(precision):
        row = evaluate(truth, found, precision=precision, bootstrap_samples=0)["per_description"]["label"]
        return row["threshold_at_precision"], row["recall_at_precision"]

    assert at(1) == (0.8, 0.5)
    assert at(0.75) == (0.6, 0.75)  # three of four: past the false positive at 0.7
    assert at(0.6) == (0.5, 0.75)
    assert at(0) == (0.5, 0.75)


def test_a_threshold_cannot_tell_equal_scores_apart():
    truth = [photo("a.jpg", (cell(0), "label"), (cell(1), "label"))]
    found = [guess("a.jpg", (cell(0), "label", 0.5), (cell(8), "label", 0.5), (cell(1), "label", 0.5))]
    metrics = evaluate(truth, found, fppi=[0, 1], bootstrap_samples=0)
    assert (metrics["miss_rate_at_0"], metrics["miss_rate_at_1"]) == (1, 0)
    assert metrics["per_description"]["label"]["recall_at_precision"] is None


def test_miss_rates_count_false_positives_per_image_over_all_descriptions_and_for_each():
    truth = [photo(f"{n}.jpg", (cell(0), "label"), (cell(1), "screw")) for n in range(10)]
    found = [
        guess("0.jpg", (cell(0), "noise", 0.95), (cell(0), "label", 0.9, 0.1)),  # one false positive: noise
        *(guess(f"{n}.jpg", (cell(0), "label", 0.8)) for n in range(1, 10)),
        # the description of the other object: two false positives, though the boxes are right
    ]
    found[1] = guess("1.jpg", (cell(0), "label", 0.8), (cell(1), "label", 0.7), (cell(0), "screw", 0.6))
    metrics = evaluate(truth, found, fppi=[0.1, 0], bootstrap_samples=0)
    assert metrics["miss_rate_at_0"] == 1  # the highest-scoring one is wrong
    assert metrics["miss_rate_at_0.1"] == pytest.approx(1 - 10 / 20)
    assert metrics["miss_rate_agnostic_at_0"] == pytest.approx(1 - 11 / 20)
    label, screw = (metrics["per_description"][desc] for desc in ("label", "screw"))
    assert (label["miss_rate_at_0"], label["miss_rate_at_0.1"]) == (0, 0)  # those with other captions are not its own
    assert (screw["miss_rate_at_0"], screw["miss_rate_at_0.1"]) == (1, 1)


def test_second_boxes_on_an_object_are_duplicates_whatever_their_captions():
    truth = [photo("a.jpg", (cell(0), "label"), (cell(1), "label")), photo("b.jpg")]
    found = [
        guess(
            "a.jpg",
            (cell(0), "label", 0.9), (cell(0), "label", 0.8), (cell(0), "screw", 0.7),  # two too many
            (cell(0), "label", 0.1),  # not said aloud
            (cell(8), "label", 0.6), (cell(8), "label", 0.5),  # on no object
            (cell(1), "screw", 0.4),  # wrong caption, but the first here
        ),
    ]  # fmt: skip
    metrics = evaluate(truth, found, bootstrap_samples=0)
    assert (metrics["duplicates"], metrics["duplicates_per_image"]) == (2, 1.0)


def test_an_unsure_box_under_the_threshold_makes_no_duplicate_of_a_sure_one():
    truth = [photo("a.jpg", (cell(0), "label"))]
    found = [guess("a.jpg", (cell(0), "label", 0.1, 0.9), (cell(0), "label", 0.8, 0.2))]
    assert evaluate(truth, found, bootstrap_samples=0)["duplicates"] == 0


def test_confusions_say_what_was_called_what():
    truth = [photo("a.jpg", (cell(0), "a"), (cell(1), "a"), (cell(2), "a"), (cell(3), "b"))]
    found = [guess("a.jpg", (cell(0), "a", 0.9), (cell(1), "b", 0.9), (cell(3), "noise", 0.9))]
    assert evaluate(truth, found, bootstrap_samples=0)["confusions"] == [
        {"annotated": "a", "predicted": None, "count": 1},
        {"annotated": "a", "predicted": "a", "count": 1},
        {"annotated": "a", "predicted": "b", "count": 1},
        {"annotated": "b", "predicted": "noise", "count": 1},
    ]


@given(photo_sets)
def test_inspection_agrees_with_the_other_figures(photo_set):
    metrics = evaluate(*photo_set, score_threshold=0.5, fppi=[1e5], bootstrap_samples=0)
    correct = sum(row["count"] for row in metrics["confusions"] if row["predicted"] == row["annotated"])
    missed = sum(row["count"] for row in metrics["confusions"] if row["predicted"] is None)
    assert correct == sum(row["correct"] for row in metrics["per_description"].values())
    assert missed == metrics["missed_boxes"]
    assert metrics["duplicates"] <= metrics["predictions_at_threshold"]
    if metrics["truth_boxes"]:  # with any number of false positives only what no box reaches is missed
        assert metrics["miss_rate_agnostic_at_100000"] == pytest.approx(missed / metrics["truth_boxes"])
