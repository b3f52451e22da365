"""Box and objectness terms of all decoder layers, of the proposals and of denoising, as sums.

Shape legend: K layers, B samples, Q predictions of a sample, N parts of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from bbu.geometry import cxcywh_to_xyxy, giou, iou
from bbu.layers.transfer import to_device
from bbu.losses.denoising import NoisyParts
from bbu.losses.matcher import MatchCosts, Matches, Round, hungarian_matcher
from bbu.models.detection_head import BoxPrediction

__all__ = ["Denoising", "DetectionSums", "detection_sums", "hungarian_matcher", "quality_focal_loss"]

FOCAL_GAMMA = 2.0


@dataclass
class DetectionSums:
    """Sums over parts, layers and proposals; divide each by the global number of parts.

    ``final`` holds the matches of the last decoder layer, whose captions are learned.
    """

    bbox_l1: torch.Tensor
    bbox_giou: torch.Tensor
    objectness: torch.Tensor
    final: Matches


@dataclass
class Denoising:
    """Parts with noise, and each decoder layer's prediction (hints,) for them. Who is whose is known: no matching."""

    noisy: NoisyParts
    layers: Sequence[BoxPrediction]

    def round(self) -> Round:
        """All hints of the pack as if of one sample: boxes (K, 1, hints, 4)."""
        boxes = torch.stack([layer.boxes for layer in self.layers])
        return Round(boxes[:, None], torch.stack([layer.objectness for layer in self.layers])[:, None])

    def matches(self) -> Matches:
        """Near boxes and their parts, in every layer."""
        near, parts, count = self.noisy.near, self.noisy.parts, len(self.layers)
        numbers = np.repeat(np.arange(count), len(near))
        host = np.stack([numbers, np.zeros_like(numbers), np.tile(near, count), np.tile(parts, count)])
        return Matches.of(host, self.layers[0].boxes.device)


def quality_focal_loss(logits: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """|q − p|² · cross-entropy, element by element (Li et al. 2020, arXiv:2006.04388).

    With quality 0 or 1 this is the focal loss (γ = 2, no α); in between, the score learns how well its box
    fits, which is what average precision ranks by.
    """
    distance = (quality - logits.sigmoid()).abs()
    return distance**FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def detection_sums(
    layer_boxes_KBQ4: torch.Tensor,
    layer_objectness_KBQ: torch.Tensor,
    proposal_boxes_S4: torch.Tensor,
    proposal_objectness_S: torch.Tensor,
    proposal_counts: Sequence[int],
    part_boxes_N4: torch.Tensor,
    part_counts: Sequence[int],
    *,
    costs: MatchCosts,
    names: Sequence[str] = (),
    denoising: Denoising | None = None,
) -> DetectionSums:
    """Match every layer and the proposals, then sum their terms and those of denoising.

    Layers and proposals alike are matched one to one: a part is named once, and offered once. Several good
    proposals of each part would take the places of parts that are rare and small (docs/convergence.md).

    Args:
        proposal_counts: image tokens of each sample; the proposals of all samples lie end to end.
        names: photos, for messages.
        denoising: what became of parts with noise; the terms of its groups together weigh as much as the layers'.
    """
    part_boxes_N4 = part_boxes_N4.to(layer_boxes_KBQ4.dtype)
    layers = Round(layer_boxes_KBQ4, layer_objectness_KBQ)
    proposals = Round(
        _pad(proposal_boxes_S4, proposal_counts)[None],
        _pad(proposal_objectness_S, proposal_counts)[None],
        counts=proposal_counts,
    )
    layer_matches, proposal_matches = hungarian_matcher([layers, proposals], part_boxes_N4, part_counts, costs, names)
    of_layers = _round_sums(layers, layer_matches, part_boxes_N4)
    of_proposals = _round_sums(proposals, proposal_matches, part_boxes_N4)
    l1, overlap, objectness = (a + b for a, b in zip(of_layers, of_proposals, strict=True))
    if denoising is not None:
        of_hints = _round_sums(denoising.round(), denoising.matches(), part_boxes_N4)
        shares = (term / denoising.noisy.groups for term in of_hints)
        l1, overlap, objectness = (a + b for a, b in zip((l1, overlap, objectness), shares, strict=True))
    return DetectionSums(l1, overlap, objectness, layer_matches.of_layer(len(layer_boxes_KBQ4) - 1))


def _round_sums(
    entry: Round, matches: Matches, parts_N4: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L1, GIoU and objectness sums of one round; padded predictions do not count."""
    where = (matches.layers, matches.samples, matches.predictions)
    boxes, parts = entry.boxes[where], parts_N4[matches.parts]
    l1 = (boxes - parts).abs().sum()
    corners, part_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(parts)
    overlap = (1 - giou(corners, part_corners)).sum()
    quality = torch.zeros_like(entry.objectness)
    quality[where] = iou(corners, part_corners).detach().clamp(0, 1).to(quality.dtype)
    objectness = quality_focal_loss(entry.objectness, quality)
    if entry.counts is not None:
        counts_B1 = to_device(entry.counts, objectness.device)[:, None]
        objectness = objectness * (torch.arange(objectness.shape[-1], device=objectness.device) < counts_B1)
    return l1, overlap, objectness.sum()


def _pad(rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(S, …) of all samples end to end → (B, most, …), zeros behind."""
    return torch.nn.utils.rnn.pad_sequence(rows.split(list(counts)), batch_first=True)
