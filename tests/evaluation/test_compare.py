"""What predictions B do better or worse than A."""

from __future__ import annotations

import json
import random

import pytest

from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.evaluation.compare import compare, comparison_table
from tests.evaluation.photo_sets import cell, guess, photo, random_rows


def test_predictions_do_not_differ_from_themselves():
    truth, found = random_rows(1, photos=20)
    comparison = compare(truth, found, found, bootstrap_samples=50)
    for name, row in comparison["figures"].items():
        assert row["difference"] == 0 and row["interval"] == [0, 0], name
    assert comparison["photos"] == [] and comparison["lost"] == 0


def test_changing_sides_changes_signs():
    truth, found_a = random_rows(2, photos=25)
    found_b = [row for row in found_a if int(row.images[0][:4]) % 3]
    there, back = (
        compare(truth, found_a, found_b, bootstrap_samples=60),
        compare(truth, found_b, found_a, bootstrap_samples=60),
    )
    for name, row in there["figures"].items():
        assert back["figures"][name]["difference"] == pytest.approx(-row["difference"])
        assert back["figures"][name]["interval"] == pytest.approx([-value for value in row["interval"][::-1]]), name
    assert (there["found"], there["lost"]) == (back["lost"], back["found"]) and there["lost"] > 0
    assert (there["mended"], there["broken"]) == (back["broken"], back["mended"])


def test_figures_are_those_of_each_evaluation():
    truth, found_a = random_rows(3, photos=10)
    found_b = found_a[:5]
    figures = compare(truth, found_a, found_b, bootstrap_samples=0)["figures"]
    for side, found in (("a", found_a), ("b", found_b)):
        metrics = evaluate(truth, found, bootstrap_samples=0)
        assert {name: row[side] for name, row in figures.items()} == pytest.approx({k: metrics[k] for k in figures})
    assert {row["interval"] for row in figures.values()} == {None}


def test_pairing_makes_a_small_steady_gain_visible():
    """B names one object more in every photo; how hard photos are differs far more than that."""
    draw = random.Random(0)
    truth, found_a, found_b = [], [], []
    for number in range(80):
        name, right = f"{number:02}.jpg", draw.choice((1, 8))
        truth.append(photo(name, *((cell(n), "a") for n in range(9))))
        found_a.append(guess(name, *((cell(n), "a" if n < right else "b", 0.9) for n in range(9))))
        found_b.append(guess(name, *((cell(n), "a" if n <= right else "b", 0.9) for n in range(9))))
    low, high = compare(truth, found_a, found_b, bootstrap_samples=300)["figures"]["description_accuracy"]["interval"]
    assert low == pytest.approx(1 / 9) == pytest.approx(high)
    alone = evaluate(truth, found_a, bootstrap_samples=300)["intervals"]["description_accuracy"]
    assert alone[1] - alone[0] > 1 / 9


def test_photos_that_changed_come_worst_first():
    objects = [(cell(n), "a") for n in range(3)]
    right = [(cell(n), "a", 0.9) for n in range(3)]
    wrong = [(cell(n), "b", 0.9) for n in range(3)]
    truth = [photo(f"{name}.jpg", *objects) for name in ("better", "broken", "lost", "mixed", "same")]
    found_a = [
        guess("better.jpg", right[0], wrong[1]), guess("broken.jpg", *right), guess("lost.jpg", *right),
        guess("mixed.jpg", right[0], wrong[1]), guess("same.jpg", *right),
    ]  # fmt: skip
    found_b = [
        guess("better.jpg", *right), guess("broken.jpg", *right[:2], wrong[2]), guess("lost.jpg", right[0]),
        guess("mixed.jpg", wrong[0], right[1]), guess("same.jpg", *right),
    ]  # fmt: skip
    comparison = compare(truth, found_a, found_b, bootstrap_samples=10)
    assert comparison["photos"] == [
        {"photo": "lost.jpg", "found": 0, "lost": 2, "mended": 0, "broken": 0},
        {"photo": "broken.jpg", "found": 0, "lost": 0, "mended": 0, "broken": 1},
        {"photo": "mixed.jpg", "found": 0, "lost": 0, "mended": 1, "broken": 1},
        {"photo": "better.jpg", "found": 1, "lost": 0, "mended": 1, "broken": 0},
    ]
    assert [comparison[kind] for kind in ("found", "lost", "mended", "broken")] == [1, 2, 2, 2]
    table = comparison_table(comparison)
    assert "1 found, 2 lost, 2 mended, 2 broken" in table
    assert table.index("lost.jpg") < table.index("better.jpg") and "same.jpg" not in table


def test_only_what_is_said_aloud_counts_as_found():
    truth = [photo("a.jpg", (cell(0), "a"))]
    quiet, loud = ([guess("a.jpg", (cell(0), "a", score))] for score in (0.2, 0.4))
    assert compare(truth, quiet, loud)["found"] == 1
    assert compare(truth, quiet, loud, score_threshold=0.1)["found"] == 0


def test_the_order_of_rows_changes_nothing():
    truth, found_a = random_rows(4, photos=12)
    found_b = found_a[3:]
    expected = compare(truth, found_a, found_b, bootstrap_samples=20)
    assert compare(truth[::-1], found_a[::-1], found_b[::-1], bootstrap_samples=20) == expected
    json.dumps(expected, allow_nan=False)


@pytest.mark.parametrize("photos", [0, 1])
def test_too_few_photos_have_no_intervals(photos):
    truth, found = random_rows(5, photos=photos)
    comparison = compare(truth, found, [], bootstrap_samples=10)
    assert {row["interval"] for row in comparison["figures"].values()} == {None}
    assert comparison_table(comparison)


def test_predictions_of_other_photos_are_an_error():
    with pytest.raises(UserError, match=r"other\.jpg"):
        compare([photo("a.jpg")], [], [guess("other.jpg")])
