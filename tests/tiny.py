"""Tiny real models, photos and samples: the real classes at sizes that a CPU runs in milliseconds."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback

from bbu.config import Config, DetectionConfig, LearningRates
from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.collators import Batch, PackedDataCollator
from bbu.data.photo import Photo
from bbu.errors import ConfigError
from bbu.families.base import Backbone, BackboneOutput
from bbu.families.prompts import ChatMessage, PromptSpec, answer_text
from bbu.families.registry import DEFAULT_FAMILY, backbone_class, scratch_sizes
from bbu.families.registry import FAMILIES as REGISTERED
from bbu.families.tokenizer import train_tokenizer
from bbu.inference.postprocess import model_inputs
from bbu.layers.attention import ATTENTION_BACKENDS, choose_attention_backend
from bbu.models.acceleration.lora import add_lora
from bbu.models.build import freeze
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from bbu.records import FewShotSample, ObjectRow, Row
from bbu.training.objective import DetectionObjective
from bbu.training.trainer import BBUTrainer, Evaluator, training_arguments
from tests import toy_family  # noqa: F401  (joins the registry)

torch.set_num_threads(1)

DEFAULT = DEFAULT_FAMILY  # of tests that hold for any family but need only one
FAMILIES = [DEFAULT, *sorted(REGISTERED.keys() - {DEFAULT})]
PAIR = [DEFAULT, "qwen3_vl"]  # of slow tests whose code is no family's: the default, and the one least like it
SIZES = {
    "vision_width": 32, "vision_depth": 2, "vision_heads": 2, "text_width": 64, "text_depth": 2, "text_heads": 4,
    "text_kv_heads": 2, "vocab_size": 400,
}  # fmt: skip
MORE_SIZES = {
    "qwen2_5_vl": {"vision_full_attention": [1]},
    "ovis2_5": {"vision_positions": 5, "visual_vocab": 60},
}
DESCRIPTIONS = ("screw/tight", "screw/loose", "标签/完整", "标签/不完整", "line")
PLACES = ((84, 56), (112, 140), (56, 56))  # sizes of the photos in conversations
SYSTEM, INSTRUCTION = "Look.", "List the parts."


def backend_runs(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether an attention backend can run there."""
    try:
        return choose_attention_backend(name, device, dtype) == name
    except ConfigError:
        return False


EXACT_BACKENDS = [name for name in ATTENTION_BACKENDS if backend_runs(name, torch.device("cpu"), torch.float64)]


def tiny_config(**changes: Any) -> Config:
    """Sizes of milliseconds; ``changes`` are attributes of the sections, as in ``training={"max_steps": 3}``."""
    config = Config(name="tiny")
    config.model.family = changes.get("model", {}).get("family", DEFAULT)
    config.data.language = "en"
    config.data.min_pixels, config.data.max_pixels = 56 * 56, 196 * 196
    config.model.scratch = SIZES | MORE_SIZES.get(config.model.family, {})
    config.model.detection = DetectionConfig(
        width=32, queries=10, layers=2, heads=4, points=2, caption_layers=1, caption_region_cells=3
    )
    config.training.batch_size = 2
    config.training.max_steps = 4
    config.training.warmup_steps = 0
    config.training.log_every = 1
    config.training.precision = "fp32"
    config.training.learning_rates = LearningRates(1e-3, 1e-3, 1e-3, 1e-3, 1e-3)
    for section, values in changes.items():
        for name, value in values.items():
            target: Any = config
            *path, last = f"{section}.{name}".split(".")
            for step in path:
                target = getattr(target, step)
            if isinstance(target, dict):
                target[last] = value
                continue
            assert hasattr(target, last), f"no key {section}.{name}"
            setattr(target, last, value)
    return config


@cache
def tiny_tokenizer(family: str = DEFAULT) -> PreTrainedTokenizerBase:
    """A byte-level BPE of 400 entries trained on a handful of answers."""
    boxes = np.array([[12, 34, 56, 78]] * len(DESCRIPTIONS))
    texts = [SYSTEM, INSTRUCTION, answer_text(boxes, DESCRIPTIONS)] * 3
    return train_tokenizer(texts, 400, backbone_class(family).conversation)


def tiny_spec(family: str, min_pixels: int = 56 * 56, max_pixels: int = 196 * 196) -> PromptSpec:
    """A prompt of two short sentences."""
    shipped = PromptSpec.create("en", backbone_class(family).conversation, min_pixels, max_pixels)
    return replace(shipped, system=SYSTEM, instruction=INSTRUCTION)


