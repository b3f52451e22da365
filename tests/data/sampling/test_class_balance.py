"""Captions of rare descriptions weigh more; the term as a whole weighs the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.data.sampling.class_balance import caption_weights
from bbu.records import ObjectRow, Row

betas = st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 0.99999])


def rows_of(counts: dict[str, int]) -> list[Row]:
    """A photo for each description, with so many objects of it."""
    return [
        Row((f"{desc}.png",), (ObjectRow(desc, "bbox_2d", (0.0, 0.0, 9.0, 9.0)),) * count, 9, 9)
        for desc, count in counts.items()
    ]


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 300), max_size=6), betas)
def test_the_mean_weight_of_a_target_is_one_and_rarer_is_never_less(counts: dict[str, int], beta: float) -> None:
    found = caption_weights(rows_of(counts), beta)
    assert found.keys() == counts.keys()
    assert sum(found[desc] * count for desc, count in counts.items()) == pytest.approx(sum(counts.values()))
    for desc, count in counts.items():
        assert all(found[desc] >= found[other] for other in counts if counts[other] >= count)
        assert all(found[desc] == found[other] for other in counts if counts[other] == count)


def test_beta_leads_from_equal_weights_to_inverse_frequency() -> None:
    counts = {"tight": 475, "loose": 8}
    ratios = [
        found["loose"] / found["tight"]
        for found in (caption_weights(rows_of(counts), beta) for beta in (0.0, 0.9, 0.99, 0.99999))
    ]
    assert ratios[0] == 1.0 and sorted(ratios) == ratios
    assert ratios[1] == pytest.approx((1 - 0.9**475) / (1 - 0.9**8))  # the effective number of samples
    assert ratios[-1] == pytest.approx(475 / 8, rel=0.01)


def test_equal_weights_are_exactly_one_and_no_rows_have_none() -> None:
    rows = rows_of({"a": 3, "b": 7})
    assert caption_weights(rows, 0.0) == {"a": 1.0, "b": 1.0}
    assert caption_weights([], 0.9) == {}
