"""Objects under one image token, and the pixel budget that would save half of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bbu.doctor.boxes import contradictions, counted, measure_sizes
from bbu.doctor.reading import Sample
from bbu.families.photo_plan import MergedPlan, smart_resize
from bbu.records import FewShotSample, ObjectRow, Row

CELL = 28


def sample(*objects: ObjectRow, size: tuple[int, int] = (1400, 1400)) -> Sample:
    return Sample("train", "train.jsonl:1", FewShotSample(Row(("a.jpg",), objects, *size)))


def square(side: float, desc: str = "screw", at: float = 10) -> ObjectRow:
    return ObjectRow(desc, "bbox_2d", (at, at, at + side, at + side))


def plan(max_pixels: int) -> MergedPlan:
    return MergedPlan(SimpleNamespace(patch_size=14, merge_size=2, temporal_patch_size=2), 56 * 56, max_pixels)


def test_a_box_of_exactly_one_token_is_not_tiny() -> None:
    budget = plan(700 * 700)  # halves a photo of 1400 x 1400
    assert measure_sizes([sample(square(56))], budget)[1] == []
    sizes, (found,) = measure_sizes([sample(square(55.9), square(56))], budget)
    assert sizes.tiny_by_description == {"screw": 1} and found.count == 1 and found.severity == "warning"


@pytest.mark.parametrize("sides", [(40, 40, 40), (30, 45, 55), (29, 29, 54, 55)])
def test_the_advised_budget_saves_half_and_no_smaller_one_does(sides: tuple[int, ...]) -> None:
    samples = [sample(square(side)) for side in sides]
    sizes, _ = measure_sizes(samples, plan(700 * 700))
    assert sizes.max_pixels_saving_half is not None and sizes.max_pixels_saving_half % CELL**2 == 0

    def saved(max_pixels: int) -> float:
        height, _ = smart_resize(1400, 1400, CELL, 56 * 56, max_pixels)
        return sum(side * height / 1400 >= CELL for side in sides) / len(sides)

    assert saved(sizes.max_pixels_saving_half) >= 0.5 > saved(sizes.max_pixels_saving_half - CELL**2)


def test_what_is_tiny_in_the_photo_itself_cannot_be_saved() -> None:
    sizes, (found,) = measure_sizes([sample(square(20), square(21), square(40))], plan(700 * 700))
    assert sizes.max_pixels_saving_half is None and "data.min_pixels" in found.fix


def test_a_flat_line_is_as_large_as_it_is_long() -> None:
    cable = ObjectRow("cable", "line", (0, 100, 1000, 100))
    assert measure_sizes([sample(cable)], plan(700 * 700))[1] == []


def test_a_data_set_without_objects_has_sizes_of_nothing() -> None:
    sizes, found = measure_sizes([sample()], plan(700 * 700))
    assert (sizes.objects, found) == (0, [])
    assert measure_sizes([], plan(700 * 700))[0].objects == 0


def test_copies_of_other_sizes_are_compared_in_shares_of_the_photo() -> None:
    small = sample(square(50, "a"), size=(700, 700))
    large = sample(ObjectRow("b", "bbox_2d", (20, 20, 120, 120)))
    assert [(a.desc, b.desc) for a, b, _ in contradictions(small, large)] == [("a", "b")]
    assert contradictions(small, small) == []


def test_two_labels_of_one_place_in_both_copies_do_not_contradict_each_other() -> None:
    both = (square(50, "a"), square(50, "b"))
    assert contradictions(sample(*both), sample(*both)) == []
    assert len(contradictions((one := sample(*both)), one)) == 1


def test_the_commonest_labels_come_first() -> None:
    assert counted({"a": 1, "b": 3, "c": 2}, most=2) == "b 3, c 2, … (1 more)"
