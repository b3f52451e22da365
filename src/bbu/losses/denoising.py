"""Denoising queries: noisy copies of the targets, from which extra queries start in training.

Early in training, matching hands a query another target at every step. A denoising query knows its target from the
start, so the decoder learns to refine boxes at once (DN-DETR, Li et al. 2022, arXiv:2203.01305). Each target appears
as a pair: a positive near it, to be refined to the target, and a negative further off, to be scored as background
(DINO, Zhang et al. 2022, arXiv:2203.03605).

The noise is drawn anew in each step, as both papers do: it is a hash of the target's box and of the sample's salt,
which follows from seed and stream position. So it is the same however samples are packed and spread over ranks, on
every device and after a resume.

Shapes: N training targets, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bbu.geometry import cxcywh_to_xyxy, xyxy_to_cxcywh
from bbu.layers.transfer import to_device
from bbu.models.detection_head import DenoisingQueries

LEAST_SIDE = 1e-3  # of the photo
LOW_BITS = 2**32 - 1
CPU = torch.device("cpu")


@dataclass
class DenoisingTargets:
    """Denoising queries and the targets of the positive ones.

    Args:
        queries: R boxes; a group of a sample holds its positives, then its negatives, both in the order of targets.
        positives, targets: row and target of each positive, on the host. All other rows are negatives.
        samples, group_numbers: sample and group of each positive, on the host.
        shares_R: weight of each query, on the host: 1 / (groups of its sample), so that every target weighs the same.
    """

    queries: DenoisingQueries
    positives: np.ndarray
    targets: np.ndarray
    samples: np.ndarray
    group_numbers: np.ndarray
    shares_R: np.ndarray


def denoising_groups(targets: int, queries: int) -> int:
    """Groups of a sample with so many targets: as many as ``queries`` denoising queries make, but at least one."""
    return max(1, queries // (2 * targets)) if targets else 0


def denoising_targets(
    target_boxes_N4: np.ndarray | torch.Tensor,
    target_counts: Sequence[int],
    queries: int,
    salts: Sequence[int],
    device: torch.device = CPU,
) -> DenoisingTargets:
    """Groups of a positive and a negative for every target.

    The fewer targets a sample has, the more groups (as in DINO): a photo of two targets teaches the decoder as many
    boxes as one of twenty. All is reckoned on the host; the boxes then go to the device.

    Args:
        target_boxes_N4: cxcywh in [0, 1], samples end to end, on the host.
        target_counts: targets of each sample.
        queries: of each sample, about; at least a group.
        salts: of each sample, 32 bits.
        device: of the queries.
    """
    boxes_N4, counts = np.asarray(target_boxes_N4), np.asarray(target_counts)
    firsts = np.cumsum([0, *target_counts])
    groups = np.array([denoising_groups(count, queries) for count in target_counts], dtype=np.int64)
    rows = 2 * groups * counts
    sample = np.repeat(np.arange(len(counts)), rows)  # of each row
    group, place = np.divmod(np.arange(len(sample)) - (np.cumsum(rows) - rows)[sample], 2 * counts[sample])
    negative = (place >= counts[sample]).astype(np.int64)
    targets = firsts[sample] + place % counts[sample]
    boxes_R4 = boxes_N4[targets]
    draws_R4 = _draw(boxes_R4, np.asarray(salts, dtype=np.int64)[sample], 2 * group + negative)
    noisy_R4 = to_device(_add_noise(boxes_R4, negative[:, None].astype(boxes_R4.dtype), draws_R4), device)
    sizes = [[2 * count] * number for count, number in zip(target_counts, groups.tolist(), strict=True)]
    positives = np.flatnonzero(negative == 0)
    owners = targets[positives], sample[positives], group[positives]
    return DenoisingTargets(DenoisingQueries(noisy_R4, sizes), positives, *owners, 1 / groups[sample])


def _add_noise(boxes_R4: np.ndarray, is_negative_R1: np.ndarray, draws_R4: np.ndarray) -> np.ndarray:
    """Move both corners of each box by up to half a side, those of negatives by half a side to a whole one."""
    signs = np.where(draws_R4 < 0.5, -1, 1).astype(boxes_R4.dtype)
    reach = 2 * draws_R4 % 1 + is_negative_R1
    corners = (cxcywh_to_xyxy(boxes_R4) + signs * reach * np.tile(boxes_R4[:, 2:], 2) / 2).clip(0, 1)
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
    noisy_R4: np.ndarray = xyxy_to_cxcywh(np.concatenate((low, high), axis=-1))
    noisy_R4[:, 2:] = noisy_R4[:, 2:].clip(min=LEAST_SIDE)
    return noisy_R4


def _draw(boxes_R4: np.ndarray, salts_R: np.ndarray, numbers_R: np.ndarray) -> np.ndarray:
    """(R, 4) pseudo-random numbers in [0, 1), a hash of each row's box, its sample's salt and its number."""
    state_R = _mixed(salts_R) ^ numbers_R
    finite_R4 = np.where(np.isfinite(boxes_R4), boxes_R4, 0).astype(np.float64)  # others have no whole number
    for coordinate_R in (finite_R4 * 2**31).astype(np.int64).T:
        state_R = _mixed(state_R ^ coordinate_R)
    return (_mixed(state_R[:, None] + np.arange(4)) >> 8).astype(boxes_R4.dtype) / 2**24


def _mixed(state: np.ndarray) -> np.ndarray:
    """Mix 32 bits so that each depends on all of them (the finalizer of MurmurHash3, Appleby 2011)."""
    state = state & LOW_BITS
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = ((state ^ (state >> shift)) * factor) & LOW_BITS  # a product of 64 bits wraps; its low half is right
    return state ^ (state >> 16)
