"""Typed configuration: YAML + dotted overrides → dataclasses; an unknown key names the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bbu.errors import ConfigError

GROUP_NAMES = ("vision", "merger", "llm", "detection", "adapter")


@dataclass
class SourceConfig:
    """Where annotations come from and how they become records."""

    format: str = "records"  # records | cabinet_photos | a key of data_conversion.formats.FORMATS
    path: str = ""  # folder of annotations and photos; for records: folder with {train,val,test}.jsonl
    taxonomy: str = ""  # shipped name or YAML file; empty = labels are taken as they are
    splits: dict[str, str] = field(default_factory=dict)  # e.g. {train: train+val, test: test}
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    max_teachers: int = 0
    on_error: str = "fail"  # fail | skip
    photos: dict[str, int] = field(default_factory=dict)  # cabinet_photos only: photos to draw for each split


@dataclass
class AugmentConfig:
    """Random changes to training photos that keep every box where it belongs."""

    flip_horizontal: float = 0.0  # probability
    flip_vertical: float = 0.0
    quarter_turns: bool = False  # any of the four, equally likely
    brightness: float = 0.0  # ± share
    contrast: float = 0.0


@dataclass
class DataConfig:
    source: SourceConfig = field(default_factory=SourceConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    image_root: str = ""  # image paths are relative to this; default: source.path
    language: str = "zh"  # of the prompts: zh | en
    min_pixels: int = 56 * 56
    max_pixels: int = 1280 * 28 * 28
    max_length: int = 8192  # tokens of one sample; a longer one is an error
    teachers_per_sample: int = 0
    workers: int = 0  # processes that load photos


@dataclass
class ScratchConfig:
    """Sizes of a randomly initialised Qwen2.5-VL, used when model.path is empty."""

    vision_width: int = 192
    vision_depth: int = 4
    vision_heads: int = 3
    vision_full_attention: list[int] = field(default_factory=lambda: [1, 3])
    text_width: int = 128
    text_depth: int = 2
    text_heads: int = 4
    text_kv_heads: int = 2
    vocab_size: int = 800  # upper bound; the byte-level BPE is trained on the training text


@dataclass
class DetectionConfig:
    """Adapters, decoder and caption decoder."""

    width: int = 192
    queries: int = 100
    layers: int = 3
    heads: int = 8
    points: int = 4
    caption_layers: int = 2
    caption_region_cells: int = 5
    caption_max_tokens: int = 24


@dataclass
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2022) of parts of the backbone, through peft."""

    parts: list[str] = field(default_factory=list)  # any of llm, vision; empty = off
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


@dataclass
class ModelConfig:
    family: str = "qwen2_5_vl"
    path: str = ""  # local folder or hub name; empty = from scratch
    tokenizer: str = ""  # folder; empty = the one in path, or trained on the data when from scratch
    trust_remote_code: bool = False
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention: str = "auto"  # auto | sdpa | torch_varlen | flash_attn
    freeze: list[str] = field(default_factory=list)  # groups that do not learn
    gradient_checkpointing: bool = False


@dataclass
class LossConfig:
    """Weights of the terms in the total, shared by all decoder layers, and the matcher's costs."""

    teacher_lm_weight: float = 0.1
    student_lm_weight: float = 1.0
    bbox_l1_weight: float = 5.0
    bbox_giou_weight: float = 2.0
    objectness_weight: float = 2.0
    caption_weight: float = 1.0
    match_l1: float = 5.0
    match_giou: float = 2.0
    match_objectness: float = 2.0
    proposals_per_object: int = 4  # image tokens that learn to propose each part


@dataclass
class LearningRates:
    """One for each parameter group; 0 freezes nothing, it only stops the steps: use model.freeze."""

    vision: float = 1e-5
    merger: float = 1e-5
    llm: float = 1e-5
    detection: float = 1e-4
    adapter: float = 1e-4


@dataclass
class TrainingConfig:
    max_steps: int = 1000
    batch_size: int = 4  # samples in a pack, on each rank
    gradient_accumulation: int = 1
    packed: bool = True  # False: padded batches
    learning_rates: LearningRates = field(default_factory=LearningRates)
    weight_decay: float = 0.01
    adam_beta2: float = 0.999  # 0.98 suits short runs from scratch
    warmup_steps: int = 50
    schedule: str = "cosine"  # those of transformers that need no settings of their own: SCHEDULES
    max_grad_norm: float = 1.0
    precision: str = "auto"  # auto | fp32 | bf16
    select_best: bool = True  # keep the checkpoint with the best val AP50; False: the last one
    eval_every: int = 0  # steps between evaluations on val; 0 = never
    save_every: int = 0  # steps between checkpoints; 0 = only at the end (with select_best: at each evaluation)
    keep_checkpoints: int = 2
    log_every: int = 10
    report_to: list[str] = field(default_factory=list)  # wandb, tensorboard
    deepspeed: str = ""  # path of a DeepSpeed JSON; empty = off
    resume: bool = False  # go on from the newest checkpoint in the output folder
    overwrite: bool = False  # replace the checkpoints of an earlier run in the output folder
    threads: int = 0  # torch's CPU threads; 0 = all


@dataclass
class EvaluationConfig:
    split: str = "test"
    batch_size: int = 8
    captions_per_photo: int = 100  # boxes, by objectness, that get words and are written
    duplicate_iou: float = 0.7  # overlap with a surer box above which a box is the same part again; 1 keeps all
    score_threshold: float = 0.3  # for pictures, false alarms and rates; AP uses every prediction
    pictures: int = 8


@dataclass
class Config:
    name: str = ""  # default: the config file's name
    output_dir: str = ""  # default: outputs/<name>
    seed: int = 17
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


