"""Splits: the source's own or drawn by seed; equal photos always together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import UserError
from data_conversion.splits import Candidate, assign_splits, parse_splits

ALL = parse_splits(None)


def draw(count: int, val: float = 0.1, test: float = 0.0, seed: int = 0) -> list[str | None]:
    return assign_splits([Candidate(f"photo {i}", None) for i in range(count)], ALL, val, test, seed)[0]


def test_fractions_are_met() -> None:
    splits = draw(200, val=0.1, test=0.2)
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (140, 20, 40)


def test_a_fraction_above_zero_gives_at_least_one_photo_and_train_keeps_one() -> None:
    assert sorted(draw(2)) == ["train", "val"]
    assert draw(1) == ["train"]
    assert sorted(draw(2, val=0.4, test=0.5)) == ["test", "train"]


def test_the_seed_decides_and_the_order_of_photos_does_not() -> None:
    assert draw(50, seed=1) == draw(50, seed=1)
    assert draw(50, seed=1) != draw(50, seed=2)
    photos = [Candidate(f"photo {i}", None) for i in range(50)]
    forward = assign_splits(photos, ALL, 0.2, 0.1, 3)[0]
    assert assign_splits(photos[::-1], ALL, 0.2, 0.1, 3)[0] == forward[::-1]


HINT = st.sampled_from([None, "train", "val", "test"])


@given(st.lists(st.tuples(st.integers(0, 5), HINT), min_size=1, max_size=30), st.integers(0, 9))
def test_equal_photos_never_lie_in_two_splits(raw: list[tuple[int, str | None]], seed: int) -> None:
    photos = [Candidate(str(digest), hint) for digest, hint in raw]
    splits, _ = assign_splits(photos, ALL, 0.3, 0.2, seed)
    places: dict[str, set[str | None]] = {}
    for photo, split in zip(photos, splits, strict=True):
        places.setdefault(photo.digest, set()).add(split)
    assert all(len(place) == 1 for place in places.values())


def test_of_copies_in_two_splits_the_held_out_place_wins_and_is_counted() -> None:
    photos = [Candidate("x", "train"), Candidate("x", "test"), Candidate("y", "train"), Candidate("y", "val")]
    splits, counts = assign_splits(photos, ALL, 0.1, 0.0, 0)
    assert splits == ["test", "test", "val", "val"]
    assert counts == {"copies_moved_to_one_split": 2}


def test_hints_are_followed_and_merged() -> None:
    photos = [Candidate("a", "train"), Candidate("b", "val"), Candidate("c", "test"), Candidate("d", None)]
    assert assign_splits(photos, ALL, 0.5, 0.0, 0)[0] == ["train", "val", "test", "train"]
    merged = parse_splits({"train": "train+val", "test": "test"})
    assert assign_splits(photos, merged, 0.5, 0.0, 0)[0] == ["train", "train", "test", "train"]
    only_train = parse_splits({"train": "train"})
    assert assign_splits(photos, only_train, 0.5, 0.0, 0)[0] == ["train", None, None, "train"]


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
