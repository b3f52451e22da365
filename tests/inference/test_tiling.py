"""Tiles and mirror images: boxes are mapped back exactly, and no object of the whole photo is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bbu.geometry import iou, iou_matrix
from bbu.inference.tiling import (
    CUT_PIXELS,
    OTHER_IOU,
    SAME_IOU,
    View,
    fuse_mirrored,
    merge_views,
    merge_windows,
    views_of,
)
from bbu.records import PredictedObject
from bbu.taxonomy import MirrorRules
from bbu.tiles import Size, Tiles

RULES = MirrorRules()


@st.composite
def objects(draw: st.DrawFn, size: Size = (200, 150), names: str = "ab") -> PredictedObject:
    """A box of at least a pixel on a photo of that size."""
    x, y = (draw(st.floats(0, side - 2)) for side in size)
    w, h = (draw(st.floats(1, side - low)) for side, low in zip(size, (x, y), strict=True))
    score = draw(st.floats(0, 1))
    return PredictedObject((x, y, x + w, y + h), draw(st.sampled_from(names)), score, draw(st.floats(score, 1)))


def found_at(box: tuple[float, float, float, float], desc: str = "a", score: float = 0.5) -> PredictedObject:
    return PredictedObject(box, desc, score, score)


# ---------------------------------------------------------------- which views a photo has


@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), flips=st.booleans())
def test_a_photo_smaller_than_a_tile_is_predicted_once(size: Size, flips: bool) -> None:
    for tiles in (Tiles(size=300), Tiles(1, 1), None):
        views = views_of(size, tiles, flips, 56 * 56)
        assert [view.window for view in views] == [(0, 0, *size)] * (1 + flips)
    assert len(views_of(size, Tiles(), False, size[0] * size[1])) == 1


# ---------------------------------------------------------------- there and back


@given(data=st.data(), size=st.tuples(st.integers(60, 2000), st.integers(60, 2000)), mirrored=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_box_comes_back_from_its_view_exactly(data: st.DataObject, size: Size, mirrored: bool) -> None:
    x1, y1 = (data.draw(st.integers(0, side - 40)) for side in size)
    x2, y2 = (data.draw(st.integers(low + 40, side)) for low, side in zip((x1, y1), size, strict=True))
    view = View((x1, y1, x2, y2), size, mirrored)
    margin = np.maximum(CUT_PIXELS, 0.01 * np.array(view.size)) + 1
    low = [data.draw(st.floats(m, side / 2 - 1)) for m, side in zip(margin, view.size, strict=True)]
    high = [data.draw(st.floats(side / 2, side - m)) for m, side in zip(margin, view.size, strict=True)]
    expected = (x1 + low[0], y1 + low[1], x1 + high[0], y1 + high[1])
    seen = (view.size[0] - high[0], low[1], view.size[0] - low[0], high[1]) if mirrored else (*low, *high)
    (back,) = view.to_photo([found_at(seen)])
    assert back.box == pytest.approx(expected, abs=1e-9)
    assert replace(back, box=seen) == found_at(seen), "only the box changes"


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_and_pixels_move_together(mirrored: bool) -> None:
    photo = Image.new("RGB", (90, 70))
    photo.paste((255, 0, 0), (40, 30, 52, 41))
    view = View((20, 10, 80, 60), photo.size, mirrored)
    shown = view.of(photo)
    found = shown.getchannel("R").getbbox()
    assert found is not None and shown.size == view.size
    assert view.to_photo([found_at(found)])[0].box == (40, 30, 52, 41)


def test_the_view_of_a_whole_photo_is_the_photo_itself() -> None:
    photo = Image.effect_noise((50, 40), 80)
    assert View((0, 0, 50, 40), (50, 40)).of(photo) is photo
    assert View((0, 0, 50, 40), (50, 40), True).of(photo).tobytes() == ImageOps.mirror(photo).tobytes()


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_cut_by_an_inner_border_is_left_out_and_one_at_the_photos_own_is_not(mirrored: bool) -> None:
    view = View((0, 0, 100, 100), (300, 100), mirrored)  # the photo goes on at the right only

    def stays(*box: float) -> bool:
        x1, y1, x2, y2 = box
        return bool(view.to_photo([found_at((100 - x2, y1, 100 - x1, y2) if mirrored else (x1, y1, x2, y2))]))

    assert stays(0, 0, 40, 100), "left, top and bottom are the photo's"
    assert stays(20, 20, 95, 40)
    assert not stays(20, 20, 96, 40) and not stays(20, 20, 100, 40)


# ---------------------------------------------------------------- one answer


@given(groups=st.lists(st.lists(objects(), max_size=5), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_box_is_suppressed_only_by_a_higher_scored_one_of_another_window(groups: list[list[PredictedObject]]) -> None:
    kept = merge_windows(groups)
    assert [item.score for item in kept] == sorted((item.score for item in kept), reverse=True)
    everything = [item for group in groups for item in group]
    assert all(item in everything for item in kept), "boxes are chosen, not changed"
    for group in groups:
        others = [item for other in groups if other is not group for item in other]
        for item in group:
            if item not in kept:
                at = [(o, float(iou(np.array(o.box), np.array(item.box)))) for o in kept if o in others]
                assert any(
                    o.score >= item.score and overlap > (SAME_IOU if o.desc == item.desc else OTHER_IOU)
                    for o, overlap in at
                )


@given(groups=st.lists(st.lists(objects(), max_size=5), min_size=2, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_two_windows_keep_the_same_object(groups: list[list[PredictedObject]]) -> None:
    owner = {id(item): number for number, group in enumerate(groups) for item in group}
    kept = merge_windows(groups)
    overlap = iou_matrix(*[np.array([item.box for item in kept]).reshape(-1, 4)] * 2)
    for i, one in enumerate(kept):
        for j, other in enumerate(kept[:i]):
            if owner[id(one)] != owner[id(other)]:
                assert overlap[i, j] <= (SAME_IOU if one.desc == other.desc else OTHER_IOU)


@given(group=st.lists(objects(), max_size=6))
def test_a_single_window_keeps_all_its_boxes(group: list[PredictedObject]) -> None:
    assert sorted(map(repr, merge_windows([group]))) == sorted(map(repr, group))
    assert sorted(map(repr, merge_windows([group, []]))) == sorted(map(repr, group))


def test_different_descriptions_need_more_overlap_to_be_suppressed() -> None:
    whole, near, same = (
        found_at((0, 0, 100, 100), "a", 0.9),
        found_at((0, 0, 100, 60), "b", 0.8),
        found_at((0, 0, 100, 99), "b"),
    )
    assert merge_windows([[whole], [near, same]]) == [whole, near]
    assert merge_windows([[whole], [replace(near, desc="a")]]) == [whole]


# ---------------------------------------------------------------- mirror images


@given(plain=st.lists(objects(), max_size=6), mirrored=st.lists(objects(), max_size=6))
@settings(max_examples=200, deadline=None)
def test_fusing_counts_every_box_once(plain: list[PredictedObject], mirrored: list[PredictedObject]) -> None:
    fused = fuse_mirrored(plain, mirrored, RULES)
    assert max(len(plain), len(mirrored)) <= len(fused) <= len(plain) + len(mirrored)
    for name in ("score", "objectness"):
        total = sum(getattr(item, name) for item in (*plain, *mirrored))
        assert 2 * sum(getattr(item, name) for item in fused) == pytest.approx(total)
    for item in fused:
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= 200 + 1e-9 and 0 <= y1 < y2 <= 150 + 1e-9
        assert 0 <= item.score <= item.objectness + 1e-12


@given(plain=st.lists(objects(), max_size=6))
def test_fusing_two_equal_lists_gives_the_list(plain: list[PredictedObject]) -> None:
    fused = fuse_mirrored(plain, plain, RULES)
    assert len(fused) == len(plain)
    key = lambda item: (item.score, item.box)  # noqa: E731
    for one, other in zip(sorted(fused, key=key), sorted(plain, key=key), strict=True):
        assert (
            one.box == pytest.approx(other.box) and one.desc == other.desc and one.score == pytest.approx(other.score)
        )


def test_a_fused_box_is_the_score_weighted_mean() -> None:
    (fused,) = fuse_mirrored([found_at((0, 0, 10, 10), score=0.9)], [found_at((0, 0, 13, 10), score=0.3)], RULES)
    assert fused.box == pytest.approx((0, 0, 10.75, 10)) and fused.score == pytest.approx(0.6)


def test_sides_in_mirrored_descriptions_are_swapped() -> None:
    plain, seen = found_at((0, 0, 10, 10), "screw/left"), found_at((0, 0, 10, 10), "screw/right")
    (fused,) = fuse_mirrored([plain], [seen], RULES)
    assert fused == plain
    allowing = fuse_mirrored([plain], [seen], MirrorRules(horizontal="allow"))
    assert {item.desc for item in allowing} == {"screw/left", "screw/right"}


def test_only_the_plain_view_counts_if_a_description_forbids_mirroring() -> None:
    rules = MirrorRules(horizontal="unless_words")
    sided, plain = found_at((0, 0, 10, 10), "screw/left"), found_at((0, 0, 10, 10), "screw", 0.8)
    assert fuse_mirrored([plain], [sided], rules) == [plain] and fuse_mirrored([sided], [plain], rules) == [sided]
    assert fuse_mirrored([plain], [plain], rules) == [plain]
    assert fuse_mirrored([plain], [], rules)[0].score == pytest.approx(0.4)


def test_all_views_of_one_object_merge_into_one() -> None:
    """An object seen in every view: the whole photo, both tiles that contain it, and all mirror images."""
    size, box = (300, 100), (140.0, 20.0, 160.0, 50.0)
    views = views_of(size, Tiles(2, 1, overlap=0.4), True, 56 * 56)
    assert len(views) == 6
    found = []
    for view in views:
        x1, x2 = box[0] - view.window[0], box[2] - view.window[0]
        seen = (view.size[0] - x2, 20.0, view.size[0] - x1, 50.0) if view.mirrored else (x1, 20.0, x2, 50.0)
        found.append([found_at(seen, "lock/right" if view.mirrored else "lock/left", 0.7)])
    (merged,) = merge_views(views, found, RULES)
    assert merged.box == pytest.approx(box) and (merged.desc, merged.score) == ("lock/left", pytest.approx(0.7))
