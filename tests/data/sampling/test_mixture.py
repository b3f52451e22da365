"""Photos and conversations: where each stands is a function of (seed, position), with the share kept everywhere."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.data.sampling.mixture import BLOCK, Mixture, Place

SHARES = st.floats(0.01, 0.9)
CONVERSATIONS = st.integers(1, 40)
SEEDS = st.integers(0, 99)


def places(share: float, conversations: int, seed: int, count: int = 6 * BLOCK) -> list[Place]:
    mixture = Mixture(share, conversations, seed)
    return [mixture.at(position) for position in range(count)]


@given(SHARES, CONVERSATIONS, SEEDS)
def test_photos_come_in_their_order_with_conversations_between(share: float, conversations: int, seed: int) -> None:
    photos = 0
    for place in places(share, conversations, seed):
        assert place.photos == photos
        photos += place.conversation is None


@given(SHARES, CONVERSATIONS, SEEDS, st.integers(1, 6))
def test_the_share_is_kept_from_block_to_block(share: float, conversations: int, seed: int, blocks: int) -> None:
    replayed = [place.conversation is not None for place in places(share, conversations, seed)]
    assert abs(sum(replayed[: blocks * BLOCK]) - share * blocks * BLOCK) < 1


@given(SHARES, CONVERSATIONS, SEEDS)
def test_all_conversations_come_once_before_any_comes_again(share: float, conversations: int, seed: int) -> None:
    shown = [place.conversation for place in places(share, conversations, seed) if place.conversation is not None]
    for start in range(0, len(shown), conversations):
        turn = Counter(shown[start : start + conversations])
        assert max(turn.values()) == 1 and set(turn) <= set(range(conversations))


@given(SHARES, CONVERSATIONS, SEEDS, st.lists(st.integers(0, 6 * BLOCK - 1), max_size=30))
def test_a_position_holds_the_same_in_whatever_order_it_is_asked(
    share: float, conversations: int, seed: int, asked: list[int]
) -> None:
    whole, mixture = places(share, conversations, seed), Mixture(share, conversations, seed)
    assert [mixture.at(position) for position in asked] == [whole[position] for position in asked]


def test_another_seed_mixes_otherwise_and_so_does_another_block() -> None:
    first, second = ([p.conversation is None for p in places(0.5, 9, seed)] for seed in (1, 2))
    assert first != second and first[:BLOCK] != first[BLOCK : 2 * BLOCK]


@pytest.mark.parametrize("position", [0, 5, 10**9])
def test_without_a_share_every_position_is_the_photos(position: int) -> None:
    assert Mixture(0.0, 0, 3).at(position) == Place(position)
