"""Sums of the box and objectness terms over all decoder layers, the proposals and the denoising queries.

Shapes: B samples, K decoder layers, N training targets, Q queries of one sample, R rows, S image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from bbu.geometry import cxcywh_to_xyxy
from bbu.layers.transfer import to_device, together
from bbu.losses.denoising import DenoisingTargets
from bbu.losses.matcher import MatchCosts, Matches, Matching, PredictionSet, begin_matching, hungarian_matcher
from bbu.models.detection_head import BoxPrediction

__all__ = ["Denoising", "DetectionSums", "detection_sums", "hungarian_matcher", "matchability_aware_loss"]

MATCHABILITY_GAMMA = 1.5  # as published
LEAST_AREA = 1e-12  # divided by


@dataclass
class DetectionSums:
    """Sums over targets, layers and proposals; divide each by the global number of targets.

    ``final`` holds the matches of the last decoder layer, which the caption loss uses.
    """

    bbox_l1: torch.Tensor
    bbox_giou: torch.Tensor
    objectness: torch.Tensor
    final: Matches


@dataclass
class Denoising:
    """Denoising targets and the decoder layers' predictions (K, R) for them. No matching: each query has its target."""

    targets: DenoisingTargets
    layers: BoxPrediction

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the positives among the K · R predictions, and their targets."""
        layers, queries = self.layers.objectness.shape
        rows = np.arange(layers)[:, None] * queries + self.targets.positives
        return rows.ravel(), np.tile(self.targets.targets, layers)

    @property
    def weights(self) -> np.ndarray:
        """Of the K · R predictions: their query's share."""
        return np.tile(self.targets.shares_R, len(self.layers.objectness))


