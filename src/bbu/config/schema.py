"""Every key of the configuration: its type, default, range or choices, and meaning.

Ranges and choices are metadata of the fields, applied by ``checks.py``. In a list or mapping they hold for each value.
"""

# ruff: noqa: RUF009 (ranged, choice and so on return dataclasses.field)
from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from bbu.families.registry import DEFAULT_FAMILY

COMPILED_PARTS = ("decoder", "captions", "llm", "vision")
DETECTION_PARTS = ("decoder", "captions")  # those of them that a model without detection lacks
VAL_METRICS = ("AP", "AP50", "AP50_agnostic", "description_accuracy")  # reported on val during training
WORD_METRICS = ("words_in_use", "words_entropy")  # of a visual vocabulary, as shares (bbu.inference.words)
TEXT_METRICS = ("loss", "accuracy")  # of the language model's answers on val
GROUP_NAMES = ("vision", "merger", "llm", "detection", "adapter")
DETECTION_GROUPS = ("detection", "adapter")  # empty in a model without detection
SCHEDULES = (  # those of transformers that need no settings of their own
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
)  # fmt: skip


def _checked(default: Any, **rule: Any) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.copy(default), metadata=rule)
    return field(default=default, metadata=rule)


def ranged(default: Any, least: float = 0, most: float = math.inf, note: str = "") -> Any:
    """A number from ``least`` to ``most``, both included; ``note`` ends the error message."""
    return _checked(default, least=least, most=most, note=note)


def positive(default: int) -> Any:
    """A whole number of at least 1."""
    return ranged(default, least=1)


def fraction(default: float | None) -> Any:
    """A number from 0 to 1, both included; a default of None means that nobody asks for one."""
    return ranged(default, most=1)


def span(default: list[Any], least: float, most: float) -> Any:
    """Two numbers, [from, to], between ``least`` and ``most`` and in order."""
    return _checked(default, span=(least, most))


def choice(default: Any, among: tuple[str, ...]) -> Any:
    """One of some words, or a list of them."""
    return _checked(default, among=among)


@dataclass
class SourceConfig:
    """Where annotations come from and how they become records."""

    format: str = "records"  # records | cabinet_photos | a key of data_conversion.formats.FORMATS
    path: str = ""  # folder of annotations and photos; for records: the folder of {train,val,test}.jsonl
    taxonomy: str = ""  # shipped name or YAML file; empty = labels stay as they are
    splits: dict[str, str] = field(default_factory=dict)  # e.g. {train: train+val, test: test}
    # Shares drawn by seed. None: 0.1 and 0 where the source has no splits of its own, else none. A number is also drawn
    # from a source that has splits but not this one.
    val_fraction: float | None = fraction(None)
    test_fraction: float | None = fraction(None)
    group_by: str = ""  # drawn splits keep these together: folder, or a regex on the photo's path; empty: its group
    max_teachers: int = ranged(0)  # training photos set aside as worked examples (teacher.jsonl)
    on_error: str = choice("fail", ("fail", "skip"))  # skip: malformed files are listed in invalid_samples.jsonl
    images: str = choice("keep", ("keep", "link", "copy", "reencode"))  # what conversion does with photo files
    frame: str = choice("", ("", "displayed", "stored"))  # what coordinates refer to; empty: the format's rule
    follow_links: bool = False  # read what links show from outside path; photos then need images: link or copy
    units: str = choice("", ("", "shares"))  # shares: coordinates are shares of the photo; empty: the format's rule
    summaries: str = choice("", ("", "zh", "en"))  # photos without a summary get one that counts their objects
    summary_levels: int = ranged(0)  # levels of descriptions that these summaries count together; 0 = all
    photos: dict[str, int] = ranged({})  # cabinet_photos only: photos to draw for each split


