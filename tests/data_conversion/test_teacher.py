"""Teachers: every label first, then many situations, then chance, all by seed."""

from __future__ import annotations

from bbu.records import ObjectRow, Row
from data_conversion.teacher import choose_teachers

SIZE = 90  # pixels, square photos


def row(name: str, *labels: str, box: tuple[float, float, float, float] = (0, 0, 9, 9)) -> Row:
    return Row((name,), tuple(ObjectRow(label, "bbox_2d", box) for label in labels), SIZE, SIZE)


def test_the_fewest_rows_that_show_every_label_come_first() -> None:
    rows = [row("one", "a"), row("three", "a", "b", "c"), row("rare", "d"), row("two", "b", "c")]
    for seed in range(5):
        assert choose_teachers(rows, 2, seed) == [1, 2]


def test_then_new_counts_places_and_sizes() -> None:
    same = [row(f"same{i}", "a") for i in range(5)]
    crowd = row("crowd", *["a"] * 12)
    elsewhere = row("elsewhere", "a", box=(80, 80, 89, 89))
    large = row("large", "a", box=(0, 0, 85, 85))  # in size and in place (its centre) unlike the others
    rows = [*same, crowd, elsewhere, large]
    chosen = {rows[index].images[0] for index in choose_teachers(rows, 4, seed=0)}
    assert {"crowd", "elsewhere", "large"} <= chosen


def test_then_the_rest_by_seed_without_repeats() -> None:
    rows = [row(f"p{i}", "a") for i in range(20)]
    chosen = choose_teachers(rows, 6, seed=1)
    assert len(set(chosen)) == 6
    assert chosen == choose_teachers(rows, 6, seed=1)
    assert chosen != choose_teachers(rows, 6, seed=2)


def test_the_choice_does_not_depend_on_the_order_of_rows() -> None:
    rows = [row(f"p{i}", "ab"[i % 2]) for i in range(10)]
    forward = [rows[index].images for index in choose_teachers(rows, 4, seed=0)]
    backward = [rows[::-1][index].images for index in choose_teachers(rows[::-1], 4, seed=0)]
    assert forward == backward


def test_photos_without_objects_are_no_teachers_and_there_may_be_too_few() -> None:
    assert choose_teachers([row("empty"), row("p", "a")], 5, seed=0) == [1]
    assert choose_teachers([row("p", "a")], 0, seed=0) == []


def test_a_line_without_area_has_a_size_and_a_place() -> None:
    line = Row(("l",), (ObjectRow("wire", "line", (0, 90, 90, 90)),), SIZE, SIZE)
    assert choose_teachers([line], 1, seed=0) == [0]
