"""Near pairs: the same as comparing all pairs, at a size where that is still possible, and fast where it is not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.doctor.copies import NEAR_DUPLICATE_BITS, near_pairs


def flipped(random: np.random.Generator, value: int, bits: int) -> int:
    for bit in random.choice(64, bits, replace=False):
        value ^= 1 << int(bit)
    return value


@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(0, 7))
def test_the_pairs_are_those_of_comparing_all_with_all(seed: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    bases = [int(value) for value in random.integers(0, 2**64, 8, dtype=np.uint64)]
    hashes = list(dict.fromkeys(flipped(random, base, n) for base in bases for n in range(10)))
    expected = [
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= bits
    ]
    assert near_pairs(np.array(hashes, dtype=np.uint64), bits) == expected


def test_bits_spread_over_all_pieces_are_found() -> None:
    spread = sum(1 << (16 * piece + 3) for piece in range(4))  # the hardest case: one bit in every piece
    assert near_pairs(np.array([0, spread], dtype=np.uint64)) == [(0, 1)]
    assert near_pairs(np.array([0, spread | 1], dtype=np.uint64)) == []


def test_more_bits_than_the_pieces_can_find_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 7"):
        near_pairs(np.zeros(2, dtype=np.uint64), 8)


def test_a_hundred_thousand_photos_take_seconds() -> None:
    random = np.random.default_rng(3)
    hashes = random.integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[1::1000] = [flipped(random, int(value), NEAR_DUPLICATE_BITS) for value in hashes[::1000]]
    started = time.process_time()
    found = near_pairs(hashes)
    assert time.process_time() - started < 30
    assert found == [(n, n + 1) for n in range(0, 100_000, 1000)]