@dataclass
class CurriculumConfig:
    """Strength of augmentation over training; 0 = the start of the run, 1 = its end."""

    start: float = fraction(1.0)  # strength at the first step; it scales probabilities and ± ranges
    full_at: float = fraction(0.0)  # where strength, rising linearly, reaches 1
    close_mosaic: float = fraction(0.0)  # last share of the run, without mosaic and copy-paste


@dataclass
class AugmentConfig:
    """Random views of training photos; geometry and descriptions change with the pixels (docs/augmentation.md)."""

    flip_horizontal: float = fraction(0.0)  # probability
    flip_vertical: float = fraction(0.0)
    quarter_turns: bool = False  # any of the four, equally likely
    brightness: float = fraction(0.0)  # ± share
    contrast: float = fraction(0.0)
    saturation: float = fraction(0.0)
    sharpness: float = fraction(0.0)
    hue: float = ranged(0.0, most=0.5)  # ± share of the colour circle
    grey: float = fraction(0.0)  # probability
    blur: float = fraction(0.0)  # probability
    blur_sigma: list[float] = span([0.5, 2.0], 0.1, 20)  # pixels of the photo, from and to
    jpeg: float = fraction(0.0)  # probability of encoding once more
    jpeg_quality: list[int] = span([30, 90], 1, 100)  # from and to
    rotate: float = ranged(0.0, most=45, note="degrees; quarter_turns does the rest")  # ± degrees; boxes grow
    scale: float = ranged(0.0, most=0.9)  # ± share: 0.2 zooms by 0.8 to 1.2; the photo keeps its size
    crop: float = fraction(0.0)  # probability
    object_crop: float = fraction(0.0)  # probability of a crop around an object, all objects equally likely
    crop_area: list[float] = span([0.4, 0.9], 0.01, 1)  # of both crops: share of the photo, from and to
    min_visible: float = fraction(0.4)  # objects that keep less of their area (lines: length) are dropped, others cut
    mosaic: float = fraction(0.0)  # probability of joining four training photos into one
    copy_paste: float = fraction(0.0)  # probability of pasting objects from other photos, rare descriptions first
    paste_objects: int = positive(3)  # most objects pasted into one photo
    paste_margin: float = fraction(0.2)  # cut out around the object, share of its longer side
    paste_cover: float = fraction(0.1)  # largest share of another object that a pasted one may hide
    teachers: str = choice("independent", ("independent", "same", "none"))  # same: one draw for all photos of a sample
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)


@dataclass
class EpisodesConfig:
    """Photos shown with a training photo: worked examples (teachers), others of its site (docs/episodes.md)."""

    counts: dict[int, float] = ranged({})  # teachers → share of samples, e.g. {0: 0.5, 3: 0.2}; {} = no teachers
    choose: str = choice("random", ("random", "label_cover", "variety", "nearest"))
    pool: str = choice("teacher", ("teacher", "train"))  # teacher: rows of teacher.jsonl; train: the training photos
    # A photo whose perceptual hash differs from the student's in at most so many bits is never its teacher.
    near_duplicate_bits: int = ranged(4, most=63, note="a hash has 64 bits")
    context_photos: int = ranged(0)  # most photos of the same metadata.group shown before the student's own photo


@dataclass
class SamplingConfig:
    """How often each training photo is shown (docs/episodes.md)."""

    method: str = choice("uniform", ("uniform", "repeat_factor", "class_aware"))
    level: int = ranged(0)  # levels of a description that make a class; 0 = the whole description
    threshold: float = fraction(0.1)  # repeat_factor: classes on fewer photos than this share are repeated
    empty_tiles: float = fraction(0.25)  # data.tiles: share of the tiles without objects shown in an epoch, drawn anew


