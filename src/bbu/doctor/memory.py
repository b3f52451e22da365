"""The most memory that a training step holds on one device, reckoned from sizes alone.

What holds weights is counted. Activations follow from the products of a block: every product keeps its input and, where
its output goes into something that is not linear, its output. Measured peaks of a 3B model agree within 6 %
(tests/doctor/test_memory.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn

from bbu.config import Config, ModelConfig
from bbu.data.chat_processor import ChatProcessor
from bbu.doctor.cost import PackSizes
from bbu.families.registry import backbone_class, scratch_sizes
from bbu.models.acceleration.lora import add_lora
from bbu.models.build import freeze, source_of
from bbu.models.wrapper import DetectionVLM

PREFETCHED_BATCHES = 2  # of torch's DataLoader, per worker
HALF = 2  # bytes of a bfloat16 number
WORKSPACE = 1.3  # a block's activations and their gradients while it goes backward, in units of the activations
FOUR_BITS = 0.516  # bytes a weight: 4 bits, a scale of 8 bits for 64 of them, one of 32 bits for 256 scales


class Bytes(NamedTuple):
    """Bytes of a weight, of its gradient, and of what the optimizer keeps of it."""

    weight: float
    gradient: float
    states: float


@dataclass(frozen=True)
class Blocks:
    """Blocks of a tower or language model, and what one keeps of a token (or patch) in bfloat16, in bytes.

    Args:
        depth: 0 if nothing in or before them learns: then they keep nothing.
        kept: by model.gradient_checkpointing; ``none`` is also what a block takes while it is recomputed.
    """

    depth: int
    kept: Mapping[str, int]

    def between(self, model: ModelConfig, part: str, items: int) -> float:
        """Bytes from the forward to the backward pass, of a part's blocks under these settings.

        A compiled block keeps what torch's partitioner chooses, at most what an uncompiled one keeps.
        """
        how = model.gradient_checkpointing
        kept, least = self.kept["none" if part in model.compile and how == "selective" else how], self.kept["full"]
        share = model.activation_budget or 1.0 if how == "selective" else 1.0
        return self.depth * (least + share * (kept - least)) * items

    def one(self, items: int) -> float:
        """Bytes of one block while it goes backward."""
        return WORKSPACE * self.kept["none"] * items if self.depth else 0.0


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model on torch's meta device.

    Args:
        counts: number of weights of each kind: ``frozen``, ``adapted`` (by LoRA); ``vision``, ``text`` and
            ``embedding``, which learn; ``apart`` (LoRA's and the detection head's).
        learning: the number of ``apart`` that learn.
        head: weights of the language head.
    """

    counts: Mapping[str, int]
    learning: int
    vision: Blocks
    text: Blocks
    head: int

    @property
    def parameters(self) -> int:
        return sum(self.counts.values())

    @property
    def trainable(self) -> int:
        return self.learning + sum(self.counts[kind] for kind in ("vision", "text", "embedding"))


def model_size(config: Config, tokenizer: Any) -> ModelSize | None:
    """Sizes of the model that this config trains, built on the meta device; None if model.path has no config.json."""
    model = config.model
    with torch.device("meta"):
        family = backbone_class(model.family)
        if source := source_of(config):
            try:
                backbone = family.empty(source, model.trust_remote_code)
            except OSError:
                return None
        else:
            sizes = scratch_sizes(model.family, model.scratch)
            backbone = family.from_scratch(sizes, len(tokenizer), tokenizer.get_vocab())
        whole = DetectionVLM(backbone, model.detection)
        if model.lora.parts:
            add_lora(whole, model.lora)
    freeze(whole, model.freeze, model.last_blocks)
    return size_of(whole)


def size_of(model: DetectionVLM) -> ModelSize:
    """Count a model's weights by kind."""
    backbone = model.backbone
    counts = dict.fromkeys(("frozen", "adapted", "vision", "text", "embedding", "apart"), 0)
    groups, learning = set(), 0
    for name, parameter in model.named_parameters():
        group = model.group_of(name)
        if parameter.requires_grad:
            groups.add(group)
        kind = _kind(name, parameter, group, backbone.token_embedding.weight)
        counts[kind] += parameter.numel()
        learning += parameter.numel() * (kind == "apart" and parameter.requires_grad)
    vision_keeps, text_keeps = "vision" in groups, bool(groups & {"vision", "merger", "llm"})
    return ModelSize(
        counts,
        learning,
        _blocks(backbone.blocks("vision"), keeps=vision_keeps),
        _blocks(backbone.blocks("llm"), keeps=text_keeps),
        backbone.lm_head_weight.numel(),
    )


def _kind(name: str, parameter: nn.Parameter, group: str, embedding: torch.Tensor) -> str:
    if ".lora_" in name or not name.startswith("backbone."):
        return "apart"
    if not parameter.requires_grad:
        return "adapted" if name.endswith(".base_layer.weight") else "frozen"
    if parameter is embedding:
        return "embedding"
    return "vision" if group in ("vision", "merger") else "text"


