"""Dense-captioning mAP: every step of the protocol worked by hand, and the whole against plain loops on real boxes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.cli import main
from bbu.errors import UserError
from bbu.evaluation import dense_captioning
from bbu.evaluation.dense_captioning import (
    IOU_THRESHOLDS,
    METEOR_THRESHOLDS,
    average_precision,
    dense_metrics,
    dense_table,
    merge_boxes,
)
from bbu.evaluation.pairing import pair
from bbu.evaluation.phrase_similarity import CaptionPair, approximate_meteor
from bbu.jsonl import write_jsonl
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row
from data_conversion.base import RawObject, SourceImage
from data_conversion.formats.visual_genome import iter_records

pytest.importorskip("snowballstemmer", reason="snowballstemmer is not installed")

LEFT, RIGHT = (0, 0, 100, 100), (500, 0, 600, 100)
Item = tuple[tuple[float, ...], str]


def photo(name: str, *objects: Item) -> Row:
    items = tuple(ObjectRow(desc, "bbox_2d", tuple(map(float, box))) for box, desc in objects)
    return Row((name,), items, 1000, 800)


def guess(name: str, *objects: tuple[tuple[float, ...], str, float]) -> PredictionRow:
    found = tuple(PredictedObject(tuple(map(float, box)), desc, score, score) for box, desc, score in objects)
    return PredictionRow((name,), 1000, 800, found)


def below(height: float, desc: str = "a red dog") -> Item:
    """A box over the top of LEFT: its IoU with LEFT is height / 100."""
    return (0, 0, 100, height), desc


# ---------------------------------------------------------------- average precision


def test_average_precision_is_the_mean_of_the_best_precision_at_a_hundred_recalls() -> None:
    # Two regions; right, wrong, right. Recall 0.5 at precision 1: points 0.00 … 0.50, 51 of them.
    # Recall 1 at precision 2/3: points 0.51 … 0.99, 49 of them.
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx((51 + 49 * 2 / 3) / 100)


def test_average_precision_of_nothing() -> None:
    nothing = np.array([], dtype=bool)
    assert average_precision(nothing, 3) == 0
    assert average_precision(nothing, 0) is None
    assert average_precision(np.array([False, False]), 3) == 0


# ---------------------------------------------------------------- merging


def merged(*objects: Item) -> list[tuple[list[float], tuple[str, ...]]]:
    (only,) = pair([photo("a.jpg", *objects)], []).photos
    return [(region.box.tolist(), region.references) for region in merge_boxes(only)]


def test_boxes_on_one_another_become_their_mean_with_all_descriptions() -> None:
    # IoU 0.9 and 0.72 with the first, 0.8 with one another; the mean of 100, 90 and 72 is 87.33.
    regions = merged(below(100, "a dog"), below(90, "red dog"), below(72, "a dog"), (RIGHT, "car"))
    assert [references for _, references in regions] == [("a dog", "red dog"), ("car",)]
    assert regions[0][0] == pytest.approx([0, 0, 100, 262 / 3]) and regions[1][0] == [500, 0, 600, 100]


def test_seven_tenths_are_enough_and_less_is_not() -> None:
    assert len(merged(below(100), below(70))) == 1
    assert len(merged(below(100), below(69.9))) == 2


def test_of_a_chain_the_box_with_most_neighbours_goes_first() -> None:
    # Heights 100, 80, 60, 45: IoU of neighbours 0.8, 0.75, 0.75, of next but one 0.6 and 0.5625.
    # 80 and 60 have two neighbours each; in order of position 60 is first: 80, 60 and 45 merge, 100 is left.
    regions = merged(*(below(height, f"h{height}") for height in (100, 80, 60, 45)))
    assert [references for _, references in regions] == [("h45", "h60", "h80"), ("h100",)]
    assert regions[0][0][3] == pytest.approx(185 / 3)


def test_a_prediction_may_agree_with_any_description_of_a_merged_region() -> None:
    truth = [photo("a.jpg", (LEFT, "a red dog"), (LEFT, "grey pavement"))]
    for words in ("a red dog", "grey pavement"):
        metrics = dense_metrics(truth, [guess("a.jpg", (LEFT, words, 0.9))])
        assert (metrics["dense_map"], metrics["dense_regions"]) == (pytest.approx(1), 1)


# ---------------------------------------------------------------- what is right


def test_boxes_count_up_to_their_overlap() -> None:
    metrics = dense_metrics([photo("a.jpg", (LEFT, "a red dog"))], [guess("a.jpg", (*below(50), 0.9))])
    assert metrics["dense_ap_localisation"] == {"0.3": 1, "0.4": 1, "0.5": 1, "0.6": 0, "0.7": 0}
    assert metrics["dense_map"] == metrics["dense_map_localisation"] == pytest.approx(3 / 5)


def test_captions_must_exceed_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dense_captioning.METEORS, "approximate", lambda pairs: [0.15 for _ in pairs])
    metrics = dense_metrics([photo("a.jpg", (LEFT, "x"))], [guess("a.jpg", (LEFT, "y", 0.9))])
    row = {"0.00": 1, "0.05": 1, "0.10": 1, "0.15": 0, "0.20": 0, "0.25": 0}  # 0.15 is not more than 0.15
    assert metrics["dense_ap"] == {iou: row for iou in ("0.3", "0.4", "0.5", "0.6", "0.7")}
    assert metrics["dense_map"] == pytest.approx(1 / 2)


def test_captions_that_share_nothing_are_wrong_even_at_zero_but_the_box_is_right() -> None:
    metrics = dense_metrics([photo("a.jpg", (LEFT, "a red dog"))], [guess("a.jpg", (LEFT, "blue car", 0.9))])
    assert (metrics["dense_map"], metrics["dense_map_localisation"]) == (0, pytest.approx(1))


def test_a_second_prediction_of_one_region_is_wrong() -> None:
    truth = [photo("a.jpg", (LEFT, "dog"), (RIGHT, "car"))]
    metrics = dense_metrics(truth, [guess("a.jpg", (LEFT, "dog", 0.9), (LEFT, "dog", 0.8), (RIGHT, "car", 0.7))])
    assert metrics["dense_map"] == pytest.approx((51 + 49 * 2 / 3) / 100)


def test_the_most_confident_takes_the_region_however_badly_it_fits() -> None:
    truth = [photo("a.jpg", (LEFT, "dog"))]
    assert dense_metrics(truth, [guess("a.jpg", (*below(1), 0.9), (LEFT, "dog", 0.8))])["dense_map"] == 0
    # The same the other way round: the good one takes it, the bad one after it costs no precision at recall 1.
    assert dense_metrics(truth, [guess("a.jpg", (*below(1), 0.7), (LEFT, "dog", 0.8))])["dense_map"] == 1


def test_a_prediction_does_not_fall_back_on_its_second_region() -> None:
    other = (0, 40, 100, 140)  # IoU 60 / 140 with LEFT: not merged
    truth = [photo("a.jpg", (LEFT, "dog"), (other, "dog"))]
    between = (0, 15, 100, 115)  # IoU 85 / 115 with LEFT, 75 / 125 = 0.6 with the other
    metrics = dense_metrics(truth, [guess("a.jpg", (LEFT, "dog", 0.9), (between, "dog", 0.8))])
    assert metrics["dense_ap_localisation"]["0.3"] == pytest.approx(51 / 100)  # only the first is right


def test_a_prediction_that_overlaps_nothing_takes_nothing() -> None:
    truth = [photo("a.jpg", (LEFT, "dog"))]
    metrics = dense_metrics(truth, [guess("a.jpg", (RIGHT, "dog", 0.9), (LEFT, "dog", 0.8))])
    assert metrics["dense_map"] == pytest.approx(0.5)  # right, but after a wrong one


def test_a_flat_box_is_found_as_elsewhere() -> None:
    wire = Row(("a.jpg",), (ObjectRow("red wire", "line", (100.0, 50.0, 400.0, 50.0)),), 1000, 800)
    metrics = dense_metrics([wire], [guess("a.jpg", ((100, 50, 400, 50), "red wire", 0.9))])
    assert metrics["dense_map"] == pytest.approx(1)


# ---------------------------------------------------------------- nothing there


def test_without_annotated_boxes_nothing_is_defined() -> None:
    for truth, found in (([], []), ([photo("a.jpg")], [guess("a.jpg", (LEFT, "dog", 0.9))])):
        metrics = dense_metrics(truth, found)
        assert metrics["dense_map"] is metrics["dense_map_localisation"] is None
        assert metrics["dense_ap"]["0.3"]["0.00"] is None and metrics["dense_regions"] == 0
        assert "mAP                      -\n" in dense_table(metrics)


def test_photos_without_predictions_or_that_failed_are_missed() -> None:
    truth = [photo("a.jpg", (LEFT, "dog")), photo("b.jpg", (LEFT, "dog")), photo("c.jpg", (LEFT, "dog"))]
    failed = PredictionRow(("b.jpg",), 0, 0, (), error="damaged")
    assert dense_metrics(truth, [])["dense_map"] == 0
    metrics = dense_metrics(truth, [guess("a.jpg", (LEFT, "dog", 0.9)), failed])
    assert metrics["dense_map"] == pytest.approx(34 / 100)  # recall 1/3: points 0.00 … 0.33


def test_a_prediction_on_an_empty_photo_is_wrong() -> None:
    truth = [photo("a.jpg", (LEFT, "dog")), photo("empty.jpg")]
    found = [guess("a.jpg", (LEFT, "dog", 0.5)), guess("empty.jpg", (LEFT, "dog", 0.9))]
    assert dense_metrics(truth, found)["dense_map"] == pytest.approx(0.5)


# ---------------------------------------------------------------- properties

PHRASES = ("a red dog", "red dogs", "blue car on the road", "the car", "螺丝/安装正确", "螺丝/未拧紧")
PLACES = st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h),
    *(st.integers(0, 200), st.integers(0, 200), st.integers(5, 200), st.integers(5, 200)),
)
TRUTHS = st.lists(st.lists(st.tuples(PLACES, st.sampled_from(PHRASES)), max_size=6), max_size=4)
GUESSES = st.lists(
    st.lists(st.tuples(PLACES, st.sampled_from(PHRASES), st.floats(0, 1)), max_size=6), min_size=4, max_size=4
)


def rows(truths: Sequence[Any], guesses: Sequence[Any]) -> tuple[list[Row], list[PredictionRow]]:
    names = [f"{number}.jpg" for number in range(len(truths))]
    return (
        [photo(name, *items) for name, items in zip(names, truths, strict=True)],
        [guess(name, *items) for name, items in zip(names, guesses, strict=False)],
    )


@given(TRUTHS, GUESSES, st.randoms(use_true_random=False))
def test_the_order_of_photos_and_boxes_changes_nothing(truths: Any, guesses: Any, rng: random.Random) -> None:
    truth, found = rows(truths, guesses)
    expected = dense_metrics(truth, found)

    def shuffled(items: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(rng.sample(items, len(items)))

    again = dense_metrics(
        [Row(row.images, shuffled(row.objects), row.width, row.height) for row in shuffled(truth)],
        [PredictionRow(row.images, row.width, row.height, shuffled(row.predictions)) for row in shuffled(found)],
    )
    assert again == expected


@given(TRUTHS, GUESSES)
def test_stricter_thresholds_never_raise_a_number(truths: Any, guesses: Any) -> None:
    metrics = dense_metrics(*rows(truths, guesses))
    if metrics["dense_map"] is None:
        assert not any(truths)
        return
    table = np.array(
        [[metrics["dense_ap_localisation"][iou], *row.values()] for iou, row in metrics["dense_ap"].items()]
    )
    assert table.shape == (5, 7) and (table >= 0).all() and (table <= 1).all()
    assert (np.diff(table, axis=0) <= 1e-12).all() and (np.diff(table, axis=1) <= 1e-12).all()
    assert metrics["dense_map"] == pytest.approx(table[:, 1:].mean())
    assert metrics["dense_map_localisation"] == pytest.approx(table[:, 0].mean())


# ---------------------------------------------------------------- real annotations


@pytest.fixture(scope="module")
def region_rows(shared_dir: Path) -> list[Row]:
    """The first twenty photos of Visual Genome: boxes and phrases."""
    source = shared_dir / "data" / "vg_regions_text"
    if not source.is_dir():
        pytest.skip(f"real data is not here: no folder {source}")
    found = []
    for item in iter_records(source):
        if isinstance(item, SourceImage) and item.size and len(found) < 20:
            objects = tuple(ObjectRow(o.desc, "bbox_2d", o.points) for o in item.objects if isinstance(o, RawObject))
            found.append(Row((item.image,), objects, *item.size))
    return found


def noisy(rows: Sequence[Row], seed: int) -> list[PredictionRow]:
    """Boxes moved, doubled and dropped; some with the words of another; scores with many ties."""
    rng = random.Random(seed)
    phrases = [item.desc for row in rows for item in row.objects]
    predictions = []
    for row in rows:
        found = []
        for item in rng.choices(row.objects, k=len(row.objects)):
            noise = [rng.gauss(0, 0.1 * side) for side in (item.box[2] - item.box[0], item.box[3] - item.box[1]) * 2]
            x1, y1, x2, y2 = (value + shift for value, shift in zip(item.box, noise, strict=True))
            words = item.desc if rng.random() < 0.6 else rng.choice(phrases)
            found.append(PredictedObject((x1, y1, max(x2, x1 + 3), max(y2, y1 + 3)), words, rng.randrange(9) / 10, 0.5))
        predictions.append(PredictionRow(row.images, row.width, row.height, tuple(found)))
    return predictions


def test_perfect_predictions_of_real_regions_score_one(region_rows: list[Row]) -> None:
    predictions = []
    for one in pair(region_rows, []).photos:
        regions = [(tuple(region.box), region.references[-1], 0.5) for region in merge_boxes(one)]
        predictions.append(guess(one.name, *regions))
    sizes = {row.images[0]: (row.width, row.height) for row in region_rows}
    predictions = [PredictionRow(row.images, *sizes[row.images[0]], row.predictions) for row in predictions]
    metrics = dense_metrics(region_rows, predictions)
    assert metrics["dense_map"] == metrics["dense_map_localisation"] == pytest.approx(1)
    assert metrics["dense_regions"] < sum(len(row.objects) for row in region_rows)  # people do describe one place twice


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def by_loops(truth: Sequence[Row], predictions: Sequence[PredictionRow], iou: float, least: float) -> float:
    """The protocol for one pair of thresholds, step by step; least -1 for class-agnostic AP."""
    verdicts, regions = [], 0
    for one in pair(truth, predictions).photos:
        left = [(box.tolist(), desc) for box, desc in zip(one.truth_boxes_Gt4, one.truth_descs, strict=True)]
        places = []
        while left:
            groups = [[other for other in left if overlap(box, other[0]) >= 0.7] for box, _ in left]
            group = max(groups, key=len)
            places.append(([sum(side) / len(group) for side in zip(*(box for box, _ in group), strict=True)],
                           [desc for _, desc in group]))  # fmt: skip
            left = [item for item in left if item not in group]
        regions += len(places)
        free = [True] * len(places)
        ranked = sorted(zip(-one.scores_Dt, range(len(one.descs)), strict=True))
        for score, m in ranked:
            fits = [overlap(one.boxes_Dt4[m], box) for box, _ in places]
            best = fits.index(max(fits))
            right = free[best] and fits[best] >= iou
            right = right and approximate_meteor([(one.descs[m], tuple(places[best][1]))])[0] > least
            free[best] = free[best] and fits[best] == 0
            verdicts.append((score, right))
    verdicts.sort(key=lambda verdict: verdict[0])
    curve, found = [], 0
    for rank, (_, right) in enumerate(verdicts, start=1):
        found += right
        curve.append((found / regions, found / rank))
    return sum(max((p for r, p in curve if r >= point / 100), default=0.0) for point in range(100)) / 100


@pytest.mark.parametrize("seed", [0, 1])
def test_the_whole_is_what_plain_loops_give(region_rows: list[Row], seed: int) -> None:
    truth = region_rows[:3]
    predictions = noisy(truth, seed)
    metrics = dense_metrics(truth, predictions)
    assert 0.1 < metrics["dense_map"] < metrics["dense_map_localisation"] < 0.9
    for iou in IOU_THRESHOLDS[::2]:
        assert metrics["dense_ap_localisation"][f"{iou:.1f}"] == pytest.approx(by_loops(truth, predictions, iou, -1))
        for least in METEOR_THRESHOLDS[::3]:
            assert metrics["dense_ap"][f"{iou:.1f}"][f"{least:.2f}"] == pytest.approx(
                by_loops(truth, predictions, iou, least)
            )


def test_only_pairs_that_could_count_are_compared_and_each_once(
    region_rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[CaptionPair] = []

    def spy(pairs: Sequence[CaptionPair]) -> list[float]:
        asked.extend(pairs)
        return approximate_meteor(pairs)

    monkeypatch.setitem(dense_captioning.METEORS, "approximate", spy)
    predictions = noisy(region_rows, 0)
    metrics = dense_metrics(region_rows, predictions)
    assert (
        0 < len(asked) == len(set(asked)) <= metrics["dense_regions"] < sum(len(row.predictions) for row in predictions)
    )


# ---------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    truth, found = tmp_path / "truth.jsonl", tmp_path / "found.jsonl"
    write_jsonl(truth, [photo("a.jpg", (LEFT, "螺丝/安装正确"), (RIGHT, "a red dog"))])
    write_jsonl(found, [guess("a.jpg", (LEFT, "螺丝/安装正确", 0.9), (RIGHT, "a red dog", 0.8))])
    return [str(truth), str(found)]


def test_evaluate_adds_the_numbers_where_asked(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "metrics.json"
    assert main(["evaluate", *files, "--output", str(output)]) == 0
    assert "dense_map" not in json.loads(output.read_text(encoding="utf-8")) and "dense" not in capsys.readouterr().out
    assert main(["evaluate", *files, "--dense", "--output", str(output)]) == 0
    metrics = json.loads(output.read_text(encoding="utf-8"))
    assert metrics["dense_map"] == metrics["dense_map_localisation"] == metrics["AP50"] == pytest.approx(1)
    assert sum(len(row) for row in metrics["dense_ap"].values()) == 30 and metrics["dense_meteor"] == "approximate"
    assert "dense captioning, METEOR approximate, 2 regions\nmAP                  1.000\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--meteor", "exact"], "--meteor exact needs --dense; give both"),
        (["--dense", "--meteor", "exact"], "exact METEOR compares English only, but '螺丝/安装正确'"),
        (["--dense", "--meteor", "best"], "invalid choice"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    options: list[str], why: str, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *files, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_photos_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"'b\.jpg'"):
        dense_metrics([photo("a.jpg")], [guess("b.jpg")])
