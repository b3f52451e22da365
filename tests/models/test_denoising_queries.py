"""Hinted queries look at the same photo with the same weights, and nothing else of a pack notices them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from bbu.data.collators import Batch
from bbu.inference.postprocess import model_inputs
from bbu.losses.denoising import noisy_parts
from bbu.models.detection_head import Hints
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from tests.tiny import FAMILIES, mixed_samples, pack, tiny_model, tiny_processor

COUNTS = [3, 1, 0, 5, 2]  # parts of the mixed samples


@cache
def setting(family: str) -> tuple[DetectionVLM, Batch, Hints]:
    model = tiny_model(family)
    batch = pack(model, mixed_samples(tiny_processor(family)))
    assert batch["box_counts"] == COUNTS
    return model, batch, noisy_parts(batch["boxes"], COUNTS, 2).hints


@torch.no_grad()
def run(family: str, hints: Hints | None) -> DetectionOutput:
    model, batch, _ = setting(family)
    output: DetectionOutput = model(**model_inputs(batch, torch.device("cpu")), hints=hints)
    return output


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_heads_own_queries_do_not_notice_hints(family: str) -> None:
    hints = setting(family)[2]
    without, with_hints = run(family, None), run(family, hints)
    for one, other in zip(without.layers, with_hints.layers, strict=True):
        close(one.boxes, other.boxes)
        close(one.objectness, other.objectness)
    close(without.queries_BQD, with_hints.queries_BQD)
    assert all(len(layer.boxes) == 0 for layer in without.hinted)
    assert all(layer.boxes.shape == hints.boxes.shape for layer in with_hints.hinted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_does_not_notice_other_groups(family: str) -> None:
    """Other boxes in the second group of every sample leave the predictions of the first alone."""
    hints = setting(family)[2]
    second = torch.cat([torch.arange(4 * n) >= 2 * n for n in COUNTS])
    changed = torch.where(second[:, None], hints.boxes.flip(-1).clamp(0.1, 0.9), hints.boxes)
    before, after = run(family, hints), run(family, replace(hints, boxes=changed))
    for one, other in zip(before.hinted, after.hinted, strict=True):
        close(one.boxes[~second], other.boxes[~second])
        assert not torch.allclose(one.boxes[second], other.boxes[second])


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_of_a_group_see_each_other(family: str) -> None:
    hints = setting(family)[2]
    first = hints.boxes.clone()
    first[0] = torch.tensor([0.5, 0.5, 0.9, 0.9])
    before, after = run(family, hints), run(family, replace(hints, boxes=first))
    mates = slice(1, 2 * COUNTS[0])
    assert not torch.allclose(before.hinted[0].boxes[mates], after.hinted[0].boxes[mates], rtol=0, atol=1e-12)
    close(before.hinted[0].boxes[2 * COUNTS[0] :], after.hinted[0].boxes[2 * COUNTS[0] :])
