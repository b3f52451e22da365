"""Denoising queries: bounds of the noise, independence of the pack, and their loss terms against hand-worked sums."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bbu.geometry import cxcywh_to_xyxy
from bbu.losses.denoising import denoising_groups, denoising_targets
from bbu.losses.detection_loss import Denoising, detection_sums
from bbu.losses.matcher import MatchCosts
from bbu.models.detection_head import BoxPrediction

COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def random_targets(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 4) cxcywh well inside the photo, so that noise is not cut off at its border."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(count, 2, generator=generator) * 0.1 + 0.02
    centres = torch.rand(count, 2, generator=generator) * 0.6 + 0.2
    return torch.cat((centres, sides), dim=-1)


def salts(counts: list[int]) -> list[int]:
    return [7 * number for number in range(len(counts))]


@given(targets=st.integers(0, 200), queries=st.integers(1, 300))
def test_a_sample_has_as_many_whole_groups_as_make_the_wanted_queries_and_at_least_one(
    targets: int, queries: int
) -> None:
    groups = denoising_groups(targets, queries)
    if targets == 0:
        assert groups == 0
    elif 2 * targets > queries:
        assert groups == 1
    else:
        assert 2 * targets * groups <= queries < 2 * targets * (groups + 1)


@given(counts=COUNTS, queries=st.integers(1, 40))
def test_each_target_has_a_positive_and_a_negative_in_every_group(counts: list[int], queries: int) -> None:
    targets = random_targets(sum(counts))
    noisy = denoising_targets(targets, counts, queries, salts(counts))
    numbers = [denoising_groups(count, queries) for count in counts]
    sizes = [[2 * count] * groups for count, groups in zip(counts, numbers, strict=True)]
    assert [list(of_sample) for of_sample in noisy.queries.group_sizes] == sizes
    assert len(noisy.queries.boxes) == sum(sum(of_sample) for of_sample in sizes) == 2 * len(noisy.positives)
    start = 0
    firsts = torch.tensor([0, *counts]).cumsum(0).tolist()
    for first, count, groups in zip(firsts, counts, numbers, strict=False):
        shares = noisy.shares_R[start : start + 2 * count * groups]
        assert shares.sum() == pytest.approx(2 * count)  # a target weighs the same in any sample
        mine = (noisy.targets >= first) & (noisy.targets < first + count)
        rows = [start + 2 * count * group + target for group in range(groups) for target in range(count)]
        assert (
            noisy.positives[mine].tolist() == rows
            and noisy.targets[mine].tolist() == [*range(first, first + count)] * groups
        )
        start += 2 * count * groups


def test_corners_of_positives_move_by_up_to_half_a_side_and_of_negatives_by_half_to_a_whole_one() -> None:
    targets = random_targets(400)
    noisy = denoising_targets(targets, [400], 800, [5])
    assert noisy.positives.tolist() == list(range(400))
    for boxes, low, high in ((noisy.queries.boxes[:400], 0.0, 0.5), (noisy.queries.boxes[400:], 0.5, 1.0)):
        corners, target = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets)
        sides = targets[:, 2:]
        # corners that have passed each other were put in order again: each coordinate came from one of the two
        moves = torch.stack([(corners - target).abs(), (corners - target[:, [2, 3, 0, 1]]).abs()]) / sides.repeat(1, 2)
        fits = ((moves > low - 1e-3) & (moves < high + 1e-3)).any(0)
        assert fits.all()
        assert moves[0].min() < low + 0.01 and moves[0].max() > high - 0.01  # the whole range is used


def test_noise_leaves_no_box_outside_the_photo_or_without_area() -> None:
    targets = torch.tensor([[0.02, 0.5, 0.04, 1.0], [0.99, 0.01, 0.02, 0.02], [0.5, 0.5, 1.0, 1.0]]).repeat(50, 1)
    boxes = denoising_targets(targets, [150], 600, [5]).queries.boxes
    corners = cxcywh_to_xyxy(boxes)
    assert corners.min() > -1e-3 and corners.max() < 1 + 1e-3 and boxes[:, 2:].min() > 0


def test_noise_is_uniform_and_uncorrelated_between_targets_and_groups() -> None:
    targets = random_targets(1000)
    boxes = denoising_targets(targets, [1000], 4000, [5]).queries.boxes.view(2, 2, 1000, 4)[:, 0]
    moves = (cxcywh_to_xyxy(boxes) - cxcywh_to_xyxy(targets)) / targets[:, 2:].repeat(1, 2)
    assert moves.mean(1).abs().max() < 0.05
    columns = moves.permute(0, 2, 1).reshape(8, 1000)
    correlation = torch.corrcoef(columns) - torch.eye(8)
    assert correlation.abs().max() < 0.12  # 8 columns, 3.8 standard errors


@given(counts=COUNTS)
def test_noise_does_not_depend_on_the_pack(counts: list[int]) -> None:
    targets = random_targets(sum(counts))
    together = denoising_targets(targets, counts, 20, salts(counts)).queries.boxes
    alone = [
        denoising_targets(some, [len(some)], 20, [salt]).queries.boxes
        for some, salt in zip(targets.split(counts), salts(counts), strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_another_salt_draws_other_noise_from_the_same_distribution() -> None:
    """The same photo in the next epoch: its targets meet other noisy boxes."""
    targets = random_targets(1000)
    one, other = (denoising_targets(targets, [1000], 2000, [salt]).queries.boxes[:1000] for salt in (5, 6))
    moves = [(cxcywh_to_xyxy(boxes) - cxcywh_to_xyxy(targets)) / targets[:, 2:].repeat(1, 2) for boxes in (one, other)]
    correlation = torch.corrcoef(torch.cat(moves, dim=1).T)[:4, 4:]
    assert correlation.abs().max() < 0.12
    assert abs(moves[0].std() - moves[1].std()) < 0.02


@given(counts=COUNTS, queries=st.integers(1, 40))
def test_sample_and_group_of_each_positive(counts: list[int], queries: int) -> None:
    noisy = denoising_targets(random_targets(sum(counts)), counts, queries, salts(counts))
    rows = [size for sizes in noisy.queries.group_sizes for size in sizes]
    owners = [(number, group) for number, sizes in enumerate(noisy.queries.group_sizes) for group in range(len(sizes))]
    expected = [owner for owner, size in zip(owners, rows, strict=True) for _ in range(size)]
    found = list(zip(noisy.samples.tolist(), noisy.group_numbers.tolist(), strict=True))
    assert found == [expected[row] for row in noisy.positives.tolist()]


def test_a_positive_learns_its_target_and_a_negative_learns_background() -> None:
    """One target, one group, one layer: worked out by hand, added to the terms of a layer without predictions."""
    target = torch.tensor([[0.4, 0.5, 0.4, 0.4]], dtype=torch.float64)
    noisy = denoising_targets(target, [1], 2, [0])
    moved = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    logits = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    nothing = torch.zeros(1, 1, 0, 4, dtype=torch.float64)

    def sums(denoising: Denoising | None) -> torch.Tensor:
        found = detection_sums(
            nothing, nothing[..., 0], nothing[0, 0], nothing[0, 0, :, 0], [0], target, [1],
            costs=MatchCosts(), denoising=denoising,
        )  # fmt: skip
        return torch.stack([found.bbox_l1, found.bbox_giou, found.objectness])

    assert sums(None).tolist() == [0, 0, 0]
    # positive: binary cross-entropy of p = 0.5, which is ln 2 for any target; negative: 0.75^1.5 · −ln(1 − 0.75)
    objectness = math.log(2) + 0.75**1.5 * math.log(4)
    one = sums(Denoising(noisy, BoxPrediction(moved[None], logits[None])))
    assert one.tolist() == pytest.approx([0.1, 1 - 0.3 / 0.5, objectness])
    two_layers = sums(Denoising(noisy, BoxPrediction(moved.repeat(2, 1, 1), logits.repeat(2, 1))))
    torch.testing.assert_close(two_layers, 2 * one)
    twice = denoising_targets(target, [1], 4, [0])
    two_groups = sums(Denoising(twice, BoxPrediction(moved.repeat(1, 2, 1), logits.repeat(1, 2))))
    torch.testing.assert_close(two_groups, one)  # the groups share one weight
