"""How often a photo is seen follows from its rarest description, and the order from the seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.config import SamplingConfig
from bbu.data.sampling.order import EpochOrder, balance_table, effective_balance, expected_views
from bbu.records import ObjectRow, Row, read_rows
from bbu.tiles import Tile

METHODS = ("uniform", "repeat_factor", "class_aware")


def row(name: str, *descs: str) -> Row:
    return Row((name,), tuple(ObjectRow(desc, "bbox_2d", (1, 2, 3, 4)) for desc in descs), 10, 10)


def rows_of(*groups: tuple[int, Sequence[str]]) -> list[Row]:
    return [row(f"{n}_{i}.jpg", *descs) for n, (count, descs) in enumerate(groups) for i in range(count)]


DATA_SETS = st.lists(st.lists(st.sampled_from(["a/x", "a/y", "b/x", "c"]), max_size=4), min_size=1, max_size=12).map(
    lambda photos: [row(f"{number}.jpg", *descs) for number, descs in enumerate(photos)]
)


def epochs(rows: Sequence[Row], config: SamplingConfig, count: int, seed: int = 5) -> list[list[int]]:
    """Photos of each of the first epochs, in order."""
    order = EpochOrder(rows, config, seed)
    found: list[list[int]] = [[]]
    for position in range(10**9):
        draw = order.at(position)
        if draw.epoch == count:
            return found
        if draw.epoch == len(found):
            found.append([])
        found[draw.epoch].append(draw.photo)
    raise AssertionError


# ---------------------------------------------------------------- repeat factors


def test_repeat_factors_are_those_worked_out_by_hand() -> None:
    """100 photos, t = 0.25: a is on 96, b on 4 → sqrt(0.25 / 0.04) = 2.5; c on 1 → sqrt(0.25 / 0.01) = 5."""
    rows = rows_of((95, ["a", "a"]), (1, ["a", "c"]), (3, ["b"]), (1, ["b", "b"]))
    factors = expected_views(rows, SamplingConfig("repeat_factor", threshold=0.25))
    np.testing.assert_allclose(factors, [1.0] * 95 + [5.0] + [2.5] * 4)


@given(rows=DATA_SETS, threshold=st.floats(0.001, 1), level=st.integers(0, 2))
def test_repeat_factors_equal_the_definition_taken_literally(rows: list[Row], threshold: float, level: int) -> None:
    """Gupta et al. 2019, section 4.2: r_c = max(1, sqrt(t / f_c)), r_i = max over the image's classes."""

    def classes(item: Row) -> set[str]:
        return {"/".join(o.desc.split("/")[:level]) if level else o.desc for o in item.objects}

    expected = []
    for item in rows:
        per_class = [1.0]
        for name in classes(item):
            share = sum(name in classes(other) for other in rows) / len(rows)
            per_class.append(max(1.0, np.sqrt(threshold / share)))
        expected.append(max(per_class))
    np.testing.assert_allclose(expected_views(rows, SamplingConfig("repeat_factor", level, threshold)), expected)


def test_repeat_factors_are_rounded_stochastically_and_right_on_average() -> None:
    rows = rows_of((90, ["a"]), (9, ["b"]), (1, ["c"]))
    config = SamplingConfig("repeat_factor", threshold=0.2)  # b: sqrt(0.2 / 0.09) = 1.49, c: sqrt(20) = 4.47
    factors = expected_views(rows, config)
    seen = epochs(rows, config, 400)
    counts = np.array([np.bincount(epoch, minlength=100) for epoch in seen])
    assert (counts >= np.floor(factors)).all() and (counts <= np.ceil(factors)).all()
    np.testing.assert_allclose(counts.mean(0), factors, atol=0.11)  # 4 standard errors of a coin over 400 epochs
    assert len({len(epoch) for epoch in seen}) > 1
    length = EpochOrder(rows, config, 5).epoch_length
    assert length == pytest.approx(factors.sum()) and np.mean([len(epoch) for epoch in seen]) == pytest.approx(
        length, abs=0.3
    )


