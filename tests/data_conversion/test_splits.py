"""Splits: the source's own, or drawn by seed as the user asks; equal photos and photos of one group always together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import UserError
from data_conversion.grouping import group_function
from data_conversion.report import GROUP_ACROSS_SPLITS, NO_EFFECT, NOTHING_HELD_OUT
from data_conversion.splits import Assignment, Candidate, SplitOptions, assign_splits, parse_splits


def assign(photos: list[Candidate], **options: Any) -> Assignment:
    return assign_splits(photos, SplitOptions(**options))


def draw(count: int, val: float | None = 0.1, test: float | None = None, seed: int = 0) -> list[str | None]:
    photos = [Candidate(f"photo {i}", None) for i in range(count)]
    return assign(photos, val_fraction=val, test_fraction=test, seed=seed).splits


def hinted(*hints: str | None) -> list[Candidate]:
    return [Candidate(f"photo {index}", hint) for index, hint in enumerate(hints)]


def of_groups(**sizes: int) -> list[Candidate]:
    return [Candidate(f"{name} {index}", None, name) for name, size in sizes.items() for index in range(size)]


# ---------------------------------------------------------------- drawing


def test_fractions_are_met() -> None:
    splits = draw(200, val=0.1, test=0.2)
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (140, 20, 40)


def test_nobody_asked_is_a_tenth_for_val() -> None:
    assert draw(100, val=None) == draw(100, val=0.1)


def test_a_fraction_above_zero_gives_at_least_one_photo_and_train_keeps_one() -> None:
    assert sorted(draw(2), key=str) == ["train", "val"]
    assert draw(1) == ["train"]
    assert sorted(draw(2, val=0.4, test=0.5), key=str) == ["test", "train"]


def test_the_seed_decides_and_the_order_of_photos_does_not() -> None:
    assert draw(50, seed=1) == draw(50, seed=1)
    assert draw(50, seed=1) != draw(50, seed=2)
    photos = [Candidate(f"photo {i}", None, f"site {i % 20}") for i in range(50)]
    options = SplitOptions(None, 0.2, 0.1, seed=3)
    assert assign_splits(photos[::-1], options).splits == assign_splits(photos, options).splits[::-1]


HINT = st.sampled_from([None, "train", "val", "test"])
SHARE = st.sampled_from([None, 0.2, 0.3])


@given(st.lists(st.tuples(st.integers(0, 5), HINT), min_size=1, max_size=30), SHARE, SHARE, st.integers(0, 9))
def test_equal_photos_never_lie_in_two_splits(raw: Any, val: float | None, test: float | None, seed: int) -> None:
    photos = [Candidate(str(digest), hint) for digest, hint in [(9, "train"), *raw]]
    splits = assign(photos, val_fraction=val, test_fraction=test, seed=seed).splits
    places: dict[str, set[str | None]] = {}
    for photo, split in zip(photos, splits, strict=True):
        places.setdefault(photo.digest, set()).add(split)
    assert all(len(place) == 1 for place in places.values())


GROUP = st.sampled_from([None, "a", "b", "c", "d"])


@given(st.lists(st.tuples(st.integers(0, 12), GROUP), min_size=2, max_size=40), SHARE, SHARE, st.integers(0, 9))
def test_photos_of_one_group_are_never_drawn_apart(raw: Any, val: float | None, test: float | None, seed: int) -> None:
    photos = [Candidate(str(digest), None, group) for digest, group in raw]
    splits = assign(photos, val_fraction=val, test_fraction=test, seed=seed).splits
    assert "train" in splits
    for group in {group for _, group in raw} - {None}:
        held = {split for split, photo in zip(splits, photos, strict=True) if photo.group == group}
        assert len(held) == 1 or len({photo.group for photo in photos}) == 1


def test_groups_come_as_near_to_the_share_as_they_can() -> None:
    splits = assign(of_groups(large=90, small=4, other=6), val_fraction=0.1).splits
    assert splits.count("val") == 10
    alike = assign(of_groups(a=50, b=50), val_fraction=0.1).splits
    assert (alike.count("train"), alike.count("val")) == (50, 50)


def test_one_group_for_all_photos_says_nothing_if_the_source_names_it_and_is_an_error_if_the_user_does() -> None:
    assert assign(of_groups(a=20), val_fraction=0.1).splits.count("val") == 2
    with pytest.raises(UserError, match=r"'folder' puts all 20 photos into one group"):
        assign(of_groups(a=20), val_fraction=0.1, group_by="folder")


@pytest.mark.parametrize(
    ("group_by", "image", "group"),
    [
        ("", "a/b.jpg", "own"),
        ("folder", "images/train/site 4/b.jpg", "images/site 4"),
        ("folder", "b.jpg", ""),
        ("^([^/]+)/", "site 4/b/1.jpg", "site 4"),
        (r"^(.+)_\d+", "cabinet_7_12.jpg", "cabinet_7"),
        (r"site (\d)|hall", "x/hall/1.jpg", "hall"),
        ("^site", "x/hall/1.jpg", None),
    ],
)
def test_a_photo_has_the_group_that_its_path_gives(group_by: str, image: str, group: str | None) -> None:
    assert group_function(group_by)(image, "own") == group


def test_a_bad_pattern_is_named() -> None:
    with pytest.raises(UserError, match=r"group_by '\(' is not a regular expression"):
        group_function("(")


# ---------------------------------------------------------------- the source's own splits


def test_of_copies_in_two_splits_the_held_out_place_wins_and_is_counted() -> None:
    photos = [Candidate("x", "train"), Candidate("x", "test"), Candidate("y", "train"), Candidate("y", "val")]
    result = assign([*photos, Candidate("z", "train")])
    assert result.splits == ["test", "test", "val", "val", "train"]
    assert result.counts == {"copies_moved_to_one_split": 2}


def test_hints_are_followed_and_merged() -> None:
    photos = hinted("train", "val", "test", None)
    assert assign(photos).splits == ["train", "val", "test", "train"]
    assert assign(photos, splits={"train": "train+val", "test": "test"}).splits == ["train", "train", "test", "train"]
    assert assign(photos, splits={"train": "train"}).splits == ["train", None, None, "train"]


@pytest.mark.parametrize("splits", [None, {"train": "train+val"}, {"train": "train+val", "test": "test"}])
def test_a_share_that_was_asked_for_is_drawn_from_train_where_the_source_has_no_such_split(splits: Any) -> None:
    photos = hinted(*["train"] * 20) if splits is None else hinted(*["train"] * 12, *["val"] * 8, *["test"] * 3)
    result = assign(photos, splits=splits, val_fraction=0.2)
    assert (result.splits.count("train"), result.splits.count("val")) == (16, 4)
    assert all(split in ("test", None) for split in result.splits[20:])
    assert not result.remarks.get(NOTHING_HELD_OUT)


def test_a_draw_from_train_leaves_groups_that_the_source_has_held_out() -> None:
    photos = [Candidate("1", "test", "a"), *(Candidate(str(i), "train", "a") for i in range(2, 9))]
    photos += [Candidate("9", "train", "b"), Candidate("10", "train", "c")]
    result = assign(photos, val_fraction=0.5)
    assert result.splits[:8] == ["test", *["train"] * 7] and "val" in result.splits[8:]
    assert result.remarks[GROUP_ACROSS_SPLITS][0].startswith("the source's own splits put 1 groups into several splits")


OWN = ("train", "train", "val")


@pytest.mark.parametrize(
    ("hints", "options", "remarks"),
    [
        (OWN, {}, []),
        (
            OWN,
            {"val_fraction": 0.2},
            ["val_fraction 0.2 has no effect: the source has a val split of its own (1 photos)"],
        ),
        (
            OWN,
            {"val_fraction": 0.0},
            ["val_fraction 0 has no effect: the source has a val split of its own (1 photos)"],
        ),
        (OWN, {"test_fraction": 0.0}, []),
        (OWN, {"group_by": "folder"}, ["group_by has no effect: no split is drawn"]),
        (
            OWN,
            {"splits": {"train": "train", "val": "val", "test": "test"}},
            ["splits names test, but the source has no"],
        ),
        (
            (None, None),
            {"splits": {"train": "train+val"}},
            ["splits has no effect: the source has no splits of its own"],
        ),
        ((None,), {"val_fraction": 0.2}, ["val_fraction 0.2 has no effect: 1 photos are too few"]),
    ],
)
def test_an_option_without_effect_says_so(hints: Any, options: Any, remarks: list[str]) -> None:
    found = assign(hinted(*hints), **options).remarks.get(NO_EFFECT, [])
    assert len(found) == len(remarks) and all(map(str.startswith, found, remarks))


def test_a_source_with_train_alone_says_how_to_draw_val() -> None:
    assert "--val-fraction 0.1" in assign(hinted("train", "train")).remarks[NOTHING_HELD_OUT][0]


def test_a_source_without_train_is_an_error_with_the_way_out() -> None:
    with pytest.raises(
        UserError, match=r"own splits are test \(1 photos\), val \(2 photos\).*--splits train=test\+val"
    ):
        assign(hinted("val", "val", "test"))


@pytest.mark.parametrize(
    ("splits", "why"),
    [
        ({"train": "tain"}, "'tain' is not one of train, val, test"),
        ({"dev": "val"}, "'dev' is not one of"),
        ({"train": "train+val", "val": "val"}, "'val' goes to both train and val"),
        ({"val": "val"}, "nothing goes to train"),
    ],
)
def test_bad_merges_are_refused(splits: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_splits(splits)
