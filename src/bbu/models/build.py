"""From a config to a processor and a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor
from bbu.errors import ConfigError
from bbu.families.base import Backbone
from bbu.families.feature_cache import FeatureCache
from bbu.families.prompts import PromptSpec, answer_text
from bbu.families.registry import BACKBONES
from bbu.families.tokenizer import load_tokenizer, train_tokenizer
from bbu.layers.attention import choose_attention_backend
from bbu.models.acceleration.checkpointing import checkpoint_activations
from bbu.models.acceleration.compiling import compile_parts
from bbu.models.acceleration.liger import use_liger
from bbu.models.acceleration.lora import add_lora
from bbu.models.wrapper import DetectionVLM
from bbu.records import FewShotSample


def backbone_class(family: str) -> type[Backbone]:
    """The class of a family.

    Raises:
        ConfigError: unknown family.
    """
    if family not in BACKBONES:
        raise ConfigError(f"model.family: {family!r} is not one of {', '.join(BACKBONES)}")
    return BACKBONES[family]


def build_processor(config: Config, samples: Sequence[FewShotSample], image_root: str) -> ChatProcessor:
    """Tokenizer (read, or trained on the samples' own text), image processor and prompt."""
    model = config.model
    family = backbone_class(model.family)
    spec = PromptSpec.create(
        config.data.language,
        family.text_box_convention,
        config.data.min_pixels,
        config.data.max_pixels,
        context=config.data.episodes.context_photos > 0,
    )
    if model.tokenizer or model.path:
        tokenizer = load_tokenizer(model.tokenizer or model.path)
    else:
        tokenizer = train_tokenizer(_training_text(samples, spec), model.scratch.vocab_size)
    return ChatProcessor(
        tokenizer,
        family.image_processor(model.path),
        spec,
        image_root=image_root,
        max_length=config.data.max_length,
        caption_max_tokens=model.detection.caption_max_tokens,
        name_photos=bool(model.feature_cache),
    )


def _training_text(samples: Sequence[FewShotSample], spec: PromptSpec) -> Iterable[str]:
    """What a small tokenizer learns its merges from: the prompts and every answer of the training split."""
    import numpy as np

    for sample in samples:
        boxes = np.array([item.box for item in sample.student.objects]).reshape(-1, 4)
        yield spec.system
        yield spec.context_note + spec.instruction
        yield answer_text(np.rint(boxes), [item.desc for item in sample.student.objects])


def build_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, device: torch.device, dtype: torch.dtype
) -> DetectionVLM:
    """The model on the CPU, with its attention backend chosen for ``device`` and ``dtype``; seeded by config.seed.

    Args:
        dtype: that attention will compute in; weights read from disk keep float32 unless DeepSpeed trains in bf16.
    """
    model = config.model
    family = backbone_class(model.family)
    torch.manual_seed(config.seed)
    if model.path:
        weights = torch.bfloat16 if config.training.deepspeed and dtype == torch.bfloat16 else torch.float32
        try:
            backbone = family.from_pretrained(model.path, weights)
        except OSError as error:
            raise ConfigError(f"model.path {model.path}: cannot be loaded: {str(error).splitlines()[0]}") from None
    else:
        backbone = family.from_scratch(model.scratch, len(tokenizer), tokenizer.get_vocab())
    backbone.use_attention_backend(choose_attention_backend(model.attention, device, dtype))
    if model.feature_cache:
        backbone.feature_cache = FeatureCache(model.feature_cache)
    wrapped = DetectionVLM(backbone, model.detection)
    use_liger(backbone, model.liger, device)
    if model.gradient_checkpointing != "none":
        checkpoint_activations(backbone, model.gradient_checkpointing)
    if model.lora.parts:
        add_lora(wrapped, model.lora)
    freeze(wrapped, model.freeze)
    compile_parts(wrapped, model.compile)
    return wrapped


def freeze(model: DetectionVLM, groups: Sequence[str]) -> None:
    """Stop learning in whole parameter groups."""
    for name, parameter in model.named_parameters():
        if model.group_of(name) in groups:
            parameter.requires_grad_(False)
