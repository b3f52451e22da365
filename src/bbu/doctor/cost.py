"""What training will cost: samples a step, epochs, tokens of a pack, memory. Estimates, with their formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor
from bbu.data.sampling import expected_views
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.tokens import TokenLengths
from bbu.models.build import backbone_class, freeze
from bbu.models.lora import add_lora
from bbu.models.wrapper import DetectionVLM
from bbu.records import Row

# Bytes kept for the backward pass by one transformer layer, for each token and unit of width, in bf16: 34 without
# attention scores, which no engine here keeps; 2 with recomputation (Korthikanti et al. 2022, arXiv:2205.05198).
LAYER_BYTES = 34
# keys are those of model.gradient_checkpointing; selective keeps what products with weights and attention give
LAYER_BYTES_WITH = {"none": LAYER_BYTES, "selective": 20, "full": 2}
PREFETCHED_BATCHES = 2  # torch's DataLoader, for each worker


@dataclass(frozen=True)
class ModelSize:
    """Counted on a model without memory (torch's meta device).

    Args:
        parameters, trainable: numbers of weights.
        towers: (layers, width) of the vision tower and of the language model.
    """

    parameters: int
    trainable: int
    towers: tuple[tuple[int, int], tuple[int, int]]


def steps_report(config: Config, rows: Sequence[Row], lengths: TokenLengths | None) -> dict[str, Any]:
    """Samples a step, epochs and packs, for one process (GPU).

    An epoch is as long as data.sampling makes it: the number of photos, unless rare ones are repeated.
    """
    training = config.training
    places = float(expected_views(rows, config.data.sampling).sum()) if rows else 0.0
    per_step = training.batch_size * training.gradient_accumulation
    report: dict[str, Any] = {
        "training_photos": len(rows),
        "samples_per_step": per_step,
        "steps_per_epoch": round(places / per_step, 2),
        "epochs": round(training.max_steps * per_step / places, 2) if places else None,
        "packs_per_step": training.gradient_accumulation,
        "samples_per_pack": training.batch_size,
        "mean_tokens_per_pack": None,
        "most_tokens_per_pack": None,
    }
    if lengths is not None and lengths.longest:
        report["mean_tokens_per_pack"] = round(float(np.mean(lengths.longest)) * training.batch_size)
        report["most_tokens_per_pack"] = sum(sorted(lengths.longest)[-training.batch_size :])
    return report


def steps_findings(config: Config, report: dict[str, Any]) -> list[Finding]:
    """Too few steps to see every photo once."""
    per_step, photos = report["samples_per_step"], report["training_photos"]
    left = photos - config.training.max_steps * per_step
    if left <= 0 or config.data.sampling.method != "uniform":
        return []
    values = {"steps": config.training.max_steps, "per_step": per_step, "epochs": report["epochs"]}
    example = Example(detail=f"{photos} photos, {photos - left} places in the run")
    return [finding("photos_never_seen", [example], left, needed=-(-photos // per_step), **values)]


def model_size(config: Config, tokenizer: Any) -> ModelSize | None:
    """Numbers of the model that this config trains, built without memory; None: no config.json in model.path."""
    model = config.model
    with torch.device("meta"):
        family: Any = backbone_class(model.family)
        if model.path:
            try:
                sizes = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
            except OSError:
                return None
            backbone = family(AutoModelForImageTextToText.from_config(sizes))
        else:
            backbone = family.from_scratch(model.scratch, len(tokenizer), tokenizer.get_vocab())
        whole = DetectionVLM(backbone, model.detection)
        if model.lora.parts:
            add_lora(whole, model.lora)
    freeze(whole, model.freeze)
    return _count(whole)


def _count(model: DetectionVLM) -> ModelSize:
    every = {id(p): p for p in model.parameters()}.values()
    sizes = model.backbone.vlm.config
    vision, text = sizes.vision_config, sizes.text_config
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    return ModelSize(
        sum(p.numel() for p in every),
        sum(p.numel() for p in every if p.requires_grad),
        ((int(depth), int(vision.hidden_size)), (int(text.num_hidden_layers), int(text.hidden_size))),
    )


def memory_report(config: Config, size: ModelSize, lengths: TokenLengths, processor: ChatProcessor) -> dict[str, Any]:
    """Bytes on one device before anything is sharded, and of photos waiting in loader processes."""
    training = config.training
    zero = bool(training.deepspeed)
    half = training.precision != "fp32"
    weight = 2 if zero and half else 4
    # ZeRO keeps float32 masters beside bf16 weights; Adam keeps two float32 numbers for each trainable weight
    states = 12 if zero and half else 8
    batch = training.batch_size
    pack = sum(sorted(lengths.longest)[-batch:])
    patches = max(lengths.photo_tokens, default=0) * (1 + lengths.teachers) * batch * processor.merge_size**2
    images = processor.image_processor
    patch_bytes = 4 * 3 * int(images.temporal_patch_size) * int(images.patch_size) ** 2  # float32, three colours
    layer = LAYER_BYTES_WITH[config.model.gradient_checkpointing]
    widest = 0 if layer == LAYER_BYTES else LAYER_BYTES  # one layer at a time is whole while it is recomputed
    (depth_v, width_v), (depth_t, width_t) = size.towers
    kept = patches * width_v * (depth_v * layer + widest) + pack * width_t * (depth_t * layer + widest)
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
