"""Noisy parts: near and far as promised, the same in every pack; what their queries say counts as written down."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bbu.geometry import cxcywh_to_xyxy
from bbu.losses.denoising import noisy_parts
from bbu.losses.detection_loss import Denoising, detection_sums
from bbu.losses.matcher import MatchCosts
from bbu.models.detection_head import BoxPrediction

COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def random_parts(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 4) cxcywh well inside the photo, so that noise is not cut off at its border."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(count, 2, generator=generator) * 0.1 + 0.02
    centres = torch.rand(count, 2, generator=generator) * 0.6 + 0.2
    return torch.cat((centres, sides), dim=-1)


@given(counts=COUNTS, groups=st.integers(1, 3))
def test_each_part_comes_near_and_far_in_every_group(counts: list[int], groups: int) -> None:
    parts = random_parts(sum(counts))
    noisy = noisy_parts(parts, counts, groups)
    assert [list(sizes) for sizes in noisy.hints.group_sizes] == [[2 * count] * groups for count in counts]
    assert len(noisy.hints.boxes) == 2 * groups * len(parts) == 2 * len(noisy.near)
    assert sorted(noisy.parts.tolist()) == sorted(list(range(len(parts))) * groups)
    edge = 0
    for first, count in zip(torch.tensor([0, *counts]).cumsum(0).tolist(), counts, strict=False):
        mine = (noisy.parts >= first) & (noisy.parts < first + count)
        rows = [edge + 2 * count * group + part for group in range(groups) for part in range(count)]
        assert (
            noisy.near[mine].tolist() == rows and noisy.parts[mine].tolist() == [*range(first, first + count)] * groups
        )
        edge += 2 * count * groups


def test_near_corners_move_by_up_to_half_a_side_and_far_ones_by_half_to_a_whole_one() -> None:
    parts = random_parts(400)
    noisy = noisy_parts(parts, [400], 1)
    assert noisy.near.tolist() == list(range(400))
    for boxes, low, high in ((noisy.hints.boxes[:400], 0.0, 0.5), (noisy.hints.boxes[400:], 0.5, 1.0)):
        corners, part = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(parts)
        sides = parts[:, 2:]
        # corners that have passed each other were put in order again: each coordinate came from one of the two
        moves = torch.stack([(corners - part).abs(), (corners - part[:, [2, 3, 0, 1]]).abs()]) / sides.repeat(1, 2)
        fits = ((moves > low - 1e-3) & (moves < high + 1e-3)).any(0)
        assert fits.all()
        assert moves[0].min() < low + 0.01 and moves[0].max() > high - 0.01  # the whole range is used


def test_noise_leaves_no_box_outside_the_photo_or_without_area() -> None:
    parts = torch.tensor([[0.02, 0.5, 0.04, 1.0], [0.99, 0.01, 0.02, 0.02], [0.5, 0.5, 1.0, 1.0]]).repeat(50, 1)
    boxes = noisy_parts(parts, [150], 2).hints.boxes
    corners = cxcywh_to_xyxy(boxes)
    assert corners.min() > -1e-3 and corners.max() < 1 + 1e-3 and boxes[:, 2:].min() > 0


def test_noise_is_spread_evenly_and_differs_from_part_to_part_and_group_to_group() -> None:
    parts = random_parts(1000)
    boxes = noisy_parts(parts, [1000], 2).hints.boxes.view(2, 2, 1000, 4)[:, 0]
    moves = (cxcywh_to_xyxy(boxes) - cxcywh_to_xyxy(parts)) / parts[:, 2:].repeat(1, 2)
    assert moves.mean(1).abs().max() < 0.05
    columns = moves.permute(0, 2, 1).reshape(8, 1000)
    correlation = torch.corrcoef(columns) - torch.eye(8)
    assert correlation.abs().max() < 0.12  # 8 columns, 3.8 standard errors


@given(counts=COUNTS)
def test_noise_does_not_depend_on_the_pack(counts: list[int]) -> None:
    parts = random_parts(sum(counts))
    together = noisy_parts(parts, counts, 2).hints.boxes
    alone = [noisy_parts(some, [len(some)], 2).hints.boxes for some in parts.split(counts)]
    assert torch.equal(together, torch.cat(alone))


def test_a_near_box_is_to_become_its_part_and_a_far_one_no_part() -> None:
    """One part, one group, one layer: worked out by hand, added to the terms of a layer without predictions."""
    part = torch.tensor([[0.4, 0.5, 0.4, 0.4]], dtype=torch.float64)
    noisy = noisy_parts(part, [1], 1)
    moved = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    logits = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    nothing = torch.zeros(1, 1, 0, 4, dtype=torch.float64)

    def sums(denoising: Denoising | None) -> torch.Tensor:
        found = detection_sums(
            nothing, nothing[..., 0], nothing[0, 0], nothing[0, 0, :, 0], [0], part, [1],
            costs=MatchCosts(), denoising=denoising,
        )  # fmt: skip
        return torch.stack([found.bbox_l1, found.bbox_giou, found.objectness])

    assert sums(None).tolist() == [0, 0, 0]
    # near: |0.6 − 0.5|² · ln 2; far: |0 − 0.75|² · −ln(1 − 0.75)
    objectness = 0.01 * math.log(2) + 0.5625 * math.log(4)
    one = sums(Denoising(noisy, [BoxPrediction(moved, logits)]))
    assert one.tolist() == pytest.approx([0.1, 1 - 0.3 / 0.5, objectness])
    two_layers = sums(Denoising(noisy, [BoxPrediction(moved, logits)] * 2))
    torch.testing.assert_close(two_layers, 2 * one)
    twice = noisy_parts(part, [1], 2)
    two_groups = sums(Denoising(twice, [BoxPrediction(moved.repeat(2, 1), logits.repeat(2))]))
    torch.testing.assert_close(two_groups, one)  # groups share one vote
