"""Sums of the box and objectness terms over all decoder layers, the proposals and the denoising queries.

Shapes: B samples, K decoder layers, N training targets, Q queries of one sample, R rows, S image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from bbu.geometry import cxcywh_to_xyxy, giou, iou
from bbu.layers.transfer import to_device
from bbu.losses.denoising import DenoisingTargets
from bbu.losses.matcher import MatchCosts, Matches, PredictionSet, hungarian_matcher
from bbu.models.detection_head import BoxPrediction

__all__ = ["Denoising", "DetectionSums", "detection_sums", "hungarian_matcher", "matchability_aware_loss"]

MATCHABILITY_GAMMA = 1.5  # as published


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
    """Denoising targets and each decoder layer's predictions (R,) for them. No matching: each query has its target."""

    targets: DenoisingTargets
    layers: Sequence[BoxPrediction]

    def predictions(self) -> PredictionSet:
        """The pack's denoising queries as if of one sample: boxes (K, 1, R, 4)."""
        boxes = torch.stack([layer.boxes for layer in self.layers])
        return PredictionSet(boxes[:, None], torch.stack([layer.objectness for layer in self.layers])[:, None])

    def matches(self) -> Matches:
        """The positives and their targets, in every layer."""
        positives, targets, count = self.targets.positives, self.targets.targets, len(self.layers)
        layers = np.repeat(np.arange(count), len(positives))
        host = np.stack([layers, np.zeros_like(layers), np.tile(positives, count), np.tile(targets, count)])
        return Matches.of(host, self.layers[0].boxes.device)


def matchability_aware_loss(logits: torch.Tensor, quality: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """Matchability-aware loss, elementwise (DEIM, Huang et al. 2025, arXiv:2412.04234).

    A matched query learns the score q^γ from the quality q of its box, which is what average precision ranks by, with
    whole weight: also one that fits badly and is scored low, as all are in the first steps. The others learn 0, with
    the focal weight p^γ.
    """
    target = quality**MATCHABILITY_GAMMA
    weight = torch.where(matched, 1.0, logits.detach().sigmoid() ** MATCHABILITY_GAMMA)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


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
    target_boxes_N4 = target_boxes_N4.to(layer_boxes_KBQ4.dtype)
    layers = PredictionSet(layer_boxes_KBQ4, layer_objectness_KBQ)
    boxes_BQ4, objectness_BQ = (  # zeros behind the samples with fewer proposals
        pad_sequence(rows.split(list(proposal_counts)), batch_first=True)
        for rows in (proposal_boxes_S4, proposal_objectness_S)
    )
    proposals = PredictionSet(boxes_BQ4[None], objectness_BQ[None], proposal_counts)
    layer_matches, proposal_matches = hungarian_matcher([layers, proposals], target_boxes_N4, target_counts, costs)
    of_layers = _sums(layers, layer_matches, target_boxes_N4)
    of_proposals = _sums(proposals, proposal_matches, target_boxes_N4)
    l1, overlap, objectness = (a + b for a, b in zip(of_layers, of_proposals, strict=True))
    if denoising is not None:
        shares_R = denoising.targets.shares_R
        of_denoising = _sums(denoising.predictions(), denoising.matches(), target_boxes_N4, shares_R)
        l1, overlap, objectness = (a + b for a, b in zip((l1, overlap, objectness), of_denoising, strict=True))
    return DetectionSums(l1, overlap, objectness, layer_matches.of_layer(len(layer_boxes_KBQ4) - 1))


def _sums(
    predicted: PredictionSet, matches: Matches, targets_N4: torch.Tensor, shares_Q: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L1, GIoU and objectness sums of one prediction set, by the share of each query; padded ones do not count."""
    where = (matches.layers, matches.samples, matches.predictions)
    boxes, targets = predicted.boxes[where], targets_N4[matches.targets]
    l1 = (boxes - targets).abs().sum(-1)
    corners, target_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets)
    overlap = 1 - giou(corners, target_corners)
    quality, matched = torch.zeros_like(predicted.objectness), torch.zeros_like(predicted.objectness, dtype=torch.bool)
    quality[where], matched[where] = iou(corners, target_corners).detach().clamp(0, 1).to(quality.dtype), True
    objectness = matchability_aware_loss(predicted.objectness, quality, matched)
    if predicted.counts is not None:
        counts_B1 = to_device(predicted.counts, objectness.device)[:, None]
        objectness = objectness * (torch.arange(objectness.shape[-1], device=objectness.device) < counts_B1)
    if shares_Q is not None:
        of_pairs = shares_Q[matches.predictions]
        l1, overlap, objectness = l1 * of_pairs, overlap * of_pairs, objectness * shares_Q
    return l1.sum(), overlap.sum(), objectness.sum()