@dataclass
class AnswersConfig:
    """What training samples are asked for, as shares of those that have it (docs/answers.md)."""

    boxes: float = ranged(1.0)  # the photo's objects as JSON
    summary: float = ranged(0.0)  # the row's summary, as text
    group: float = ranged(0.0)  # the objects of each photo of the group (metadata.group), shown in one turn
    verdict: float = ranged(0.0)  # whether the photos of the group, shown in one turn, pass, and why
    judged_by: str = ""  # what makes verdicts: rules (.yaml), or verdicts of groups (.jsonl): docs/verdicts.md
    group_photos: int = ranged(6, least=2)  # most photos of a turn about a group


@dataclass
class ReplayConfig:
    """Conversations trained on beside the photos, against forgetting (docs/replay.md)."""

    path: str = ""  # chat JSONL (docs/data_schema.md); its image paths are relative to its folder
    share: float = ranged(0.0, most=0.9, note="of the training samples; the rest are photos")


@dataclass
class DataConfig:
    source: SourceConfig = field(default_factory=SourceConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    answer_geometry: str = choice("box", ("box", "own"))  # own: polygons and lines are written as such
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    image_root: str = ""  # folder that image paths are relative to; default: source.path
    language: str = choice("zh", ("zh", "en"))  # of the prompts
    min_pixels: int = ranged(0)  # of a resized photo, at least; 0 = the default of the model's family
    max_pixels: int = ranged(0)  # of a resized photo, at most; 0 = the default of the model's family
    # Train, and by default predict, tiles beside each photo: auto or columns x rows such as 3x2; empty = whole photos
    tiles: str = ""
    max_length: int = positive(8192)  # tokens of one sample; a longer sample is an error
    workers: int = ranged(0)  # processes that load photos
    on_unreadable: str = choice("stop", ("stop", "skip"))  # a photo that turns unreadable while a run trains
    max_unreadable: int = ranged(10)  # skip: most such photos of a run


@dataclass
class DetectionConfig:
    """Sizes of the adapters, the detection decoder and the caption decoder."""

    width: int = positive(192)
    queries: int = positive(100)
    layers: int = positive(3)
    heads: int = positive(8)
    points: int = positive(4)
    caption_layers: int = positive(2)
    caption_region_cells: int = positive(5)
    caption_max_tokens: int = positive(24)


@dataclass
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2022) of parts of the backbone, through peft."""

    parts: list[str] = choice([], ("llm", "vision"))  # empty = off
    rank: int = positive(16)
    alpha: int = positive(32)
    dropout: float = fraction(0.0)


@dataclass
class ModelConfig:
    family: str = DEFAULT_FAMILY  # a key of bbu.families.registry.FAMILIES, or auto: that of the folder in path
    path: str = ""  # local folder or hub name; empty = random weights of the sizes in scratch
    tokenizer: str = ""  # folder; empty = the one in path, or one trained on the training text
    trust_remote_code: bool = False  # run Python code that comes with the folder in path; only for folders you trust
    scratch: dict[str, Any] = field(default_factory=dict)  # sizes where path is empty; the family has the keys
    options: dict[str, Any] = field(default_factory=dict)  # how the family's model runs; the family has the keys
    # null: no detection head, adapters or captions; the language model alone learns (docs/answers.md)
    detection: DetectionConfig | None = field(default_factory=DetectionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    # How the backbone's weights are held (docs/memory.md). auto: float32; frozen ones that are bfloat16 numbers in
    # bfloat16 where products run in it. bfloat16: all, with float32 masters in the optimizer. 4bit: layers under LoRA.
    weights: str = choice("auto", ("auto", "float32", "bfloat16", "4bit"))
    publish: str = choice("merged", ("merged", "adapter"))  # adapter: what LoRA learned, without the base model
    attention: str = choice("auto", ("auto", "sdpa", "torch_varlen", "flash_attn"))
    start: str = ""  # model folder of a run: its backbone, head and tokenizer are where training starts from
    freeze: list[str] = choice([], GROUP_NAMES)  # parameter groups that do not learn
    last_blocks: dict[str, int] = ranged({}, least=1)  # but so many last blocks of them do, e.g. {vision: 1}
    feature_cache: str = ""  # folder for the features of a frozen vision tower; empty = off (docs/memory.md)
    compile: list[str] = choice([], COMPILED_PARTS)  # blocks for torch.compile
    liger: str = choice("none", ("none", "auto", "always"))  # fused norms and MLPs of the package liger-kernel (CUDA)
    gradient_checkpointing: str = choice("none", ("none", "selective", "full"))  # docs/memory.md
    # share of the activations that selective keeps otherwise; null = all of them (docs/memory.md)
    activation_budget: float | None = ranged(None, least=0.01, most=1)


@dataclass
class LossConfig:
    """Weights of the loss terms, the same for all decoder layers, and costs of the matcher."""

    teacher_lm_weight: float = ranged(0.1)
    student_lm_weight: float = ranged(1.0)
    replay_lm_weight: float = ranged(1.0)
    bbox_l1_weight: float = ranged(5.0)
    bbox_giou_weight: float = ranged(2.0)
    objectness_weight: float = ranged(2.0)
    caption_weight: float = ranged(1.0)
    # β of class-balanced caption weights by description (docs/episodes.md): 0 = all weigh 1, near 1 = 1 / frequency
    caption_balance: float = ranged(0.0, most=0.99999, note="at 1 no description would weigh anything")
    match_l1: float = ranged(5.0)
    match_giou: float = ranged(2.0)
    match_objectness: float = ranged(2.0)
    denoising_queries: int = ranged(80)  # of a photo, in whole groups, at least one; 0 = none
    caption_groups: int = ranged(0)  # groups of denoising queries that learn captions too; 0 = none


@dataclass
class LearningRates:
    """One for each parameter group. A rate of 0 freezes nothing: use model.freeze."""

    vision: float = ranged(1e-5)
    merger: float = ranged(1e-5)
    llm: float = ranged(1e-5)
    detection: float = ranged(1e-4)
    adapter: float = ranged(1e-4)


@dataclass
class EarlyStoppingConfig:
    """End a run whose metric on val (training.select_best) gains no more (docs/training.md)."""

    patience: int = ranged(0)  # evaluations in a row without a gain that end the run; 0 = never
    min_delta: float = fraction(0.0)  # a gain is a value above the last gain's by more than this


@dataclass
class ClosingConfig:
    """Captions learn on after the last step, the rest of the model as it is (docs/training.md)."""

    epochs: int = ranged(0)  # over the kept features; 0 = no closing phase
    groups: int = ranged(1)  # denoising groups whose queries are kept beside the matched ones
    views: int = positive(1)  # random views kept of each training photo; they differ where data.augment is on
    batch_size: int = positive(16)  # samples
    learning_rate: float = ranged(5e-4)


@dataclass
class TrainingConfig:
    max_steps: int = positive(1000)
    batch_size: int = positive(4)  # samples in a pack, on each rank; unused where packs are planned
    # Planned packs (docs/packing.md): the most one may hold; all 0 = a pack is the next batch_size samples.
    pack_tokens: int = ranged(0)  # text and image tokens; 0 = no limit
    pack_pixels: int = ranged(0)  # of all its photos after the resize; 0 = no limit
    pack_images: int = ranged(0)  # photos, teachers' included; 0 = no limit
    gradient_accumulation: int = positive(1)
    packed: bool = True  # False: padded batches
    learning_rates: LearningRates = field(default_factory=LearningRates)
    closing: ClosingConfig = field(default_factory=ClosingConfig)
    optimizer: str = choice("adamw", ("adamw", "adamw_8bit"))  # 8-bit states need the package bitsandbytes
    weight_decay: float = ranged(0.01)
    adam_beta2: float = ranged(0.999, most=0.99999, note="at 1 Adam never learns a scale")
    warmup_steps: int = ranged(50)
    schedule: str = choice("cosine", SCHEDULES)
    max_grad_norm: float = ranged(1.0)
    on_not_finite: str = choice("stop", ("stop", "skip"))  # a step whose loss or gradient is NaN or infinite
    max_not_finite: int = ranged(10)  # skip: most such steps of a run
    precision: str = choice("auto", ("auto", "fp32", "bf16"))
    # Publish the checkpoint best by this on val; "" = the last. loss, the least: of the language model on the right
    # answers. accuracy: share of written answers that equal the right ones.
    select_best: str = choice("AP50", ("", *VAL_METRICS, *TEXT_METRICS))
    eval_every: int = ranged(0)  # steps between evaluations on val; 0 = never
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    save_every: int = ranged(0)  # steps between checkpoints; 0 = only at the end (with select_best: at each evaluation)
    keep_checkpoints: int = positive(2)
    log_every: int = positive(10)
    visual_every: int = ranged(0)  # steps between drawings of the same photos (docs/visual_log.md); 0 = never
    visual_photos: int = ranged(4, least=1, most=16)  # how many, from val (or train if there is no val)
    report_to: list[str] = choice([], ("wandb", "tensorboard"))
    deepspeed: str = ""  # path of a DeepSpeed JSON; empty = off
    resume: bool = False  # continue from the newest checkpoint in the output folder
    overwrite: bool = False  # replace an earlier run's checkpoints, once this run has one of its own
    step_timeout: float = ranged(
        1800.0
    )  # seconds without progress that end a run, with the stacks of all ranks; 0 = off
    threads: int = ranged(0)  # torch's CPU threads; 0 = all


@dataclass
class EvaluationConfig:
    split: str = choice("test", ("val", "test"))
    teachers: int = ranged(0)  # worked examples for each photo, chosen by data.episodes.choose (random: label_cover)
    batch_size: int = positive(8)
    max_detections: int = positive(100)  # most boxes of a photo, by objectness
    nms_iou: float = fraction(0.7)  # boxes overlapping a higher-scoring box by more are left out; 1 keeps all
    descriptions: str = choice("free", ("free", "known"))  # known: of the model's list (docs/descriptions.md)
    score_threshold: float = fraction(0.3)  # for pictures, false positives and rates; AP uses every prediction
    target_precision: float = fraction(0.9)  # precision at which the recall of each description is reported
    fppi: list[float] = ranged([1.0, 0.1], most=1_000_000)  # false positives per image at which miss rates are reported
    bootstrap_samples: int = ranged(1000)  # for the confidence intervals; 0 = no intervals
    calibration: str = choice("temperature", ("none", "temperature", "isotonic"))  # of scores, fitted on val
    pictures: int = ranged(8)  # photos drawn with truth and prediction side by side
    rules: str = ""  # YAML of rules by which the groups of the split are judged (docs/verdicts.md); empty = none
    max_false_pass: float = fraction(0.01)  # largest false-pass rate on val of the threshold that they are judged at
    answers: int = ranged(200)  # most questions of each kind that the language model is asked on a split; 0 = none


@dataclass
class PhaseConfig:
    """One of consecutive trainings (docs/phases.md)."""

    name: str = ""  # of its folder in output_dir
    steps: int = positive(1000)
    train: list[str] = field(default_factory=list)  # parameter groups that learn; the others are frozen
    last_blocks: dict[str, int] = field(default_factory=dict)  # last blocks of a group not in train: {vision: 1}
    rates: dict[str, float] = field(default_factory=dict)  # learning rates; groups without one have the run's
    set: dict[str, Any] = field(default_factory=dict)  # dotted keys: other values in this phase


@dataclass
class Config:
    references = tuple[tuple[str, str], ...]()  # (key, text) where a file refers to its own keys; itself no key

    name: str = ""  # default: the config file's name
    output_dir: str = ""  # default: outputs/<name>
    seed: int = ranged(17)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    phases: list[PhaseConfig] = field(default_factory=list)  # consecutive trainings; empty = one, as training says
