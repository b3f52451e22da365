"""Objects under one image token, and the pixel budget that would save half of them."""

from __future__ import annotations

import pytest

from bbu.doctor.boxes import contradictions, counted, measure_sizes
from bbu.doctor.reading import Sample
from bbu.families.photo_plan import PhotoPlan
from bbu.families.registry import backbone_class
from bbu.records import FewShotSample, ObjectRow, Row
from bbu.tiles import Tiles
from tests.tiny import DEFAULT, FAMILIES, tiny_spec

every_family = pytest.mark.parametrize("family", FAMILIES)


def sample(*objects: ObjectRow, size: tuple[int, int] = (1400, 1400)) -> Sample:
    return Sample("train", "train.jsonl:1", FewShotSample(Row(("a.jpg",), objects, *size)))


def square(side: float, desc: str = "screw", at: float = 10) -> ObjectRow:
    return ObjectRow(desc, "bbox_2d", (at, at, at + side, at + side))


def plan(max_pixels: int, family: str = DEFAULT) -> PhotoPlan:
    return backbone_class(family).photo_plan("", tiny_spec(family, 56 * 56, max_pixels))


@every_family
def test_a_box_of_exactly_one_token_is_not_tiny(family: str) -> None:
    cell = plan(700 * 700, family).token_size
    budget, whole = plan((20 * cell) ** 2, family), (40 * cell, 40 * cell)  # the photo is halved
    side = 2 * cell
    assert measure_sizes([sample(square(side), size=whole)], budget)[1] == []
    sizes, (found,) = measure_sizes([sample(square(side - 0.1), square(side), size=whole)], budget)
    assert sizes.tiny_by_description == {"screw": 1} and found.count == 1 and found.severity == "warning"


@every_family
@pytest.mark.parametrize("over", [(12, 12, 12), (2, 17, 27), (1, 1, 26, 27)])  # pixels by which sides are over a token
def test_the_advised_budget_saves_half_and_no_smaller_one_does(over: tuple[int, ...], family: str) -> None:
    given = plan(700 * 700, family)
    cell = given.token_size
    sides = [cell + more for more in over]
    sizes, _ = measure_sizes([sample(square(side)) for side in sides], given)
    assert sizes.max_pixels_saving_half is not None and sizes.max_pixels_saving_half % cell**2 == 0

    def saved(max_pixels: int) -> float:
        height = plan(max_pixels, family).plan(1400, 1400).model_height
        return sum(side * height / 1400 >= cell for side in sides) / len(sides)

    assert saved(sizes.max_pixels_saving_half) >= 0.5 > saved(sizes.max_pixels_saving_half - cell**2)


@every_family
def test_what_is_tiny_in_the_photo_itself_cannot_be_saved(family: str) -> None:
    sizes, (found,) = measure_sizes([sample(square(20), square(21), square(40))], plan(700 * 700, family))
    assert sizes.max_pixels_saving_half is None and "data.min_pixels" in found.fix


@every_family
def test_tiles_are_advised_first_where_most_objects_are_tiny(family: str) -> None:
    budget = plan(700 * 700, family)
    side = 1.2 * budget.token_size  # 0.6 tokens in the photo of 1400 x 1400, over one in a tile
    tiny, large = [square(side, at=20 * number) for number in range(6)], [square(300), square(400)]
    sizes, (found,) = measure_sizes([sample(*tiny, *large)], budget)
    assert (sizes.tiny_in_auto_tiles, sizes.objects, found.count) == (0, 8, 6)
    assert sizes.tokens_in_auto_tiles == pytest.approx(10 * sizes.tokens, rel=0.05)  # 3 x 3 tiles beside the photo
    assert found.fix.startswith("data.tiles=auto ") and "0.0% of all objects" in found.fix and "75.0%" in found.fix
    assert f"{sizes.tokens_in_auto_tiles:.0f} image tokens a photo instead of {sizes.tokens:.0f}" in found.fix
    _, (rare,) = measure_sizes([sample(*tiny[:2], *large)], budget)
    assert rare.fix.startswith("data.max_pixels=") and "data.tiles=auto" in rare.fix


@every_family
def test_with_tiles_objects_count_as_large_as_tiles_show_them(family: str) -> None:
    budget = plan(700 * 700, family)
    screw = square(1.2 * budget.token_size)
    assert measure_sizes([sample(screw)], budget, Tiles())[1] == []
    sizes, (found,) = measure_sizes([sample(screw, square(9))], budget, Tiles())
    assert found.count == 1 and "in tiles too" in found.meaning and "data.tiles" not in found.fix
    assert (sizes.tiny_in_auto_tiles, sizes.tokens) == (1, sizes.tokens_in_auto_tiles)


@every_family
def test_a_flat_line_is_as_large_as_it_is_long(family: str) -> None:
    cable = ObjectRow("cable", "line", (0, 100, 1000, 100))
    assert measure_sizes([sample(cable)], plan(700 * 700, family))[1] == []


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
