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

from bbu.geometry import cxcywh_to_xyxy, iou_and_giou
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
    parts = [_Part(layers, layer_matches), _Part(proposals, proposal_matches)]
    if denoising is not None:
        parts.append(_Part(denoising.predictions(), denoising.matches(), denoising.targets.shares_R))
    sums = _sums(parts, target_boxes_N4)
    return DetectionSums(*sums, layer_matches.of_layer(len(layer_boxes_KBQ4) - 1))


@dataclass
class _Part:
    """A prediction set with its matches, and the share that each query weighs; None = 1."""

    predicted: PredictionSet
    matches: Matches
    shares_Q: torch.Tensor | None = None

    @property
    def rows(self) -> np.ndarray:
        """Of the matched pairs among all predictions of the set, layer by layer and sample by sample."""
        layers, samples, predictions, _ = self.matches.host
        _, batch, queries = self.predicted.objectness.shape
        return np.asarray((layers * batch + samples) * queries + predictions)

    @property
    def weights(self) -> torch.Tensor:
        """Weight of every prediction of the set: its query's share, 0 behind the end of a sample."""
        scores_KBQ, counts = self.predicted.objectness, self.predicted.counts
        if self.shares_Q is not None:
            return self.shares_Q.to(scores_KBQ.dtype).expand_as(scores_KBQ).flatten()
        if counts is None:
            return torch.ones_like(scores_KBQ).flatten()
        real_BQ = np.arange(scores_KBQ.shape[-1]) < np.asarray(counts)[:, None]
        return to_device(real_BQ, scores_KBQ.device, scores_KBQ.dtype).expand_as(scores_KBQ).flatten()


def _sums(parts: Sequence[_Part], targets_N4: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L1, GIoU and objectness sums of prediction sets, all of them in one pass."""
    device, sizes = targets_N4.device, [part.predicted.objectness.numel() for part in parts]
    firsts = np.cumsum([0, *sizes])
    rows = np.concatenate([first + part.rows for first, part in zip(firsts, parts, strict=False)])
    is_matched = np.zeros(firsts[-1], dtype=bool)
    is_matched[rows] = True
    rows_R, matched = to_device(rows, device), to_device(is_matched, device)
    logits = torch.cat([part.predicted.objectness.flatten() for part in parts])
    weights = torch.cat([part.weights for part in parts])
    boxes = torch.cat([part.predicted.boxes.flatten(0, 2) for part in parts]).index_select(0, rows_R)
    targets = targets_N4.index_select(0, torch.cat([part.matches.targets for part in parts]))
    shares, generalised = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
    quality = torch.zeros_like(logits).index_copy(0, rows_R, shares.detach().clamp(0, 1).to(logits.dtype))
    of_pairs = weights.index_select(0, rows_R)
    l1 = ((boxes - targets).abs().sum(-1) * of_pairs).sum()
    overlap = ((1 - generalised) * of_pairs).sum()
    return l1, overlap, (matchability_aware_loss(logits, quality, matched) * weights).sum()
