"""What types alone cannot check: ranges, choices, and keys that must fit together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from bbu.config.schema import COMPILED_PARTS, GROUP_NAMES, Config
from bbu.errors import ConfigError
from bbu.families.registry import scratch_sizes

SCHEDULES = (
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
)  # fmt: skip
AUGMENT_LIMITS = (("rotate", 45, "degrees; quarter_turns does the rest"), ("scale", 0.9, ""), ("hue", 0.5, ""))
AUGMENT_RANGES = (("blur_sigma", 0.1, 20), ("jpeg_quality", 1, 100), ("crop_area", 0.01, 1))  # least and most allowed
CHOICES = {
    "data.language": ("zh", "en"),
    "data.source.on_error": ("fail", "skip"),
    "data.source.images": ("keep", "link", "copy", "reencode"),
    "data.source.frame": ("", "displayed", "stored"),
    "data.augment.teachers": ("independent", "same", "none"),
    "data.episodes.choose": ("random", "label_cover", "variety", "nearest"),
    "data.episodes.pool": ("teacher", "train"),
    "data.sampling.method": ("uniform", "repeat_factor", "class_aware"),
    "model.liger": ("none", "auto", "always"),
    "model.gradient_checkpointing": ("none", "selective", "full"),
    "model.attention": ("auto", "sdpa", "torch_varlen", "flash_attn"),
    "training.precision": ("auto", "fp32", "bf16"),
    "training.schedule": SCHEDULES,
    "evaluation.split": ("val", "test"),
    "evaluation.descriptions": ("free", "known"),
    "evaluation.calibration": ("none", "temperature", "isotonic"),
}
AT_LEAST_ONE = (
    "data.max_length", "model.detection.width", "model.detection.queries",
    "model.detection.layers", "model.detection.heads", "model.lora.rank", "model.detection.points", "model.detection.caption_layers", "model.detection.caption_region_cells",
    "model.detection.caption_max_tokens", "training.max_steps", "training.batch_size",
    "training.gradient_accumulation", "training.keep_checkpoints", "training.log_every",
    "evaluation.batch_size", "evaluation.max_detections", "data.augment.paste_parts",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "data.min_pixels", "data.max_pixels", "data.workers", "data.source.max_teachers", "data.source.image_max_pixels",
    "data.episodes.near_duplicate_bits",
    "data.episodes.context_photos", "data.sampling.level", "evaluation.teachers", "evaluation.bootstrap_samples",
    "training.warmup_steps", "training.eval_every", "training.save_every", "training.visual_every",
    "training.weight_decay", "training.threads", "evaluation.pictures",
    "training.pack_tokens", "training.pack_pixels", "training.pack_images",
    "loss.teacher_lm_weight", "loss.student_lm_weight", "loss.bbox_l1_weight", "loss.bbox_giou_weight",
    "loss.objectness_weight", "loss.caption_weight", "loss.match_l1", "loss.match_giou", "loss.match_objectness",
    "training.max_grad_norm", "loss.denoising_groups",
    *(f"training.learning_rates.{group}" for group in GROUP_NAMES),
)  # fmt: skip
FRACTIONS = (
    "data.source.val_fraction", "data.source.test_fraction", "data.augment.flip_horizontal",
    "data.augment.flip_vertical", "data.augment.brightness", "data.augment.contrast",
    *(f"data.augment.{key}" for key in ("saturation", "sharpness", "grey", "blur", "jpeg", "crop", "object_crop",
    "min_visible", "mosaic", "copy_paste", "paste_margin", "paste_cover")),
    *(f"data.augment.curriculum.{key}" for key in ("start", "full_at", "close_mosaic")),
    "evaluation.score_threshold", "evaluation.nms_iou", "evaluation.target_precision",
    "training.adam_beta2", "model.lora.dropout", "data.sampling.threshold",
)  # fmt: skip


def all_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the configuration."""
    keys: list[str] = []
    for item in dataclasses.fields(schema):
        default = item.default_factory
        if isinstance(default, type) and dataclasses.is_dataclass(default):
            keys += all_keys(default, f"{prefix}{item.name}.")
        else:
            keys.append(f"{prefix}{item.name}")
    return keys


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def check_values(config: Config) -> None:
    """Checks that types alone cannot make.

    Raises:
        ConfigError: the key, its value and the fix.
    """
    for key in all_keys():
        if isinstance(value_at(config, key), float) and not math.isfinite(value_at(config, key)):
            raise ConfigError(f"{key}: must be a finite number, is {value_at(config, key)}")
    for key, choices in CHOICES.items():
        if value_at(config, key) not in choices:
            raise ConfigError(f"{key}: {value_at(config, key)!r} is not one of {', '.join(choices)}")
    for key in AT_LEAST_ONE:
        if value_at(config, key) < 1:
            raise ConfigError(f"{key}: must be at least 1, is {value_at(config, key)}")
    for key in NOT_NEGATIVE:
        if not value_at(config, key) >= 0:
            raise ConfigError(f"{key}: must not be negative, is {value_at(config, key)}")
    for key in FRACTIONS:
        if not 0 <= value_at(config, key) <= 1:
            raise ConfigError(f"{key}: must lie between 0 and 1, is {value_at(config, key)}")
    if 0 < config.data.max_pixels < config.data.min_pixels:
        raise ConfigError(
            f"data.max_pixels ({config.data.max_pixels}) is below data.min_pixels ({config.data.min_pixels})"
        )
    if config.training.adam_beta2 == 1:
        raise ConfigError("training.adam_beta2: must be below 1, or the optimizer never learns a scale")
    _check_episodes(config)
    _check_augment(config)
    for limit in config.evaluation.fppi:
        if not 0 <= limit <= 1e6:
            raise ConfigError(f"evaluation.fppi: must lie between 0 and a million, is {limit}")
    for split, count in config.data.source.photos.items():
        if count < 0:
            raise ConfigError(f"data.source.photos: {split} must not be negative, is {count}")
    for group in config.model.freeze:
        if group not in GROUP_NAMES:
            raise ConfigError(f"model.freeze: {group!r} is not one of {', '.join(GROUP_NAMES)}")
    if set(config.model.freeze) == set(GROUP_NAMES):
        raise ConfigError("model.freeze: names every group, so nothing would learn; leave one out")
    for part in config.model.lora.parts:
        if part not in ("llm", "vision"):
            raise ConfigError(f"model.lora.parts: {part!r} is not one of llm, vision")
    for part in config.model.compile:
        if part not in COMPILED_PARTS:
            raise ConfigError(f"model.compile: {part!r} is not one of {', '.join(COMPILED_PARTS)}")
    recomputed = sorted({"llm", "vision"} & {*config.model.compile})
    if recomputed and config.model.gradient_checkpointing != "none":
        raise ConfigError(
            "model.compile: blocks that are recomputed (model.gradient_checkpointing) run as they are; "
            f"leave {', '.join(recomputed)} out, or set model.gradient_checkpointing=none"
        )
    _check_feature_cache(config)
    scratch_sizes(config.model.family, config.model.scratch)
    detection = config.model.detection
    if detection.width % (2 * detection.heads) or detection.width % 4:
        raise ConfigError(
            f"model.detection.width ({detection.width}) must be a multiple of 4 and of 2 x heads ({detection.heads})"
        )
    _check_packs(config)
    if not 1 <= config.training.visual_photos <= 16:
        raise ConfigError(f"training.visual_photos: must lie between 1 and 16, is {config.training.visual_photos}")
    for target in config.training.report_to:
        if target not in ("wandb", "tensorboard"):
            raise ConfigError(f"training.report_to: {target!r} is not one of wandb, tensorboard")