def tiny_processor(family: str, image_root: str | Path = ".", **options: Any) -> ChatProcessor:
    """A processor with a prompt of two short sentences."""
    spec, backbone = tiny_spec(family), backbone_class(family)
    plan = backbone.photo_plan("", spec)
    return ChatProcessor(
        tiny_tokenizer(family), plan, backbone.conversation, spec, image_root=str(image_root), **options
    )


def build_tiny(config: Config, dtype: torch.dtype = torch.float32, *, shake: float = 0.05) -> DetectionVLM:
    """A model of the real classes.

    Args:
        shake: noise added to every weight, so that what starts at zero (box steps, looking points) works too.
    """
    torch.manual_seed(config.seed)
    family = config.model.family
    tokenizer, sizes = tiny_tokenizer(family), scratch_sizes(family, config.model.scratch)
    backbone = backbone_class(family).from_scratch(sizes, len(tokenizer), tokenizer.get_vocab())
    model = DetectionVLM(backbone, config.model.detection)
    _shake(model.parameters(), shake)
    if config.model.lora.parts:
        add_lora(model, config.model.lora)
        _shake((p for name, p in model.named_parameters() if "lora_" in name), shake)
    freeze(model, config.model.freeze, config.model.last_blocks)
    return model.to(dtype)


def _shake(parameters: Iterable[torch.nn.Parameter], by: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * by)


def tiny_model(family: str, dtype: torch.dtype = torch.float64, backend: str = "sdpa", **changes: Any) -> DetectionVLM:
    """A shaken float64 model, ready to compare."""
    changes["model"] = {"family": family} | changes.get("model", {})
    model = build_tiny(tiny_config(**changes), dtype)
    model.backbone.use_attention_backend(backend)
    return model.eval()


def noise_photo(seed: int, width: int = 112, height: int = 84, parts: int = 2) -> Photo:
    """A noisy photo with some boxes and words on it."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(height // 7, 1), max(width // 7, 1), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height))
    objects = []
    for number in range(parts):
        x, y = random.uniform(0, 0.7, 2)
        w, h = random.uniform(0.1, 0.3, 2)
        box = (x * width, y * height, (x + w) * width, (y + h) * height)
        objects.append(ObjectRow(DESCRIPTIONS[(seed + number) % len(DESCRIPTIONS)], "bbox_2d", box))
    return Photo(image, f"photo {seed}", tuple(objects))


def tiny_sample(
    processor: ChatProcessor, seed: int, *, teachers: int = 0, parts: int = 2, with_answer: bool = True
) -> ChatProcessorOutput:
    """A sample whose photos all have sizes of their own."""
    sizes = [(84, 56), (112, 112), (168, 140), (56, 140), (140, 84)]
    photos = [
        noise_photo(100 * seed + turn, *sizes[(seed + turn) % len(sizes)], parts=1 + turn % 2)
        for turn in range(teachers)
    ]
    student = noise_photo(100 * seed + 50, *sizes[(seed + teachers) % len(sizes)], parts=parts)
    return processor.process_photos(photos, student, with_answer=with_answer)


def mixed_samples(processor: ChatProcessor) -> list[ChatProcessorOutput]:
    """Teachers 0 to 3, parts 0 to 5, photos of many sizes."""
    plan = [(0, 3), (3, 1), (1, 0), (2, 5), (0, 2)]
    return [tiny_sample(processor, seed, teachers=t, parts=p) for seed, (t, p) in enumerate(plan)]


def conversation_samples(processor: ChatProcessor) -> list[ChatProcessorOutput]:
    """Samples without detection: two turns of text after a system prompt, two photos in a turn, one photo."""
    system, photos = (
        ChatMessage("system", ("Be brief.",)),
        [noise_photo(700 + n, *size) for n, size in enumerate(PLACES)],
    )
    talks = [
        [system, _ask("Two and two?"), _say("Four"), _ask("And one?"), _say("Five, then.")],
        [_ask("Compare ", None, " with ", None), _say("The first is larger.")],
        [_ask(None, "What is it?"), _say("screw")],
    ]
    shown = (photos[:0], photos[:2], photos[2:])
    return [processor.process_messages(talks[n], shown[n], f"talk {n}") for n in range(len(talks))]


def _ask(*parts: str | None) -> ChatMessage:
    return ChatMessage("user", parts)


def _say(text: str) -> ChatMessage:
    return ChatMessage("assistant", (text,))


def pack(model: DetectionVLM, samples: Sequence[ChatProcessorOutput]) -> Batch:
    """Samples end to end."""
    return PackedDataCollator(model.backbone.position_function())(samples)


def run_model(model: DetectionVLM, batch: Batch) -> DetectionOutput:
    """The model's forward on a batch of either collator."""
    return model(**model_inputs(batch, torch.device("cpu")))  # type: ignore[no-any-return]


