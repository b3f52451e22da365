"""Denoising queries attend to their own sample and group only, and change nothing else in the pack."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from bbu.data.collators import Batch
from bbu.inference.postprocess import model_inputs
from bbu.losses.denoising import denoising_targets
from bbu.models.detection_head import DenoisingQueries
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from bbu.training.objective import target_boxes
from tests.tiny import FAMILIES, mixed_samples, pack, tiny_model, tiny_processor

COUNTS = [3, 1, 0, 5, 2]  # targets of the mixed samples


@cache
def setting(family: str) -> tuple[DetectionVLM, Batch, DenoisingQueries]:
    model = tiny_model(family)
    batch = pack(model, mixed_samples(tiny_processor(family)))
    assert batch["box_counts"] == COUNTS
    return model, batch, denoising_targets(target_boxes(batch), COUNTS, 20, batch["salts"]).queries


@torch.no_grad()
def run(family: str, queries: DenoisingQueries | None) -> DetectionOutput:
    model, batch, _ = setting(family)
    output: DetectionOutput = model(**model_inputs(batch, torch.device("cpu")), denoising_queries=queries)
    return output


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_denoising_queries_do_not_change_the_detections(family: str) -> None:
    queries = setting(family)[2]
    without, with_queries = run(family, None), run(family, queries)
    for one, other in zip(without.layers, with_queries.layers, strict=True):
        close(one.boxes, other.boxes)
        close(one.objectness, other.objectness)
    close(without.queries_BQD, with_queries.queries_BQD)
    assert all(len(layer.boxes) == 0 for layer in without.denoising_layers)
    assert all(layer.boxes.shape == queries.boxes.shape for layer in with_queries.denoising_layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_denoising_group_does_not_see_other_groups(family: str) -> None:
    """Other boxes in all later groups of every sample leave the predictions of the first alone."""
    queries = setting(family)[2]
    later = torch.cat([torch.arange(sum(sizes)) >= 2 * n for n, sizes in zip(COUNTS, queries.group_sizes, strict=True)])
    assert later.any() and not later.all()
    changed = torch.where(later[:, None], queries.boxes.flip(-1).clamp(0.1, 0.9), queries.boxes)
    before, after = run(family, queries), run(family, replace(queries, boxes=changed))
    for one, other in zip(before.denoising_layers, after.denoising_layers, strict=True):
        close(one.boxes[~later], other.boxes[~later])
        assert not torch.allclose(one.boxes[later], other.boxes[later])


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_of_a_group_see_each_other(family: str) -> None:
    queries = setting(family)[2]
    first = queries.boxes.clone()
    first[0] = torch.tensor([0.5, 0.5, 0.9, 0.9])
    before, after = run(family, queries), run(family, replace(queries, boxes=first))
    mates = slice(1, 2 * COUNTS[0])
    assert not torch.allclose(
        before.denoising_layers[0].boxes[mates], after.denoising_layers[0].boxes[mates], rtol=0, atol=1e-12
    )
    close(before.denoising_layers[0].boxes[2 * COUNTS[0] :], after.denoising_layers[0].boxes[2 * COUNTS[0] :])