def matchability_aware_loss(logits: torch.Tensor, quality: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """Matchability-aware loss, elementwise (DEIM, Huang et al. 2025, arXiv:2412.04234).

    A matched query learns the score q^γ from the quality q of its box, which is what average precision ranks by, with
    whole weight: also one that fits badly and is scored low, as all are in the first steps. The others learn 0, with
    the focal weight p^γ.
    """
    target = quality**MATCHABILITY_GAMMA
    weight = torch.where(matched, 1.0, logits.detach().sigmoid() ** MATCHABILITY_GAMMA)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


@dataclass
class PendingSums:
    """``detection_sums`` of which the matching has begun: see there for the arguments."""

    layers: BoxPrediction
    proposals: BoxPrediction
    proposal_counts: Sequence[int]
    targets_N4: torch.Tensor
    matching: Matching
    denoising: Denoising | None

    def finish(self) -> DetectionSums:
        """Wait for the matching, then sum."""
        layer_matches, proposal_matches = self.matching.finish()
        layers, samples, predictions, targets = layer_matches.host
        count, batch, queries = self.layers.objectness.shape
        proposed = proposal_matches.host
        firsts = np.cumsum([0, *self.proposal_counts])
        parts = [
            _Part(self.layers, ((layers * batch + samples) * queries + predictions, targets)),
            _Part(self.proposals, (firsts[proposed[1]] + proposed[2], proposed[3])),
        ]
        if self.denoising is not None:
            parts.append(_Part(self.denoising.layers, self.denoising.pairs, self.denoising.weights))
        return DetectionSums(*_sums(parts, self.targets_N4), layer_matches.of_layer(count - 1))


def detection_sums(
    layer_boxes_KBQ4: torch.Tensor,
    layer_objectness_KBQ: torch.Tensor,
    proposal_boxes_S4: torch.Tensor,
    proposal_objectness_S: torch.Tensor,
    proposal_counts: Sequence[int],
    target_boxes_N4: torch.Tensor,
    target_counts: Sequence[int],
    *,
    costs: MatchCosts,
    denoising: Denoising | None = None,
) -> DetectionSums:
    """Match every layer and the proposals, then sum their terms and those of the denoising queries.

    Proposals are matched one to one, as the layers are: with several good proposals per target, frequent and large
    targets would crowd the rare and small ones out of the queries (docs/convergence.md).

    Args:
        proposal_counts: image tokens of each sample; proposals lie end to end.
        denoising: predictions for the denoising queries; the groups of a sample together weigh as much as the layers.
    """
    layers = BoxPrediction(layer_boxes_KBQ4, layer_objectness_KBQ)
    proposals = BoxPrediction(proposal_boxes_S4, proposal_objectness_S)
    return begin_sums(layers, proposals, proposal_counts, target_boxes_N4, target_counts, costs, denoising).finish()


def begin_sums(
    layers: BoxPrediction,
    proposals: BoxPrediction,
    proposal_counts: Sequence[int],
    target_boxes_N4: torch.Tensor,
    target_counts: Sequence[int],
    costs: MatchCosts,
    denoising: Denoising | None = None,
) -> PendingSums:
    """The first half of ``detection_sums``: queue the matching costs and their transfer, and wait for nothing."""
    targets_N4 = target_boxes_N4.to(layers.boxes.dtype)
    sets = [PredictionSet(layers.boxes, layers.objectness), _by_sample(proposals, proposal_counts)]
    matching = begin_matching(sets, targets_N4, target_counts, costs)
    return PendingSums(layers, proposals, proposal_counts, targets_N4, matching, denoising)


def _by_sample(proposals: BoxPrediction, counts: Sequence[int]) -> PredictionSet:
    """Proposals (S,) as one layer (1, B, most proposals) for the matching; any pad the samples with fewer."""
    starts, places = np.cumsum([0, *counts])[:-1, None], np.arange(max(counts))
    rows = np.where(places < np.asarray(counts)[:, None], starts + places, 0)
    found = proposals.detached().at(to_device(rows.ravel(), proposals.objectness.device))
    return PredictionSet(found.boxes.view(1, *rows.shape, 4), found.objectness.view(1, *rows.shape), counts)


@dataclass
class _Part:
    """Predictions, the rows of the matched ones and their targets, and what each prediction weighs; None = 1."""

    predicted: BoxPrediction
    pairs: tuple[np.ndarray, np.ndarray]
    weights: np.ndarray | None = None


def _sums(parts: Sequence[_Part], targets_N4: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L1, GIoU and objectness sums of prediction sets, all of them in one pass."""
    device, sizes = targets_N4.device, [part.predicted.objectness.numel() for part in parts]
    firsts = np.cumsum([0, *sizes])
    rows = np.concatenate([first + part.pairs[0] for first, part in zip(firsts, parts, strict=False)])
    weights = np.concatenate(
        [np.ones(size) if part.weights is None else part.weights for size, part in zip(sizes, parts, strict=True)]
    )
    is_matched = np.zeros(firsts[-1], dtype=bool)
    is_matched[rows] = True
    of_pairs, of_all = together([weights[rows], weights], device, targets_N4.dtype)
    rows_R, chosen_R = to_device(np.stack((rows, np.concatenate([part.pairs[1] for part in parts]))), device)
    logits = torch.cat([part.predicted.objectness.flatten() for part in parts])
    boxes = torch.cat([part.predicted.boxes.reshape(-1, 4) for part in parts]).index_select(0, rows_R)
    targets = targets_N4.index_select(0, chosen_R)
    shares, generalised = _overlaps(*cxcywh_to_xyxy(torch.stack((boxes, targets))).unbind())
    quality = torch.zeros_like(logits).index_copy(0, rows_R, shares.detach().clamp(0, 1).to(logits.dtype))
    l1 = ((boxes - targets).abs().sum(-1) * of_pairs).sum()
    overlap = ((1 - generalised) * of_pairs).sum()
    scores = matchability_aware_loss(logits, quality, to_device(is_matched, device))
    return l1, overlap, (scores * of_all).sum()


def _overlaps(a_R4: torch.Tensor, b_R4: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``geometry.iou_and_giou`` of pairs of boxes, in a third of the operations: four areas at a time.

    ``where``, ``relu`` and ``threshold`` have shorter backward passes than maximum and clamp; where two coordinates
    are equal, all of the gradient goes to the first box.
    """
    is_higher = a_R4 >= b_R4
    boxes = a_R4, b_R4, torch.where(is_higher, a_R4, b_R4), torch.where(is_higher, b_R4, a_R4)
    (a, a_end), (b, b_end), (inner, outer_end), (outer, inner_end) = (each.chunk(2, dim=-1) for each in boxes)
    starts, ends = torch.stack((a, b, inner, outer)), torch.stack((a_end, b_end, inner_end, outer_end))
    width, height = (ends - starts).relu().unbind(-1)
    area_a, area_b, intersection, hull = (width * height).unbind()
    union, hull = area_a + area_b - intersection, F.threshold(hull, LEAST_AREA, LEAST_AREA)
    shares = intersection / F.threshold(union, LEAST_AREA, LEAST_AREA)
    return shares, shares - (hull - union) / hull
