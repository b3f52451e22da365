"""Every key of the configuration: its type, default and meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bbu.families.registry import DEFAULT_FAMILY

COMPILED_PARTS = ("decoder", "captions", "llm", "vision")
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
    images: str = "keep"  # keep | link | copy | reencode: what conversion does with photo files
    image_max_pixels: int = 0  # largest re-encoded photo; 0: as it is
    frame: str = ""  # displayed | stored: what coordinates are pixels of; empty: as the format has it
    photos: dict[str, int] = field(default_factory=dict)  # cabinet_photos only: photos to draw for each split


@dataclass
class CurriculumConfig:
    """How strong augmentation is as training goes on; shares of the run."""

    start: float = 1.0  # strength at the first step: probabilities are scaled by it, and ± ranges
    full_at: float = 0.0  # where strength, rising evenly, reaches 1
    close_mosaic: float = 0.0  # the last share of the run goes without mosaic and copy_paste


@dataclass
class AugmentConfig:
    """Random changes to training photos that keep every box, polygon, line and description right."""

    flip_horizontal: float = 0.0  # probability
    flip_vertical: float = 0.0
    quarter_turns: bool = False  # any of the four, equally likely
    brightness: float = 0.0  # ± share
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness: float = 0.0
    hue: float = 0.0  # ± share of the colour circle, up to 0.5
    grey: float = 0.0  # probability
    blur: float = 0.0  # probability
    blur_sigma: list[float] = field(default_factory=lambda: [0.5, 2.0])  # pixels of the photo, from and to
    jpeg: float = 0.0  # probability of one more encoding
    jpeg_quality: list[int] = field(default_factory=lambda: [30, 90])  # from and to
    rotate: float = 0.0  # ± degrees; a bbox_2d becomes the box around its turned corners, which is larger
    scale: float = 0.0  # ± share: 0.2 zooms by 0.8 to 1.2, the photo keeps its size
    crop: float = 0.0  # probability
    object_crop: float = 0.0  # probability of a crop around a part, drawn from all parts alike
    crop_area: list[float] = field(default_factory=lambda: [0.4, 0.9])  # share of the photo, from and to; both crops
    min_visible: float = 0.4  # parts that keep less of their area (lines: length) are dropped, others cut
    mosaic: float = 0.0  # probability of four training photos as one
    copy_paste: float = 0.0  # probability of parts pasted in from other training photos, rare descriptions first
    paste_parts: int = 3  # at most
    paste_margin: float = 0.2  # of the part's longer side, cut out around it
    paste_cover: float = 0.1  # most that a pasted piece may hide of another part
    teachers: str = "independent"  # independent | same (one draw for all photos of a sample) | none
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)


@dataclass
class EpisodesConfig:
    """What is shown with a training photo: worked examples (teachers) and other photos of its site (context)."""

    counts: dict[int, float] = field(default_factory=dict)  # teachers → share of samples; {} = none. {0: 0.5, 3: 0.2}
    choose: str = "random"  # random | label_cover | variety | nearest
    pool: str = "teacher"  # teacher: rows of teacher.jsonl | train: the training photos themselves
    near_duplicate_bits: int = 4  # of 64 perceptual hash bits; a photo this near the student is not its teacher
    context_photos: int = 0  # most photos of the same metadata.group before the student's own, in its turn


@dataclass
class SamplingConfig:
    """How often each training photo is seen."""

    method: str = "uniform"  # uniform | repeat_factor | class_aware
    level: int = 0  # levels of a description that make a class; 0 = the whole description
    threshold: float = 0.1  # repeat_factor: share of photos below which a class is repeated


@dataclass
class DataConfig:
    source: SourceConfig = field(default_factory=SourceConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    image_root: str = ""  # image paths are relative to this; default: source.path
    language: str = "zh"  # of the prompts: zh | en
    min_pixels: int = 0  # least of a resized photo; 0 = as the model's family has it
    max_pixels: int = 0  # most of a resized photo; 0 = as the model's family has it
    max_length: int = 8192  # tokens of one sample; a longer one is an error
    workers: int = 0  # processes that load photos


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
    family: str = DEFAULT_FAMILY
    path: str = ""  # local folder or hub name; empty = from scratch
    tokenizer: str = ""  # folder; empty = the one in path, or trained on the data when from scratch
    trust_remote_code: bool = False
    scratch: dict[str, Any] = field(default_factory=dict)  # sizes where path is empty; keys are the family's
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention: str = "auto"  # auto | sdpa | torch_varlen | flash_attn
    freeze: list[str] = field(default_factory=list)  # groups that do not learn
    feature_cache: str = ""  # folder for what a frozen tower makes of photos; empty = off, docs/memory.md
    compile: list[str] = field(default_factory=list)  # blocks for torch.compile: decoder, captions, llm, vision
    liger: str = "none"  # none | auto | always: fused norms and MLPs (optional package liger-kernel, CUDA)
    gradient_checkpointing: str = "none"  # none | selective | full: activations computed again, docs/memory.md


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
    denoising_groups: int = 3  # pairs of noisy boxes from which the decoder learns to find each part; 0 = none


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
    batch_size: int = 4  # samples in a pack, on each rank; not used where packs are planned
    # planned packs (docs/packing.md): the most that one may hold; all 0 = a pack is the next batch_size samples
    pack_tokens: int = 0  # text and image tokens; 0 = no limit
    pack_pixels: int = 0  # of all its photos after the resize; 0 = no limit
    pack_images: int = 0  # photos, teachers' included; 0 = no limit
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
    visual_every: int = 0  # steps between looks at the same photos, for training_log.html and trackers; 0 = never
    visual_photos: int = 4  # how many, from val (train where there is no val), rare descriptions first; at most 16
    report_to: list[str] = field(default_factory=list)  # wandb, tensorboard
    deepspeed: str = ""  # path of a DeepSpeed JSON; empty = off
    resume: bool = False  # go on from the newest checkpoint in the output folder
    overwrite: bool = False  # replace the checkpoints of an earlier run in the output folder
    threads: int = 0  # torch's CPU threads; 0 = all


@dataclass
class EvaluationConfig:
    split: str = "test"
    teachers: int = 0  # worked examples for each photo, chosen as data.episodes.choose says (random: label_cover)
    batch_size: int = 8
    max_detections: int = 100  # boxes, by objectness, that get words and are written
    nms_iou: float = 0.7  # overlap with a surer box above which a box is the same part again; 1 keeps all
    descriptions: str = "free"  # free | known: any words, or only those of the model's list (docs/descriptions.md)
    score_threshold: float = 0.3  # for pictures, false alarms and rates; AP uses every prediction
    target_precision: float = 0.9  # at which the recall of each description is reported
    fppi: list[float] = field(default_factory=lambda: [1.0, 0.1])  # at which miss rates are reported
    bootstrap_samples: int = 1000  # of the bootstrap intervals; 0 = no intervals
    calibration: str = "temperature"  # none | temperature | isotonic: how scores are mended by what val shows
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