def _blocks(blocks: Sequence[nn.Module], *, keeps: bool) -> Blocks:
    """What the products of a block keep, from their widths.

    Within a part of the block (attention, MLP) the first products share the normalised input, and the last has an input
    of its own. A joint product of queries, keys and values stays whole beside the rotated queries and keys.
    """
    linears = [
        (name.replace(".base_layer", "").rpartition(".")[0], module)
        for name, module in blocks[0].named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]
    parts = [[module for _, module in some] for _, some in groupby(linears, key=lambda pair: pair[0])]
    width = linears[0][1].in_features
    inputs = sum(part[0].in_features + part[-1].in_features for part in parts)
    outputs = sum(layer.out_features for part in parts for layer in part)
    rotated = 2 * width if any(len(part) == 2 and part[0].out_features == 3 * width for part in parts) else 0
    wide = [layer for part in parts for layer in part if layer.out_features >= layer.in_features]
    attended = parts[0][-1].in_features
    none = HALF * (inputs + outputs + rotated)
    kept = {
        "none": none,
        "selective": HALF * (sum(layer.out_features for layer in wide) + attended + width),
        "full": HALF * width,
    }
    return Blocks(len(blocks) * keeps, kept)


def held(config: Config) -> dict[str, Bytes]:
    """How a weight of each kind is held, before any sharding; ``apart`` where it learns."""
    model, training = config.model, config.training
    half = training.precision != "fp32"
    if training.deepspeed and half:  # bf16 weights and gradients; float32 masters and Adam's two numbers
        learns, frozen = Bytes(2, 2, 12), Bytes(2, 0, 0)
        return {"frozen": frozen, "adapted": frozen} | dict.fromkeys(("vision", "text", "embedding", "apart"), learns)
    eight_bits = training.optimizer == "adamw_8bit"
    frozen = Bytes(2 if half and model.weights != "float32" else 4, 0, 0)
    learns = Bytes(4, 4, 2 if eight_bits else 8)
    wide = Bytes(4, 4, 8)
    if model.weights == "bfloat16":
        learns = wide = Bytes(2, 2, 10)  # 16 bits more of the master
    return {
        "frozen": frozen,
        "adapted": Bytes(FOUR_BITS, 0, 0) if model.weights == "4bit" else frozen,
        "vision": learns,
        "text": learns,
        "embedding": wide,  # whose states stay 32 bits wide
        "apart": Bytes(4, 4, 2 if eight_bits else 8),
    }


def peak_of(
    config: Config,
    size: ModelSize,
    tokens: int,
    patches: int,
    ranks: int = 1,
    of: Mapping[str, Bytes] | None = None,
) -> dict[str, float]:
    """What a step on a pack holds when it holds most.

    Args:
        of: how weights are held; default: as the config says.
        ranks: processes over which ZeRO shards gradients and optimizer states; without DeepSpeed they do not.

    Returns:
        Bytes: ``weights``, ``gradients``, ``optimizer``, ``activations``, and ``peak``. The parts are the most of each;
        they do not come at once, so the peak is less than their sum.
    """
    of, wide = of or held(config), 1 if config.training.precision != "fp32" else 2
    shards = ranks if config.training.deepspeed else 1
    counts = dict(size.counts)
    weights = sum(counts[kind] * of[kind].weight for kind in counts)
    counts["apart"] = size.learning
    gradients = {kind: counts[kind] * of[kind].gradient / shards for kind in counts}
    states = sum(counts[kind] * of[kind].states for kind in counts) / shards
    # autocast's copies of float32 weights, which the backward pass needs again
    casts = sum(counts[kind] * HALF for kind in ("vision", "text", "embedding", "apart") if of[kind].weight == 4)
    casts *= wide == 1
    vision = wide * size.vision.between(config.model, "vision", patches)
    text = wide * size.text.between(config.model, "llm", tokens)
    one_vision, one_text = wide * size.vision.one(patches), wide * size.text.one(tokens)
    head = wide * HALF * size.head  # its gradient, or some rows of logits
    of_text = gradients["text"] + gradients["embedding"] + gradients["apart"]
    before = sum(gradients.values()) if config.training.gradient_accumulation > 1 else 0.0
    moments = (
        vision + text + head + max(one_vision, one_text) + before,  # the backward pass begins
        vision + one_vision + max(of_text, before),  # the language model is done
        one_vision + sum(gradients.values()),  # the end
    )
    return {
        "weights": weights,
        "gradients": sum(gradients.values()),
        "optimizer": states,
        "activations": vision + text + head + max(one_vision, one_text) + casts,
        "peak": weights + states + casts + max(moments),
    }


def memory_report(config: Config, size: ModelSize, packs: PackSizes, processor: ChatProcessor) -> dict[str, Any]:
    """Bytes on one device before any sharding, and of the photos prefetched by loader workers."""
    patches = packs.most_pixels // processor.photo_plan.patch_size**2
    patch_bytes = 4 * processor.photo_plan.patch_width  # float32
    found = peak_of(config, size, packs.most_tokens, patches)
    half = config.training.precision != "fp32"
    return {
        "parameters": size.parameters,
        "trainable": size.trainable,
        **{f"{name}_bytes": round(value) for name, value in found.items()},
        "photos_bytes": patches * patch_bytes * (1 + config.data.workers * PREFETCHED_BATCHES),
        "assumes": "bf16 activations" if half else "float32 activations",
    }
