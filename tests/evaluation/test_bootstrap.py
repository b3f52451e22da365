"""Weights stand for copies of photos, and intervals for the spread over other photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bbu.evaluation import bootstrap, evaluate
from bbu.evaluation.bootstrap import Headlines, interval, intervals, resample
from bbu.evaluation.coco import IOU_THRESHOLDS
from bbu.evaluation.matching import Matched, any_object, flatten, rank
from bbu.evaluation.pairing import pair
from bbu.records import PredictionRow, Row
from tests.evaluation.photo_sets import cell, guess, photo, random_rows

FPPI = (1.0, 0.1, 0.0)


def headlines_of(truth: Sequence[Row], found: Sequence[PredictionRow]) -> Headlines:
    photo_set = flatten(pair(truth, found).photos)
    described = Matched.at(rank(photo_set, str, "score", 100), IOU_THRESHOLDS)
    return Headlines(described, Matched.at(rank(photo_set, any_object, "objectness", 100), IOU_THRESHOLDS), FPPI)


def expected(truth, found, names):
    """The figures as the ordinary evaluation has them, with objectness judged as a class-agnostic score."""
    metrics = evaluate(truth, found, fppi=FPPI, bootstrap_samples=0)
    metrics |= {f"{name}_objectness": metrics["calibration"]["objectness"][name] for name in ("ECE", "Brier")}
    metrics |= {name: metrics["calibration"]["score"][name] for name in ("ECE", "Brier")}
    return {name: metrics[name] for name in names}


def test_with_every_photo_once_the_figures_are_those_of_the_evaluation():
    truth, found = random_rows(1, photos=60)
    figures = headlines_of(truth, found).point()
    assert {"AP", "AP50", "AP_agnostic", "AP50_agnostic", "description_macro_accuracy"} < set(figures)
    assert figures == pytest.approx(expected(truth, found, figures), abs=1e-9)
    assert 0.1 < figures["AP"] < figures["AP50"] < 0.9


@pytest.mark.parametrize("seed", range(6))
def test_a_photo_that_counts_three_times_is_three_photos(seed):
    truth, found = random_rows(seed, photos=25)
    counts = np.bincount(np.random.default_rng(seed).integers(25, size=25), minlength=25)
    assert counts.min() == 0 and counts.max() > 1
    weighted = headlines_of(truth, found)(counts[None].astype(float))
    copied = expected(copies(truth, counts), copies(found, counts), weighted)
    assert {name: values[0] for name, values in weighted.items()} == pytest.approx(copied, abs=1e-9)


def copies(rows, counts):
    return [
        replace(row, images=(f"{row.images[0]}-{copy}",))
        for row, count in zip(rows, counts, strict=True)
        for copy in range(count)
    ]


def test_miss_rates_hold_where_false_positives_are_far_down_the_list():
    """All false positives are in one photo: a bootstrap sample without it lets through everything."""
    truth = [photo(f"{n}.jpg", (cell(0), "a")) for n in range(10)]
    found = [guess(f"{n}.jpg", (cell(0), "a", 0.5 - n / 100)) for n in range(10)]
    found[0] = guess("0.jpg", *((cell(k), "a", 0.9 - k / 100) for k in range(1, 16)))
    figures = headlines_of(truth, found)
    weights = np.ones(10)
    weights[0], weights[1] = 0, 2
    assert figures(np.ones((1, 10)))["miss_rate_at_1"][0] == 1  # 15 false positives stand before the first right one
    assert figures(weights[None])["miss_rate_at_1"][0] == 0
    assert figures(np.array([np.ones(10), weights]))["miss_rate_at_1"].tolist() == [1, 0]


def test_the_interval_of_a_share_is_that_of_the_binomial():
    """One object a photo, always found: accuracy is a mean of independent draws, whose spread is known."""
    count, share = 400, 0.8
    truth = [photo(f"{n:03}.jpg", (cell(0), "a")) for n in range(count)]
    found = [guess(f"{n:03}.jpg", (cell(0), "a" if n % 5 else "b", 0.5)) for n in range(count)]
    low, high = intervals(headlines_of(truth, found), 2000, seed=0)["description_accuracy"]
    half = 1.96 * math.sqrt(share * (1 - share) / count)
    assert (low, high) == (pytest.approx(share - half, abs=0.005), pytest.approx(share + half, abs=0.005))


def test_intervals_narrow_as_photos_are_added():
    widths = []
    for photos in (20, 320):
        low, high = intervals(headlines_of(*random_rows(3, photos)), 300, seed=0)["AP50"]
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_the_seed_alone_decides_what_is_drawn(monkeypatch):
    figures = headlines_of(*random_rows(4, photos=30))
    first = intervals(figures, 50, seed=1)
    assert intervals(figures, 50, seed=1) == first != intervals(figures, 50, seed=2)
    monkeypatch.setattr(bootstrap, "CHUNK", 1)  # one bootstrap sample at a time
    assert intervals(figures, 50, seed=1) == {name: pytest.approx(value) for name, value in first.items()}


def test_two_sets_of_predictions_see_the_same_photos():
    truth, found = random_rows(5, photos=30)
    one, other = resample([headlines_of(truth, found)] * 2, 20, seed=0)
    assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def test_undefined_figures_have_no_interval():
    assert interval(np.array([np.nan, np.nan])) is None
    assert interval(np.array([np.nan, 0.5])) == [0.5, 0.5]
    nothing = evaluate([photo("a.jpg"), photo("b.jpg")], [])
    assert nothing["AP"] is None and set(nothing["intervals"].values()) == {None}


def test_one_photo_says_nothing_about_others():
    metrics = evaluate([photo("a.jpg", (cell(0), "a"))], [guess("a.jpg", (cell(0), "a", 0.9))])
    assert metrics["AP"] == pytest.approx(1) and set(metrics["intervals"].values()) == {None}
    assert set(evaluate([], [])["intervals"].values()) == {None}


def test_without_bootstrap_samples_there_are_no_intervals():
    assert evaluate(*random_rows(6, photos=3), bootstrap_samples=0)["intervals"] == {}
