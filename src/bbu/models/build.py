"""Builds processor and model from a config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor, detection_options
from bbu.data.sampling.answers import Answers
from bbu.data.sampling.class_balance import caption_weights
from bbu.data.tiling import add_tiles
from bbu.errors import ConfigError, UserError
from bbu.families.base import Backbone
from bbu.families.feature_cache import FeatureCache
from bbu.families.prompts import ANSWERS, PromptSpec, answer_text
from bbu.families.registry import backbone_class, family_named, family_options, scratch_sizes
from bbu.families.tokenizer import load_tokenizer, train_tokenizer
from bbu.layers.attention import choose_attention_backend
from bbu.models.acceleration.checkpointing import checkpoint_activations
from bbu.models.acceleration.compiling import compile_parts
from bbu.models.acceleration.four_bit import hold_in_four_bits
from bbu.models.acceleration.liger import use_liger
from bbu.models.acceleration.lora import add_lora, lora_targets
from bbu.models.checkpoint import BACKBONE_FOLDER, check_start, check_start_sizes, load_backbone, load_head
from bbu.models.precision import hold_in_bf16
from bbu.models.wrapper import DetectionVLM
from bbu.records import FewShotSample


def prompt_spec(config: Config) -> PromptSpec:
    """Wording, template, box convention and resize policy of a config."""
    data, family = config.data, family_named(config.model.family)
    return PromptSpec.create(
        data.language,
        backbone_class(config.model.family).conversation,
        data.min_pixels or family.min_pixels,
        data.max_pixels or family.max_pixels,
        context=data.episodes.context_photos > 0,
        tiles=data.tiles,
        answers=[answer for answer in ANSWERS if getattr(data.answers, answer)],
        own_geometry=data.answer_geometry == "own",
    )


def training_samples(config: Config, samples: Sequence[FewShotSample]) -> list[FewShotSample]:
    """What training shows of these samples: their photos, and with data.tiles also the tiles of each."""
    spec = prompt_spec(config)
    return add_tiles(samples, spec.tiling, spec.max_pixels, config.data.augment.min_visible)


def build_processor(config: Config, samples: Sequence[FewShotSample], image_root: str) -> ChatProcessor:
    """ChatProcessor with its tokenizer (loaded, or trained on the samples' text), photo plan and prompt."""
    model, spec, family = config.model, prompt_spec(config), backbone_class(config.model.family)
    if model.start:
        check_start(config)
    source = source_of(config)
    if model.tokenizer or source:
        tokenizer = load_tokenizer(model.tokenizer or source, family.conversation, model.trust_remote_code)
    else:
        vocab_size = scratch_sizes(model.family, model.scratch).vocab_size
        texts = chain(_training_text(samples, spec), _verdicts(config, samples))
        tokenizer = train_tokenizer(texts, vocab_size, family.conversation)
    return ChatProcessor(
        tokenizer,
        family.photo_plan(source, spec),
        family.conversation,
        spec,
        image_root=image_root,
        max_length=config.data.max_length,
        **detection_options(model.detection),
        caption_weights=caption_weights((sample.student for sample in samples), config.loss.caption_balance),
        name_photos=bool(model.feature_cache),
    )


def _training_text(samples: Sequence[FewShotSample], spec: PromptSpec) -> Iterable[str]:
    """Text that a small tokenizer is trained on: the prompts and every answer of the training split."""
    import numpy as np

    for sample in samples:
        boxes = np.array([item.box for item in sample.student.objects]).reshape(-1, 4)
        yield spec.system
        yield spec.context_note + spec.instruction
        yield from filter(None, (spec.summary_instruction, spec.group_instruction, spec.verdict_instruction))
        if spec.summary_instruction and sample.student.summary:
            yield sample.student.summary
        yield answer_text(np.rint(boxes), [item.desc for item in sample.student.objects])


def _verdicts(config: Config, samples: Sequence[FewShotSample]) -> Iterable[str]:
    """The verdict on each training group, where they are learned."""
    if not config.data.answers.verdict:
        return
    students = [sample.student for sample in samples]
    try:
        answers = Answers(config.data.answers, students, config.seed)
    except UserError:
        return  # the stream of samples says what is wrong
    yield from (question.text for question in answers.questions(students) if question.answer == "verdict")


def build_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, device: torch.device, dtype: torch.dtype
) -> DetectionVLM:
    """The model on the CPU, with its attention backend chosen for ``device`` and ``dtype``; seeded by config.seed.

    Args:
        dtype: of attention, bfloat16 if products run in it. Which weights are held in it: model.weights; all of the
            backbone's if DeepSpeed trains in bf16, which keeps float32 ones itself.
    """
    model, bf16 = config.model, dtype == torch.bfloat16
    if model.weights == "bfloat16" and not bf16:
        raise ConfigError("model.weights: bfloat16 needs products in bfloat16, and this run's are float32; set auto")
    torch.manual_seed(config.seed)
    backbone = _backbone(config, tokenizer, torch.bfloat16 if config.training.deepspeed and bf16 else torch.float32)
    backbone.use_options(family_options(model.family, model.options))
    backbone.use_attention_backend(choose_attention_backend(model.attention, device, dtype))
    if model.feature_cache:
        backbone.feature_cache = FeatureCache(model.feature_cache)
    wrapped = DetectionVLM(backbone, model.detection)
    if model.start:
        load_head(wrapped, Path(model.start))
    use_liger(backbone, model.liger, device)
    if model.gradient_checkpointing != "none":
        checkpoint_activations(backbone, model.gradient_checkpointing, model.activation_budget)
    if model.weights == "4bit":
        hold_in_four_bits(backbone.vlm, lora_targets(backbone, model.lora.parts), device, dtype)
    if model.lora.parts:
        add_lora(wrapped, model.lora, source_of(config))
    freeze(wrapped, model.freeze, model.last_blocks)
    if bf16 and model.weights != "float32":
        hold_in_bf16(backbone, frozen_only=model.weights != "bfloat16")
    compile_parts(wrapped, model.compile, checkpointing=model.gradient_checkpointing, budget=model.activation_budget)
    return wrapped