SCHEDULES = (
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
)  # fmt: skip
CHOICES = {
    "data.language": ("zh", "en"),
    "data.source.on_error": ("fail", "skip"),
    "model.attention": ("auto", "sdpa", "torch_varlen", "flash_attn"),
    "training.precision": ("auto", "fp32", "bf16"),
    "training.schedule": SCHEDULES,
    "evaluation.split": ("val", "test"),
}
AT_LEAST_ONE = (
    "data.min_pixels", "data.max_length", "model.detection.width", "model.detection.queries",
    "model.detection.layers", "model.detection.heads", "model.lora.rank", "model.scratch.vision_width",
    "model.scratch.vision_depth", "model.scratch.vision_heads", "model.scratch.text_width",
    "model.scratch.text_depth", "model.scratch.text_heads", "model.scratch.text_kv_heads", "model.scratch.vocab_size",
    "model.detection.points", "model.detection.caption_layers", "model.detection.caption_region_cells",
    "model.detection.caption_max_tokens", "training.max_steps", "training.batch_size",
    "training.gradient_accumulation", "training.keep_checkpoints", "training.log_every",
    "evaluation.batch_size", "evaluation.captions_per_photo", "loss.proposals_per_object",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "data.workers", "data.teachers_per_sample", "data.source.max_teachers", "training.warmup_steps",
    "training.eval_every", "training.save_every", "training.weight_decay", "training.threads", "evaluation.pictures",
    "loss.teacher_lm_weight", "loss.student_lm_weight", "loss.bbox_l1_weight", "loss.bbox_giou_weight",
    "loss.objectness_weight", "loss.caption_weight", "loss.match_l1", "loss.match_giou", "loss.match_objectness",
    "training.max_grad_norm",
    *(f"training.learning_rates.{group}" for group in GROUP_NAMES),
)  # fmt: skip
FRACTIONS = (
    "data.source.val_fraction", "data.source.test_fraction", "data.augment.flip_horizontal",
    "data.augment.flip_vertical", "data.augment.brightness", "data.augment.contrast",
    "evaluation.score_threshold", "evaluation.duplicate_iou",
    "training.adam_beta2", "model.lora.dropout",
)  # fmt: skip


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply ``dotted.key=value`` overrides, check every key and value.

    Raises:
        ConfigError: one line with the file or override, the key, what is wrong and the nearest known key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    if not path.is_file():
        shipped = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), shipped, n=1)
        raise ConfigError(f"config {path} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except Exception as error:
        raise ConfigError(f"{path}: is not valid YAML: {_one_line(error)}") from None
    if loaded is None or loaded == {}:
        raise ConfigError(f"{path}: is empty")
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values")
    _check_keys(loaded, Config, str(path))
    merged = OmegaConf.structured(Config)
    try:
        merged = OmegaConf.merge(merged, OmegaConf.create(loaded))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None
    for override in overrides:
        merged = _apply_override(merged, override)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    config.name = config.name or path.stem
    config.output_dir = config.output_dir or f"outputs/{config.name}"
    check_values(config)
    return config


def _apply_override(merged: Any, override: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write it as key=value, e.g. training.max_steps=10")
    try:
        change = OmegaConf.from_dotlist([override if value else f"{key}=''"])  # a shell eats the quotes
        _check_keys(OmegaConf.to_container(change), Config, f"override {override!r}")
        return OmegaConf.merge(merged, change)
    except OmegaConfBaseException as error:
        raise ConfigError(f"override {override!r}: {_explain(error)}") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"override {override!r}: {_one_line(error)}") from None
    except Exception as error:  # yaml's own errors share no base with omegaconf's
        raise ConfigError(f"override {override!r}: cannot be read: {_one_line(error)}") from None


def _check_keys(values: Any, schema: type, where: str, prefix: str = "") -> None:
    """Every key must be a field of the schema; a section must be a mapping."""
    known = {item.name: item for item in dataclasses.fields(schema)}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            near = difflib.get_close_matches(name, all_keys(), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; keys here are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {name}{hint}")
        default = known[key].default_factory
        section = default if isinstance(default, type) and dataclasses.is_dataclass(default) else None
        if section is not None:
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {name} is a section with keys of its own, not {value!r}")
            _check_keys(value, section, where, f"{name}.")


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
    if config.data.max_pixels < config.data.min_pixels:
        raise ConfigError(
            f"data.max_pixels ({config.data.max_pixels}) is below data.min_pixels ({config.data.min_pixels})"
        )
    if config.training.adam_beta2 == 1:
        raise ConfigError("training.adam_beta2: must be below 1, or the optimizer never learns a scale")
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
    scratch = config.model.scratch
    for whole, part, times in (
        ("vision_width", "vision_heads", 4),  # rows and columns, each a sine and a cosine
        ("text_width", "text_heads", 2),
        ("text_heads", "text_kv_heads", 1),
    ):
        if getattr(scratch, whole) % (times * getattr(scratch, part)):
            raise ConfigError(
                f"model.scratch.{whole} ({getattr(scratch, whole)}) must be a multiple of "
                f"{f'{times} x ' if times > 1 else ''}model.scratch.{part} ({getattr(scratch, part)})"
            )
    detection = config.model.detection
    if detection.width % (2 * detection.heads) or detection.width % 4:
        raise ConfigError(
            f"model.detection.width ({detection.width}) must be a multiple of 4 and of 2 x heads ({detection.heads})"
        )
    for target in config.training.report_to:
        if target not in ("wandb", "tensorboard"):
            raise ConfigError(f"training.report_to: {target!r} is not one of wandb, tensorboard")


def _explain(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    message = _one_line(error)
    return f"{key}: {message}" if key else message


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    full_key:")[0].split())
