"""Box and objectness terms against hand-worked sums."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss
from transformers.loss.loss_deimv2 import Deimv2Loss

from bbu.geometry import cxcywh_to_xyxy, iou, iou_and_giou
from bbu.losses.detection_loss import _overlaps, detection_sums, matchability_aware_loss
from bbu.losses.matcher import MatchCosts, PredictionSet, hungarian_matcher

COSTS = MatchCosts()


def box(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_terms_of_one_target_equal_a_hand_worked_example() -> None:
    """One layer, one query, one target: the same square moved by a quarter of its side."""
    target, predicted = box(0.4, 0.5, 0.4, 0.4), box(0.5, 0.5, 0.4, 0.4)
    logit = torch.zeros((), dtype=torch.float64)
    sums = detection_sums(
        predicted[None, None, None], logit[None, None, None],
        torch.stack([target, box(0.9, 0.9, 0.1, 0.1)]), box(math.log(3), -20.0), [2], target[None], [1],
        costs=COSTS,
    )  # fmt: skip
    assert sums.bbox_l1.item() == pytest.approx(0.1)
    assert sums.bbox_giou.item() == pytest.approx(1 - 0.3 / 0.5)  # the hull is the union: GIoU = IoU = 0.6
    # layer: p = 0.5, so ln 2 for any target; matched proposal of quality 1: −ln 0.75; the other: almost 0
    assert sums.objectness.item() == pytest.approx(math.log(2) + math.log(4 / 3), abs=1e-9)
    assert (sums.final.samples.tolist(), sums.final.predictions.tolist(), sums.final.targets.tolist()) == (
        [0],
        [0],
        [0],
    )


def test_each_layer_and_the_proposals_are_matched_once() -> None:
    """Three layers of two queries and four proposals, one target."""
    target, near, far = box(0.5, 0.5, 0.2, 0.2), box(0.5, 0.5, 0.2, 0.3), box(0.5, 0.5, 0.2, 0.4)
    layers = torch.stack([torch.stack([far, near]), torch.stack([near, far]), torch.stack([far, near])])[:, None]
    proposals = torch.stack([near, far, near, far])
    low = torch.full((3, 1, 2), -30.0, dtype=torch.float64)
    sums = detection_sums(layers, low, proposals, low.new_full((4,), -30.0), [4], target[None], [1], costs=COSTS)
    nears = 3 + 1  # the near query of three layers; one of the near proposals
    assert sums.bbox_l1.item() == pytest.approx(0.1 * nears)
    assert sums.bbox_giou.item() == pytest.approx((1 - 2 / 3) * nears)
    # p = 0 and target q^1.5: 30 · q^1.5
    assert sums.objectness.item() == pytest.approx(30 * (2 / 3) ** 1.5 * nears, rel=1e-6)
    assert sums.final.predictions.tolist() == [1], "captions follow the final layer's matches"


def test_a_decoder_of_one_layer_works() -> None:
    target = box(0.5, 0.5, 0.2, 0.2)
    sums = detection_sums(
        target[None, None, None], torch.zeros(1, 1, 1), target[None], torch.zeros(1), [1], target[None], [1],
        costs=COSTS,
    )  # fmt: skip
    assert sums.bbox_l1.item() == 0
    assert sums.final.targets.tolist() == [0]


def test_giou_sum_equals_torchvisions() -> None:
    torch.manual_seed(0)
    predicted, targets = (torch.rand(6, 4, dtype=torch.float64) * 0.3 + 0.2 for _ in range(2))
    sums = detection_sums(
        predicted[None, None], torch.zeros(1, 1, 6), predicted[:1], torch.zeros(1), [1], targets, [6],
        costs=COSTS,
    )  # fmt: skip
    layer, proposal = hungarian_matcher(
        [
            PredictionSet(predicted[None, None], torch.zeros(1, 1, 6)),
            PredictionSet(predicted[None, None, :1], torch.zeros(1, 1, 1)),
        ],
        targets,
        [6],
        COSTS,
    )
    table = 1 - generalized_box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(targets))
    expected = table[layer.predictions, layer.targets].sum() + table[proposal.predictions, proposal.targets].sum()
    assert sums.bbox_giou.item() == pytest.approx(expected.item(), abs=1e-12)
    absolute = (predicted[layer.predictions] - targets[layer.targets]).abs().sum()
    absolute += (predicted[proposal.predictions] - targets[proposal.targets]).abs().sum()
    assert sums.bbox_l1.item() == pytest.approx(absolute.item(), abs=1e-12)


def test_overlaps_of_pairs_and_their_gradients_are_those_of_the_geometry() -> None:
    torch.manual_seed(1)
    centres, sides = torch.rand(2, 500, 2, dtype=torch.float64), torch.rand(2, 500, 2, dtype=torch.float64) * 0.5
    sides[0, :20] = 0  # flat, and some of the pairs far from each other
    boxes, targets = cxcywh_to_xyxy(torch.cat((centres, sides), -1))
    boxes.requires_grad_()
    slopes = torch.rand(2, 500, dtype=torch.float64)
    ours, theirs = (torch.stack(function(boxes, targets)) for function in (_overlaps, iou_and_giou))
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad((each * slopes).sum(), boxes)[0] for each in (ours, theirs)]
    torch.testing.assert_close(gradients[0][20:], gradients[1][20:], rtol=1e-12, atol=1e-12)


@given(st.lists(st.tuples(st.floats(-20, 20), st.booleans()), min_size=1, max_size=8))
def test_an_unmatched_score_has_the_focal_loss(pairs: list[tuple[float, bool]]) -> None:
    """Its value, that is; its gradient takes the weight as constant, as published."""
    logits = torch.tensor([logit for logit, _ in pairs], dtype=torch.float64)
    nothing = torch.zeros_like(logits)
    expected = sigmoid_focal_loss(logits, nothing, alpha=-1, gamma=1.5)
    found = matchability_aware_loss(logits, nothing, nothing.bool())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_matched_score_learns_its_boxs_quality_with_whole_weight() -> None:
    logits = torch.linspace(-6, 4, 1001, dtype=torch.float64, requires_grad=True)
    loss = matchability_aware_loss(logits, torch.full_like(logits, 0.7), torch.ones_like(logits, dtype=torch.bool))
    assert logits[loss.argmin()].sigmoid().item() == pytest.approx(0.7**1.5, abs=0.01)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, logits.sigmoid() - 0.7**1.5)  # as strong from a score near 0 as from any other


def test_the_objectness_loss_is_that_of_transformers_for_one_class() -> None:
    torch.manual_seed(3)
    boxes, logits = torch.rand(2, 7, 4) * 0.4 + 0.3, torch.randn(2, 7)
    targets = torch.rand(5, 4) * 0.4 + 0.3
    pairs = [(torch.tensor([4, 0, 2]), torch.tensor([0, 1, 2])), (torch.tensor([6, 1]), torch.tensor([0, 1]))]
    theirs = object.__new__(Deimv2Loss)
    vars(theirs).update(num_classes=1, gamma=1.5, mal_alpha=None)
    labels = [
        {"boxes": some, "class_labels": torch.zeros(len(some), dtype=torch.long)} for some in targets.split([3, 2])
    ]
    outputs = {"pred_boxes": boxes, "logits": logits[..., None]}
    expected = Deimv2Loss.loss_labels_mal(theirs, outputs, labels, pairs, num_boxes=1)["loss_mal"]
    quality, matched = torch.zeros(2, 7), torch.zeros(2, 7, dtype=torch.bool)
    for sample, ((rows, chosen), label) in enumerate(zip(pairs, labels, strict=True)):
        fits = iou(cxcywh_to_xyxy(boxes[sample, rows]), cxcywh_to_xyxy(label["boxes"][chosen]))
        quality[sample, rows], matched[sample, rows] = fits, True
    torch.testing.assert_close(matchability_aware_loss(logits, quality, matched).sum(), expected)


def test_a_photo_without_targets_trains_only_objectness() -> None:
    torch.manual_seed(0)
    boxes = torch.rand(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    objectness = torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True)
    proposals = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    sums = detection_sums(boxes, objectness, proposals, scores, [5], torch.zeros(0, 4), [0], costs=COSTS)
    assert sums.bbox_l1.item() == sums.bbox_giou.item() == 0
    expected = sum(
        matchability_aware_loss(some, torch.zeros_like(some), torch.zeros_like(some, dtype=torch.bool)).sum()
        for some in (objectness, scores)
    )
    assert sums.objectness.item() == pytest.approx(expected.item())
    for gradient in torch.autograd.grad(sums.bbox_l1 + sums.bbox_giou, (boxes, proposals), allow_unused=True):
        assert gradient is not None and gradient.abs().max() == 0


def test_padded_proposals_do_not_count() -> None:
    """Samples with different numbers of proposals give the sum of each alone."""
    torch.manual_seed(1)
    layers, scores = torch.rand(2, 2, 4, 4, dtype=torch.float64) * 0.4 + 0.3, torch.randn(2, 2, 4, dtype=torch.float64)
    proposals, logits = torch.rand(9, 4, dtype=torch.float64) * 0.4 + 0.3, torch.randn(9, dtype=torch.float64)
    targets = torch.rand(5, 4, dtype=torch.float64) * 0.4 + 0.3
    options = {"costs": COSTS}
    both = detection_sums(layers, scores, proposals, logits, [2, 7], targets, [3, 2], **options)
    one = detection_sums(layers[:, :1], scores[:, :1], proposals[:2], logits[:2], [2], targets[:3], [3], **options)
    two = detection_sums(layers[:, 1:], scores[:, 1:], proposals[2:], logits[2:], [7], targets[3:], [2], **options)
    for name in ("bbox_l1", "bbox_giou", "objectness"):
        total = getattr(one, name) + getattr(two, name)
        torch.testing.assert_close(getattr(both, name), total, rtol=1e-12, atol=1e-12)


def test_gradients_push_a_box_towards_its_target_but_not_through_its_quality() -> None:
    predicted = box(0.6, 0.5, 0.2, 0.2).requires_grad_()
    logit = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    sums = detection_sums(
        predicted[None, None, None], logit, predicted.detach()[None], torch.zeros(1), [1],
        box(0.5, 0.5, 0.2, 0.2)[None], [1], costs=COSTS,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(sums.bbox_l1 + sums.bbox_giou, predicted, retain_graph=True)
    assert gradient[0] > 0
    assert torch.autograd.grad(sums.objectness, predicted, allow_unused=True, retain_graph=True)[0] is None