def source_of(config: Config) -> str:
    """Folder or hub name of the weights and tokenizer that the model starts from; empty: none."""
    model = config.model
    return str(Path(model.start) / BACKBONE_FOLDER) if model.start else model.path


def _backbone(config: Config, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Backbone:
    """The backbone of model.start or model.path, or one with random weights.

    Raises:
        ConfigError: it cannot be loaded, or is not of this config's family and sizes.
    """
    model, family = config.model, backbone_class(config.model.family)
    if model.start:
        check_start_sizes(config, tokenizer)
        return load_backbone(family, Path(model.start), dtype)
    if not model.path:
        return family.from_scratch(scratch_sizes(model.family, model.scratch), len(tokenizer), tokenizer.get_vocab())
    if Path(model.path).is_dir() and not (Path(model.path) / "config.json").is_file():
        # transformers would build a model of default sizes
        raise ConfigError(f"model.path {model.path}: has no config.json; name a Hugging Face model folder")
    try:
        return family.from_pretrained(model.path, dtype)
    except OSError as error:
        raise ConfigError(f"model.path {model.path}: cannot be loaded: {str(error).splitlines()[0]}") from None


def freeze(model: DetectionVLM, groups: Sequence[str], last_blocks: Mapping[str, int] | None = None) -> None:
    """Freeze whole parameter groups, except for so many last blocks of them."""
    last = [block for part, count in (last_blocks or {}).items() for block in model.backbone.blocks(part)[-count:]]
    learning = {id(parameter) for block in last for parameter in block.parameters()}
    for name, parameter in model.named_parameters():
        if model.group_of(name) in groups and id(parameter) not in learning:
            parameter.requires_grad_(False)
