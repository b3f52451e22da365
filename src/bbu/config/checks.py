"""Checks that types alone cannot make: ranges and choices of each field, and keys that must fit together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from bbu.config.schema import (
    DETECTION_GROUPS,
    DETECTION_PARTS,
    GROUP_NAMES,
    TEXT_METRICS,
    VAL_METRICS,
    Config,
    SourceConfig,
)
from bbu.errors import ConfigError, UserError
from bbu.families.registry import family_options, scratch_sizes
from bbu.tiles import Tiles

BLOCK_GROUPS = ("vision", "llm")  # that are made of blocks
RECORDS_KEYS = {"format", "path", "taxonomy", "on_error"}  # of data.source, for rows that need no conversion


def section_of(item: dataclasses.Field[Any]) -> type | None:
    """The dataclass of a field that is a section; None: the field holds a value."""
    made = item.default_factory
    return made if isinstance(made, type) and dataclasses.is_dataclass(made) else None


def may_be_null(item: dataclasses.Field[Any]) -> bool:
    """Whether a section may be null as a whole."""
    return str(item.type).endswith("| None")


def all_keys(schema: type = Config, prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """Every dotted key of the configuration → its range or choices (empty: none)."""
    keys: dict[str, Mapping[str, Any]] = {}
    for item in dataclasses.fields(schema):
        section = section_of(item)
        name = f"{prefix}{item.name}"
        keys |= all_keys(section, f"{name}.") if section else {name: item.metadata}
    return keys


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key; None within a section that is null."""
    value: Any = config
    for name in key.split("."):
        value = None if value is None else getattr(value, name)
    return value


def idle_source_keys(config: Config) -> list[str]:
    """One sentence for each key of data.source that is set and does nothing for the format."""
    source, default = config.data.source, SourceConfig()
    if source.format == "records":
        used, why = RECORDS_KEYS, "rows of the records format are used as they are"
    elif source.format == "cabinet_photos":
        return []
    else:
        used, why = (
            {item.name for item in dataclasses.fields(SourceConfig)} - {"photos"},
            "only cabinet_photos draws photos",
        )
    return [
        f"data.source.{item.name} has no effect: {why}"
        for item in dataclasses.fields(SourceConfig)
        if item.name not in used and getattr(source, item.name) != getattr(default, item.name)
    ]


def check_values(config: Config) -> None:
    """Check every value by itself, then those that must fit together.

    Raises:
        ConfigError: the key, its value and the fix.
    """
    for key, rule in all_keys().items():
        value = value_at(config, key)
        if "span" in rule:
            _check_span(key, value, *rule["span"])
        elif isinstance(value, dict):
            for name, one in value.items():
                _check_value(f"{key}.{name}", one, rule)
        else:
            for one in value if isinstance(value, list) else [value]:
                _check_value(key, one, rule)
    _check_data(config)
    _check_model(config)
    _check_weights(config)
    _check_training(config)
    if config.model.detection is None:
        _check_without_detection(config)


