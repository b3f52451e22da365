"""Estimates of what training will cost: samples per step, epochs, tokens per pack, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor
from bbu.data.packing.planner import Budgets, Lengths, fill_packs
from bbu.data.sampling.order import expected_views
from bbu.doctor.findings import Example, Finding, finding
from bbu.families.registry import backbone_class, scratch_sizes
from bbu.models.acceleration.lora import add_lora
from bbu.models.build import freeze
from bbu.models.wrapper import DetectionVLM
from bbu.records import Row

# Bytes of activations per token and unit of width in one bf16 transformer layer: 34 without attention scores, which no
# backend here stores; 2 with full recomputation (Korthikanti et al. 2022, arXiv:2205.05198).
LAYER_BYTES = 34
# by model.gradient_checkpointing; selective keeps the outputs of weight products and attention
LAYER_BYTES_WITH = {"none": LAYER_BYTES, "selective": 20, "full": 2}
PREFETCHED_BATCHES = 2  # of torch's DataLoader, per worker


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model on torch's meta device.

    Args:
        parameters, trainable: number of weights.
        towers: (layers, width) of the vision tower and of the language model; 0 layers if nothing in or before it
            learns, so that it stores no activations.
    """

    parameters: int
    trainable: int
    towers: tuple[tuple[int, int], tuple[int, int]]


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


def model_size(config: Config, tokenizer: Any) -> ModelSize | None:
    """Sizes of the model that this config trains, built on the meta device; None if model.path has no config.json."""
    model = config.model
    with torch.device("meta"):
        family = backbone_class(model.family)
        if model.path:
            try:
                backbone = family.empty(model.path, model.trust_remote_code)
            except OSError:
                return None
        else:
            sizes = scratch_sizes(model.family, model.scratch)
            backbone = family.from_scratch(sizes, len(tokenizer), tokenizer.get_vocab())
        whole = DetectionVLM(backbone, model.detection)
        if model.lora.parts:
            add_lora(whole, model.lora)
    freeze(whole, model.freeze)
    return _count(whole)


def _count(model: DetectionVLM) -> ModelSize:
    every = {id(p): p for p in model.parameters()}.values()
    learning = {model.group_of(name) for name, p in model.named_parameters() if p.requires_grad}
    (vision_depth, vision_width), (text_depth, text_width) = (
        model.backbone.vision_depth_width,
        model.backbone.text_depth_width,
    )
    vision_keeps, text_keeps = "vision" in learning, bool(learning & {"vision", "merger", "llm"})
    return ModelSize(
        sum(p.numel() for p in every),
        sum(p.numel() for p in every if p.requires_grad),
        ((vision_depth * vision_keeps, vision_width), (text_depth * text_keeps, text_width)),
    )


def memory_report(config: Config, size: ModelSize, packs: PackSizes, processor: ChatProcessor) -> dict[str, Any]:
    """Bytes on one device before any sharding, and of the photos prefetched by loader workers."""
    training = config.training
    zero = bool(training.deepspeed)
    half = training.precision != "fp32"
    weight = 2 if zero and half else 4
    # ZeRO keeps float32 masters beside bf16 weights; Adam keeps two float32 numbers for each trainable weight
    states = 12 if zero and half else 8
    patches = packs.most_pixels // processor.photo_plan.patch_size**2
    patch_bytes = 4 * processor.photo_plan.patch_width  # float32
    layer = LAYER_BYTES_WITH[config.model.gradient_checkpointing]
    widest = 0 if layer == LAYER_BYTES else LAYER_BYTES  # one layer at a time is recomputed in full
    kept = sum(
        items * width * (depth * layer + widest)
        for items, (depth, width) in zip((patches, packs.most_tokens), size.towers, strict=True)
        if depth
    )
    return {
        "parameters": size.parameters,
        "trainable": size.trainable,
        "weights_bytes": size.parameters * weight,
        "gradients_bytes": size.trainable * weight,
        "optimizer_bytes": size.trainable * states,
        "activations_bytes": kept * (1 if half else 2),
        "photos_bytes": patches * patch_bytes * (1 + config.data.workers * PREFETCHED_BATCHES),
        "assumes": "bf16 activations" if half else "float32 activations",
    }