def _check_feature_cache(config: Config) -> None:
    model = config.model
    if not model.feature_cache:
        return
    why = "features are kept of a tower that does not learn, and this one would"
    if "vision" in model.lora.parts:
        raise ConfigError(f"model.feature_cache: {why} (model.lora.parts); leave vision out of it, or empty the key")
    if "vision" not in model.freeze:
        raise ConfigError(f"model.feature_cache: {why}; add vision to model.freeze, or empty the key")


def _check_packs(config: Config) -> None:
    training = config.training
    for name in ("pack_tokens", "pack_pixels", "pack_images"):
        if getattr(training, name) and not training.packed:
            raise ConfigError(
                f"training.{name}: packs are planned for training.packed=true, padded batches have batch_size samples; "
                f"set training.{name}=0"
            )


def _check_episodes(config: Config) -> None:
    counts = config.data.episodes.counts
    for count, share in counts.items():
        if count < 0:
            raise ConfigError(f"data.episodes.counts: {count} teachers cannot be; write 0 or more")
        if not (math.isfinite(share) and share >= 0):
            raise ConfigError(f"data.episodes.counts: the share of {count} must not be negative, is {share}")
    if config.data.episodes.near_duplicate_bits >= 64:
        raise ConfigError(
            f"data.episodes.near_duplicate_bits: a hash has 64 bits, {config.data.episodes.near_duplicate_bits} "
            "would make every photo a near duplicate; write less, e.g. 4"
        )


def _check_augment(config: Config) -> None:
    """Amounts that are no shares, and the pairs of a least and a most."""
    augment = config.data.augment
    for name, most, why in AUGMENT_LIMITS:
        if not 0 <= getattr(augment, name) <= most:
            text = f"data.augment.{name}: must lie between 0 and {most}, is {getattr(augment, name)}"
            raise ConfigError(f"{text} ({why})" if why else text)
    for name, least, most in AUGMENT_RANGES:
        values = getattr(augment, name)
        if len(values) != 2 or not least <= values[0] <= values[1] <= most:
            raise ConfigError(
                f"data.augment.{name}: must be two numbers, [from, to], from {least} to {most} and not falling, "
                f"is {list(values)}"
            )