def _check_value(key: str, value: Any, rule: Mapping[str, Any]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: must be a finite number, is {value}")
    if "among" in rule and value not in rule["among"]:
        raise ConfigError(f"{key}: {value!r} is not one of {', '.join(word or 'empty' for word in rule['among'])}")
    if "least" not in rule or value is None or rule["least"] <= value <= rule["most"]:
        return
    least, most, note = rule["least"], rule["most"], rule["note"]
    allowed = f"lie between {least} and {most:,}" if most < math.inf else f"be at least {least}"
    text = f"{key}: must {'not be negative' if (least, most) == (0, math.inf) else allowed}, is {value}"
    raise ConfigError(f"{text} ({note})" if note else text)


def _check_span(key: str, value: list[float], least: float, most: float) -> None:
    numbers = len(value) == 2 and all(isinstance(end, (int, float)) for end in value)
    if not numbers or not least <= value[0] <= value[1] <= most:
        raise ConfigError(
            f"{key}: must be two numbers, [from, to], between {least} and {most} and in order, is {list(value)}"
        )


def _check_data(config: Config) -> None:
    data = config.data
    if 0 < data.max_pixels < data.min_pixels:
        raise ConfigError(f"data.max_pixels ({data.max_pixels}) is below data.min_pixels ({data.min_pixels})")
    if data.replay.path and not data.replay.share:
        raise ConfigError("data.replay.share: is 0, so data.replay.path has no effect; set a share, or empty the path")
    answers = data.answers
    if answers.verdict and not answers.judged_by:
        raise ConfigError("data.answers.judged_by: is empty; name rules (.yaml) or verdicts of groups (.jsonl)")
    if answers.judged_by and not answers.verdict:
        raise ConfigError("data.answers.verdict: is 0, so judged_by has no effect; set a share, or empty judged_by")
    if data.tiles:
        try:
            Tiles.parse(data.tiles)
        except UserError as error:
            raise ConfigError(f"data.{error}") from None
    for count in data.episodes.counts:
        if count < 0:
            raise ConfigError(f"data.episodes.counts: a sample cannot have {count} teachers; write 0 or more")


def _check_training(config: Config) -> None:
    training = config.training
    for name in ("pack_tokens", "pack_pixels", "pack_images"):
        if getattr(training, name) and not training.packed:
            raise ConfigError(
                f"training.{name}: packs are planned for training.packed=true; padded batches have batch_size samples, "
                f"so set training.{name}=0"
            )
    if training.select_best == "accuracy" and not config.evaluation.answers:
        raise ConfigError(
            "training.select_best: accuracy is that of written answers, and evaluation.answers is 0; raise it, or "
            "choose by loss"
        )
    if training.early_stopping.patience:
        key = "training.early_stopping.patience"
        if not training.eval_every:
            raise ConfigError(
                f"{key}: counts evaluations on val, and there are none; set training.eval_every, or patience to 0"
            )
        if not training.select_best:
            raise ConfigError(f"{key}: no metric is watched; name one in training.select_best, or patience to 0")


def _check_weights(config: Config) -> None:
    """How weights and optimizer are held."""
    model, training = config.model, config.training
    if model.weights == "4bit" and not model.lora.parts:
        raise ConfigError("model.weights: 4bit weights cannot learn; name what LoRA adapts in model.lora.parts")
    if model.publish == "adapter" and not model.lora.parts:
        raise ConfigError("model.publish: there are no adapters without model.lora.parts; set merged")
    if model.publish == "adapter" and config.phases:
        raise ConfigError("model.publish: a phase starts from whole weights, not from adapters; set merged")
    if model.publish == "adapter" and not model.path:
        raise ConfigError("model.publish: adapters of random weights are of no use; set merged, or name model.path")
    if training.deepspeed and model.weights != "auto":
        raise ConfigError(f"model.weights: DeepSpeed decides how weights are held, not {model.weights}; set auto")
    if training.optimizer == "adamw_8bit":
        if training.deepspeed:
            raise ConfigError("training.optimizer: DeepSpeed has an optimizer of its own; set adamw")
        if model.weights == "bfloat16":
            raise ConfigError(
                "training.optimizer: adamw_8bit keeps no float32 masters, so small steps of bfloat16 weights would be "
                "rounded away; set model.weights=auto or training.optimizer=adamw"
            )
    if model.weights == "bfloat16" and training.precision == "fp32":
        raise ConfigError("model.weights: bfloat16 needs products in bfloat16; set training.precision=auto")


def _check_model(config: Config) -> None:
    model = config.model
    learning = set(GROUP_NAMES) - set(model.freeze) - set(() if model.detection else DETECTION_GROUPS)
    if not learning:
        of_model = "" if model.detection else " of a model without detection"
        raise ConfigError(f"model.freeze: names every group{of_model}, so nothing would learn; leave one out")
    if model.activation_budget is not None and model.gradient_checkpointing != "selective":
        raise ConfigError(
            f"model.activation_budget: is a share of what model.gradient_checkpointing=selective keeps, and that is "
            f"{model.gradient_checkpointing}; set it to selective, or the budget to null"
        )
    for group in model.last_blocks:
        if group not in BLOCK_GROUPS:
            raise ConfigError(f"model.last_blocks: {group!r} is not one of {', '.join(BLOCK_GROUPS)}")
        if group not in model.freeze:
            raise ConfigError(f"model.last_blocks: all of {group} learns; add it to model.freeze, or leave it out here")
    if model.feature_cache:
        why = "keeps features of a frozen vision tower, and this one would learn"
        if "vision" in model.lora.parts:
            raise ConfigError(f"model.feature_cache: {why} (model.lora.parts); leave vision out, or empty the key")
        if "vision" not in model.freeze or "vision" in model.last_blocks:
            raise ConfigError(f"model.feature_cache: {why}; add vision to model.freeze, or empty the key")
    scratch_sizes(model.family, model.scratch)
    family_options(model.family, model.options)
    detection = model.detection
    if detection is None:
        return
    if detection.width % (2 * detection.heads) or detection.width % 4:
        raise ConfigError(
            f"model.detection.width ({detection.width}) must be a multiple of 4 and of 2 x heads ({detection.heads})"
        )


def _check_without_detection(config: Config) -> None:
    """Refuse what needs boxes or captions of a model that predicts none."""
    training, loss, why = config.training, config.loss, "and model.detection is null"
    if not (loss.teacher_lm_weight or loss.student_lm_weight or loss.replay_lm_weight):
        raise ConfigError(
            f"loss.student_lm_weight: no language loss has a weight, {why}, so nothing would learn; set it"
        )
    if training.closing.epochs:
        raise ConfigError(f"training.closing.epochs: trains the caption decoder, {why}; set it to 0")
    if training.visual_every:
        raise ConfigError(f"training.visual_every: draws predicted boxes, {why}; set it to 0")
    if training.eval_every and training.select_best in VAL_METRICS:
        raise ConfigError(
            f"training.select_best: {training.select_best} is measured on predicted boxes, {why}; set it to "
            f"{' or '.join(TEXT_METRICS)}, or training.eval_every=0, which publishes the last checkpoint"
        )
    if config.evaluation.rules:
        raise ConfigError(f"evaluation.rules: count predicted boxes, {why}; empty it")
    if parts := [part for part in config.model.compile if part in DETECTION_PARTS]:
        raise ConfigError(f"model.compile: {', '.join(parts)} belong to detection, {why}; leave them out")