def write_samples(folder: Path, count: int, *, seed: int = 0) -> list[FewShotSample]:
    """Photos on disk and their samples, the second of three with a teacher."""
    rows = []
    for number in range(count):
        photo = noise_photo(seed + number, *((112, 84), (84, 84), (140, 56))[number % 3], parts=number % 4)
        name = f"{seed + number:03d}.png"
        photo.image.save(folder / name)
        rows.append(Row((name,), photo.objects, *photo.image.size))
    return [FewShotSample(row, (rows[n - 1],) if n % 3 == 1 else ()) for n, row in enumerate(rows)]


class Recorder(TrainerCallback):
    """Keeps a copy of every parameter's gradient before each optimizer step (no clipping done by then)."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.gradients.append(
            {
                name.removeprefix("module."): parameter.grad.clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )


def tiny_trainer(
    config: Config,
    folder: Path,
    samples: Dataset[ChatProcessorOutput] | Sequence[ChatProcessorOutput],
    processor: ChatProcessor,
    model: DetectionVLM | None = None,
    *,
    bf16: bool = False,
    evaluator: Evaluator | None = None,
) -> BBUTrainer:
    """The real trainer around a tiny model."""
    config.output_dir = str(folder)
    args = training_arguments(config, use_cpu=True, bf16=bf16, has_val=evaluator is not None)
    objective = DetectionObjective(model if model is not None else build_tiny(config), config.loss)
    return BBUTrainer(objective, config, args, samples, processor, evaluator)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Conversation:
    """Token ids and photos for the backbone alone: (S,) ids, (P, patch width) patches, (I, 3) grids."""

    ids: torch.Tensor
    patches: torch.Tensor | None = None
    grids: torch.Tensor | None = None

    @property
    def grid_list(self) -> list[tuple[int, int, int]]:
        return [] if self.grids is None else [(int(t), int(h), int(w)) for t, h, w in self.grids.tolist()]


def conversation(backbone: Backbone, seed: int, words: int, sizes: Sequence[tuple[int, int]] = ()) -> Conversation:
    """Random words around photos of the given (width, height): ``words`` tokens before, between and after them."""
    generator, top = torch.Generator().manual_seed(seed), backbone.token_embedding.num_embeddings
    family, encode = type(backbone), tiny_tokenizer(backbone.family)
    before, _, after = family.conversation.image_text.partition(family.conversation.image_token)
    ids: list[int] = torch.randint(20, top, (words,), generator=generator).tolist()
    if not sizes:
        return Conversation(torch.tensor(ids))
    images = [noise_photo(seed + number, *size).image for number, size in enumerate(sizes)]
    plan = family.photo_plan("", tiny_spec(backbone.family, 28 * 28, 280 * 280))
    patches, grids = plan.patchify(images, [plan.plan(*image.size) for image in images])
    for grid in grids:
        count = int(plan.text_tokens(grid.prod()))
        ids += encode(before)["input_ids"] + [backbone.image_token_id] * count + encode(after)["input_ids"]
        ids += torch.randint(20, top, (words,), generator=generator).tolist()
    return Conversation(torch.tensor(ids), patches, grids)


def run_backbone(backbone: Backbone, parts: Sequence[Conversation]) -> BackboneOutput:
    """Conversations end to end through the backbone."""
    positions = backbone.position_function()
    lengths = [len(part.ids) for part in parts]
    patches = [part.patches for part in parts if part.patches is not None]
    grids = [part.grids for part in parts if part.grids is not None]
    return backbone(  # type: ignore[no-any-return]
        torch.cat([part.ids for part in parts])[None],
        torch.cat([positions(part.ids.tolist(), part.grid_list) for part in parts], dim=1)[:, None],
        torch.cat(patches) if patches else None,
        torch.cat(grids) if grids else None,
        torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        max(lengths),
    )
