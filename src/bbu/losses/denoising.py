"""Parts with noise, from which some queries start in training and learn to find the parts again.

The head's own queries start nowhere near a part at first, and matching gives each of them another part at every step.
These know their part from the start, so the decoder learns to refine boxes at once (DN-DETR, Li et al. 2022,
arXiv:2203.01305). Every part is shown as a pair: a box near it, which is to become the part, and one further off, which
is to be called no part (DINO, Zhang et al. 2022, arXiv:2203.03605).

The noise is a hash of the part's own box: another one in every random view of a photo, the same one however samples are
packed and spread, on every device and after a resume.

Shape legend: N parts of all samples, R noisy boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bbu.geometry import cxcywh_to_xyxy, xyxy_to_cxcywh
from bbu.layers.transfer import to_device
from bbu.models.detection_head import Hints

LEAST_SIDE = 1e-3  # of the photo
LOW_BITS = 2**32 - 1


@dataclass
class NoisyParts:
    """What goes into the model, and what is to come out.

    Args:
        hints: R boxes, in each group of a sample first the near ones and then the far ones, both in the order of parts.
        near, parts: rows of the near ones and the part of each, on the host.
        groups: how often each part is shown.
    """

    hints: Hints
    near: np.ndarray
    parts: np.ndarray
    groups: int


def noisy_parts(part_boxes_N4: torch.Tensor, part_counts: Sequence[int], groups: int) -> NoisyParts:
    """``groups`` pairs of a near and a far box for every part.

    Args:
        part_boxes_N4: cxcywh in [0, 1], samples end to end.
    """
    firsts = np.cumsum([0, *part_counts])
    parts, far, group = (
        np.concatenate([np.zeros(0, dtype=np.int64), *columns])
        for columns in zip(
            *(_rows_of_sample(first, count, groups) for first, count in zip(firsts, part_counts, strict=False)),
            strict=True,
        )
    )
    device = part_boxes_N4.device
    boxes_R4 = part_boxes_N4.index_select(0, to_device(parts, device))
    is_far_R1 = to_device(far, device)[:, None]
    noisy_R4 = _shaken(boxes_R4, is_far_R1, _draw(boxes_R4, to_device(2 * group + far, device)))
    hints = Hints(noisy_R4, [[2 * count] * groups for count in part_counts])
    near = np.flatnonzero(far == 0)
    return NoisyParts(hints, near, parts[near], groups)


def _rows_of_sample(first: int, count: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Part, far or not, and group of each of a sample's noisy boxes."""
    parts = np.tile(first + np.arange(count), 2 * groups)
    far = np.tile(np.repeat((0, 1), count), groups)
    return parts, far, np.repeat(np.arange(groups), 2 * count)


def _shaken(boxes_R4: torch.Tensor, is_far_R1: torch.Tensor, draws_R4: torch.Tensor) -> torch.Tensor:
    """Both corners moved by up to half a side in any direction, far ones by half a side to a whole one."""
    signs = torch.where(draws_R4 < 0.5, -1.0, 1.0)
    reach = 2 * draws_R4 % 1 + is_far_R1
    corners = (cxcywh_to_xyxy(boxes_R4) + signs * reach * boxes_R4[:, 2:].repeat(1, 2) / 2).clamp(0, 1)
    low, high = torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])
    noisy_R4: torch.Tensor = xyxy_to_cxcywh(torch.cat((low, high), dim=-1))
    return torch.cat((noisy_R4[:, :2], noisy_R4[:, 2:].clamp(min=LEAST_SIDE)), dim=-1)


def _draw(boxes_R4: torch.Tensor, salts_R: torch.Tensor) -> torch.Tensor:
    """(R, 4) numbers in [0, 1) that look random and follow from each row's box and salt, to the bit."""
    state_R = salts_R
    for coordinate_R in (boxes_R4.double() * 2**31).long().unbind(-1):
        state_R = _mixed(state_R ^ coordinate_R)
    state_R4 = _mixed(state_R[:, None] + torch.arange(4, device=boxes_R4.device))
    return (state_R4 >> 8).to(boxes_R4.dtype) / 2**24


def _mixed(state: torch.Tensor) -> torch.Tensor:
    """Each of 32 bits depends on all of them (the finalizer of MurmurHash3, Appleby 2011)."""
    state = state & LOW_BITS
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = ((state ^ (state >> shift)) * factor) & LOW_BITS
    return state ^ (state >> 16)