def test_the_rare_state_of_a_screw_is_seen_more_often_as_the_formula_says() -> None:
    """475 correct against 8 incorrect, each of the 8 on its own photo: f = 8 / 483, t = 0.1 → 2.457 views."""
    correct, incorrect = "螺丝连接点/BBU安装螺丝/连接正确", "螺丝连接点/BBU安装螺丝/连接错误"
    rows = rows_of((475, [correct]), (8, [incorrect]))
    factor = np.sqrt(0.1 * 483 / 8)
    rare, common = effective_balance(rows, SamplingConfig("repeat_factor", threshold=0.1))
    assert (rare.name, rare.photos, rare.objects) == (incorrect, 8, 8) and common.objects == 475
    assert rare.share_before == pytest.approx(8 / 483)
    assert rare.share_after == pytest.approx(8 * factor / (475 + 8 * factor)) == pytest.approx(0.0397, abs=1e-4)
    balanced, _ = effective_balance(rows, SamplingConfig("class_aware"))
    assert balanced.share_after == pytest.approx(0.5)
    assert effective_balance(rows, SamplingConfig())[0].share_after == rare.share_before
    whole = effective_balance(rows, SamplingConfig("repeat_factor", level=2))
    assert [(item.name, item.share_after) for item in whole] == [("螺丝连接点/BBU安装螺丝", 1.0)]


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize("method", METHODS)
@given(rows=DATA_SETS)
def test_the_expected_fraction_matches_many_epochs(method: str, rows: list[Row]) -> None:
    config = SamplingConfig(method, threshold=0.5)
    views = expected_views(rows, config)
    assert (views > 0).all(), "every photo is seen, also those without objects"
    seen = np.bincount([photo for epoch in epochs(rows, config, 60) for photo in epoch], minlength=len(rows)) / 60
    spread = np.sqrt(views / 60)  # of a mean of 60 counts, at most that of a Poisson variable
    assert (np.abs(seen - views) <= 6 * spread + 0.1).all()
    balance = effective_balance(rows, config)
    objects = Counter(item.desc for photo in rows for item in photo.objects)
    assert {item.name: item.objects for item in balance} == objects
    if balance:
        assert sum(item.share_before for item in balance) == pytest.approx(1)
        assert sum(item.share_after for item in balance) == pytest.approx(1)
        assert [item.objects for item in balance] == sorted(objects.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_position_is_the_same_whenever_it_is_asked(method: str) -> None:
    rows = rows_of((9, ["a"]), (2, ["b", "a"]), (1, []))
    config = SamplingConfig(method, threshold=0.9)
    forward = EpochOrder(rows, config, 5)
    draws = [forward.at(position) for position in range(200)]
    resumed = EpochOrder(rows, config, 5)
    assert [resumed.at(position) for position in reversed(range(200))] == draws[::-1]
    assert [EpochOrder(rows, config, 5).at(position) for position in (0, 150, 199)] == [draws[n] for n in (0, 150, 199)]
    other = EpochOrder(rows, config, 6)
    assert [other.at(position) for position in range(200)] != draws


@pytest.mark.parametrize("method", METHODS)
def test_every_view_of_a_photo_in_an_epoch_has_a_number_of_its_own(method: str) -> None:
    """A repeated photo gets a new view and new teachers each time."""
    rows = rows_of((9, ["a"]), (1, ["b"]))
    order = EpochOrder(rows, SamplingConfig(method, threshold=1.0), 5)
    draws = [order.at(position) for position in range(300)]
    assert len({(draw.epoch, draw.number) for draw in draws}) == len(draws)
    assert all(draw.number % len(rows) == draw.photo for draw in draws)
    firsts = [draw for draw in draws if draw.number == draw.photo]
    assert len({(draw.epoch, draw.photo) for draw in firsts}) == len({(draw.epoch, draw.photo) for draw in draws})


def test_uniform_epochs_show_every_photo_once_in_the_order_that_the_seed_always_gave() -> None:
    rows = rows_of((7, ["a"]))
    for epoch, photos in enumerate(epochs(rows, SamplingConfig(), 4, seed=17)):
        assert photos == np.random.default_rng((17, 1, epoch)).permutation(7).tolist()


def with_tiles(row: Row, *descs: Sequence[str]) -> list[Row]:
    """A photo and a tile of it for each list of descriptions."""
    return [row, *(replace(rows_of((1, names))[0], tile=Tile((0, 0, 5, 5), (10, 10))) for names in descs)]


@pytest.mark.parametrize("method", ["uniform", "repeat_factor"])
def test_tiles_without_objects_come_in_a_share_of_the_epochs_and_all_others_in_each(method: str) -> None:
    rows = [*with_tiles(row("a.jpg", "a"), ["a"], [], [], []), row("empty.jpg")]
    config = SamplingConfig(method, threshold=0.01, empty_tiles=0.25)
    np.testing.assert_allclose(expected_views(rows, config), [1, 1, 0.25, 0.25, 0.25, 1])
    seen = epochs(rows, config, 400)
    counts = np.array([np.bincount(epoch, minlength=len(rows)) for epoch in seen])
    assert (counts[:, [0, 1, 5]] == 1).all() and set(counts[:, 2:5].ravel()) == {0, 1}
    np.testing.assert_allclose(counts[:, 2:5].mean(0), 0.25, atol=0.09)  # 4 standard errors
    assert [len(epochs(rows, SamplingConfig(method, threshold=0.01, empty_tiles=share), 1)[0]) for share in (0, 1)] == [
        3,
        6,
    ]


@given(empty=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_position_among_tiles_is_the_same_whenever_it_is_asked(empty: int, seed: int) -> None:
    rows = with_tiles(row("a.jpg", "a"), ["a"], *[[]] * empty)
    forward = [EpochOrder(rows, SamplingConfig(), seed)] * 60
    draws = [order.at(position) for position, order in enumerate(forward)]
    resumed = EpochOrder(rows, SamplingConfig(), seed)
    assert [resumed.at(position) for position in reversed(range(60))] == draws[::-1]


def test_class_aware_draws_classes_uniformly_and_photos_of_a_class_uniformly() -> None:
    rows = rows_of((50, ["a"]), (5, ["b"]), (1, ["c"]), (4, []))
    counts = np.bincount([photo for epoch in epochs(rows, SamplingConfig("class_aware"), 200) for photo in epoch])
    drawn = [counts[:50].sum(), counts[50:55].sum(), counts[55], counts[56:].sum()]
    np.testing.assert_allclose(np.array(drawn) / counts.sum(), 0.25, atol=0.02)
    np.testing.assert_allclose(counts[50:55] / counts[50:55].sum(), 0.2, atol=0.04)


def test_the_table_shows_the_rarest_and_the_most_frequent_and_counts_the_rest() -> None:
    rows = rows_of(*((number + 1, [f"kind {number}"]) for number in range(9)))
    lines = balance_table(effective_balance(rows, SamplingConfig("repeat_factor")), limit=6).splitlines()
    assert len(lines) == 8 and [line.split()[-1] for line in lines[1:5]] == ["0", "1", "2", "3"]
    assert "3 more" in lines[5] and [line.split()[-1] for line in lines[6:]] == ["7", "8"]
    assert "no more" not in balance_table([]) and len(balance_table([]).splitlines()) == 1


def test_sampling_balances_real_labels(shared_dir: Path, tmp_path: Path) -> None:
    from data_conversion.pipeline import convert

    convert("pascal_voc", shared_dir / "data" / "bccd_voc", tmp_path / "rows", taxonomy=None)
    rows = read_rows(tmp_path / "rows" / "train.jsonl")
    before = {item.name: item.share_before for item in effective_balance(rows, SamplingConfig())}
    for config in (SamplingConfig("repeat_factor", threshold=0.9), SamplingConfig("class_aware")):
        after = {item.name: item.share_after for item in effective_balance(rows, config)}
        assert after["Platelets"] > before["Platelets"] and after["RBC"] < before["RBC"]
