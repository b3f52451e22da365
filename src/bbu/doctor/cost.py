"""Estimates of what training will cost: samples per step, epochs, tokens per pack. Memory: bbu.doctor.memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bbu.config import Config
from bbu.data.packing.planner import Budgets, Lengths, fill_packs
from bbu.data.sampling.order import expected_views
from bbu.doctor.findings import Example, Finding, finding
from bbu.records import Row


@dataclass(frozen=True)
class PackSizes:
    """Packs of one process.

    Args:
        samples, tokens: mean per pack.
        most_tokens, most_pixels: of the largest pack.
    """

    samples: float
    tokens: float
    most_tokens: int
    most_pixels: int


def pack_sizes(config: Config, lengths: Lengths) -> PackSizes | None:
    """Packs of an epoch: planned as in training, or of training.batch_size samples; None without samples.

    A sample larger than a planned pack, which training refuses, counts as a full one.

    Args:
        lengths: of the epoch's samples.
    """
    budgets = Budgets.of(config.training)
    if not len(lengths):
        return None
    if not budgets.limits:
        batch = config.training.batch_size
        most_tokens, most_pixels = (int(np.sort(sizes)[-batch:].sum()) for sizes in (lengths.tokens, lengths.pixels))
        return PackSizes(batch, float(lengths.tokens.mean()) * batch, most_tokens, most_pixels)
    fitting = replace(
        lengths, **{what: np.minimum(getattr(lengths, what), limit) for what, limit in budgets.limits.items()}
    )
    packs = fill_packs(fitting, budgets, np.random.default_rng(config.seed))
    tokens, pixels = ([int(sizes[pack].sum()) for pack in packs] for sizes in (fitting.tokens, fitting.pixels))
    return PackSizes(len(lengths) / len(packs), float(np.mean(tokens)), max(tokens), max(pixels))


def steps_report(config: Config, rows: Sequence[Row], packs: PackSizes | None) -> dict[str, Any]:
    """Samples per step, epochs and packs, for one process (GPU); None where a value needs unknown lengths.

    data.sampling decides the length of an epoch: the number of photos and tiles, unless some are repeated or left out.
    Conversations of data.replay, which are neither, count as samples; packs are estimated without them.

    Args:
        rows: training photos and their tiles.
    """
    training = config.training
    places = float(expected_views(rows, config.data.sampling).sum()) / (1 - config.data.replay.share) if rows else 0.0
    planned = bool(Budgets.of(training).limits)
    per_pack = packs.samples if packs else None if planned else training.batch_size
    per_step = per_pack and per_pack * training.gradient_accumulation
    return {
        "training_photos": sum(row.tile is None for row in rows),
        "samples_per_epoch": round(places, 2),
        "samples_per_step": per_step and round(per_step, 2),
        "steps_per_epoch": per_step and round(places / per_step, 2),
        "epochs": round(training.max_steps * per_step / places, 2) if per_step and places else None,
        "packs_per_step": training.gradient_accumulation,
        "samples_per_pack": per_pack and round(per_pack, 2),
        "mean_tokens_per_pack": round(packs.tokens) if packs else None,
        "most_tokens_per_pack": packs.most_tokens if packs else None,
    }


def steps_findings(config: Config, report: dict[str, Any]) -> list[Finding]:
    """A finding if the run has too few steps to see every photo once."""
    per_step, samples = report["samples_per_step"], math.floor(report["samples_per_epoch"])
    if per_step is None or config.data.sampling.method != "uniform":
        return []
    shown = per_step * (1 - config.data.replay.share)  # photos and tiles a step
    left = math.floor(samples - config.training.max_steps * shown)
    if left <= 0:
        return []
    values = {"steps": config.training.max_steps, "per_step": per_step, "epochs": report["epochs"]}
    tiles = " and tiles" if samples != report["training_photos"] else ""
    example = Example(detail=f"{samples} photos{tiles}, {samples - left} samples in the run")
    return [finding("photos_never_seen", [example], left, needed=math.ceil(samples / shown), **values)]
