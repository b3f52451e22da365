"""The model, samples and training steps that benchmarks/gpu.py measures.

Transformers' own class and this project's backbone share one set of weights and one optimizer; gpu_arms.py says in
which ways they are run.

Shapes: D feature width, T packed tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gpu_machine import Setting, unless_out_of_memory
from PIL import Image
from torch import nn
from torch.profiler import record_function
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bbu.config import Config, DetectionConfig, LearningRates, LossConfig
from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.collators import Batch, PackedDataCollator, StandardDataCollator
from bbu.data.photo import Photo
from bbu.families.cost import CostModel
from bbu.families.qwen2_5_vl.backbone import Qwen25VL
from bbu.families.qwen2_5_vl.codec import cost_of
from bbu.layers.attention import choose_attention_backend
from bbu.losses.language_loss import answer_loss_sum
from bbu.losses.weighting import TERMS, count_terms, term_weights, weigh
from bbu.models.acceleration.checkpointing import checkpoint_activations
from bbu.models.build import build_processor
from bbu.models.wrapper import DetectionVLM
from bbu.records import FewShotSample, ObjectRow, Row
from bbu.training.objective import DetectionObjective
from bbu.training.param_groups import optimizer_groups

PROJECT = Path(__file__).resolve().parents[1]
TOKEN = 28**2  # pixels of a photo that make one image token
MODES = ("kept", "selective", "recomputed")  # activations: without gradient checkpointing, and with two kinds of it
SEED = 7  # its first 4 samples are those of the first figures: 8,636 tokens, 21,828 patches
BACKWARD = 2  # times as dear as the forward pass: two products for each of its one
Losses = Sequence[Callable[[], torch.Tensor]]  # of a step's micro-batches, which are on the device already
NO_STEP = LearningRates(0, 0, 0, 0, 0)  # weights stay random, and those of all arms the same

# config.json of Qwen/Qwen2.5-VL-3B-Instruct; heads of 128, so the sections are half a head together.
PUBLISHED: dict[str, dict[str, Any]] = {
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "text_config": {
        "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "vision_config": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
    "text_config": {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    },
}  # fmt: skip
TINY_DETECTION = DetectionConfig(width=32, queries=10, layers=2, heads=4, points=2, caption_layers=1)
DESCRIPTIONS = ("螺丝连接点/BBU安装螺丝/安装正确", "标签贴纸/可识别", "线缆/蛇形管", "bbu基带处理单元/华为")


# ---------------------------------------------------------------- samples


def chat_processor(image_tokens: tuple[int, int]) -> ChatProcessor:
    """With a small tokenizer trained on the spot: nothing is downloaded, and ids cost the same whatever they are."""
    config = Config()
    config.data.min_pixels, config.data.max_pixels = image_tokens[0] * TOKEN, image_tokens[1] * TOKEN
    text = Row(("x",), tuple(ObjectRow(name, "bbox_2d", (0, 0, 1, 1)) for name in DESCRIPTIONS), 1, 1)
    return build_processor(config, [FewShotSample(text)], ".")


def draw_photo(random: np.random.Generator, image_tokens: tuple[int, int], most_objects: int) -> Photo:
    """Noise of so many image tokens, sides up to 1 : 1.8, with 1 to 43 objects, 8 on average, or to fewer."""
    side = np.sqrt(random.uniform(*image_tokens) * TOKEN)
    stretch = np.exp(random.uniform(-0.3, 0.3))
    width, height = round(side * stretch), round(side / stretch)
    count = min(most_objects, 1 + int(random.exponential(7)))
    low = random.uniform(0, 0.8, (count, 2))
    boxes = np.concatenate([low, low + random.uniform(0.05, 0.2, (count, 2))], 1) * (width, height, width, height)
    descs = random.choice(DESCRIPTIONS, count)
    objects = tuple(ObjectRow(str(d), "bbox_2d", tuple(box)) for d, box in zip(descs, boxes.tolist(), strict=True))
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photo(Image.fromarray(pixels), "noise", objects)


def draw_samples(
    processor: ChatProcessor, count: int, image_tokens: tuple[int, int], most_objects: int
) -> list[ChatProcessorOutput]:
    """Samples of 0, 1, 2 and 3 teachers in turn; the same in every run, so that runs can be compared."""
    random = np.random.default_rng(SEED)
    samples = []
    for number in range(count):
        *teachers, student = (draw_photo(random, image_tokens, most_objects) for _ in range(number % 4 + 1))
        samples.append(processor.process_photos(teachers, student, with_answer=True))
    return samples


def training_flops(samples: Sequence[ChatProcessorOutput], cost: CostModel) -> float:
    """Model FLOPs of forward and backward: real tokens and patches, no padding, nothing computed twice.

    Left out as in CostModel: embeddings, the language head, the detection branch.
    """
    tokens = np.array([len(sample.input_ids) for sample in samples])
    patches = np.concatenate([sample.image_grid_thw.prod(-1).numpy() for sample in samples])
    return float((1 + BACKWARD) * (cost.text(tokens).sum() + cost.photos(patches).sum()))


# ---------------------------------------------------------------- model


def model_config(sizes: dict[str, dict[str, Any]], token_ids: dict[str, int]) -> Qwen2_5_VLConfig:
    """A config of these sizes with the ids of the tokenizer in use."""
    ids = {
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
    }
    return Qwen2_5_VLConfig(
        vision_config=dict(sizes["vision_config"]),
        text_config={**sizes["text_config"], **ids},
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def real_detection() -> DetectionConfig:
    """The detection branch of the full job."""
    job = yaml.safe_load((PROJECT / "configs" / "bbu.yaml").read_text(encoding="utf-8"))
    return DetectionConfig(**job["model"]["detection"])


def share_tensors(model: nn.Module, source: nn.Module) -> None:
    """Give a model the very parameters and buffers of another one of the same modules: one copy, one gradient."""
    sources = dict(source.named_modules())
    for name, module in model.named_modules():
        module._parameters.update(sources[name]._parameters)
        module._buffers.update(sources[name]._buffers)


def call_checkpointing(vlm: Any, word: str) -> None:
    """Enable or disable transformers' own gradient checkpointing; older releases call it by another name."""
    newer = getattr(vlm, f"activation_checkpointing_{word}", None)
    if newer is None:
        newer = getattr(vlm, f"gradient_checkpointing_{word}")
    newer()


class Bench:
    """Weights in bfloat16 made on the device, one AdamW, and training steps.

    Args:
        real: Qwen2.5-VL-3B's sizes; else a test's.
    """

    def __init__(self, setting: Setting, *, real: bool) -> None:
        self.setting = setting
        self.image_tokens, self.most_objects = ((256, 1024), 43) if real else ((4, 16), 4)
        self.processor = chat_processor(self.image_tokens)
        token_ids = self.processor.tokenizer.get_vocab()
        config = model_config(PUBLISHED if real else TINY, token_ids)
        self.cost = cost_of(config)
        with torch.device(setting.device):
            vlm = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
            backbone = Qwen25VL(vlm, choose_attention_backend("auto", setting.device, torch.bfloat16))
            detector = DetectionVLM(backbone, real_detection() if real else TINY_DETECTION)
        for name, part in detector.named_children():
            if name != "backbone":  # whose rotary frequencies stay float32
                part.to(torch.bfloat16)
        with torch.device("meta"):  # a config of its own: it also says which attention is used
            self.stock = Qwen2_5_VLForConditionalGeneration._from_config(copy.deepcopy(config), dtype=torch.bfloat16)
        self.stock.set_attn_implementation("sdpa")
        self.compiled: dict[str, Any] = {}  # calls that gpu_arms.py has compiled
        self.mode = "kept"
        share_tensors(self.stock, vlm)
        self.backbone, self.loss_config = backbone, LossConfig()
        self.objective = DetectionObjective(detector, self.loss_config)
        for model in (self.objective, self.stock):
            model.train()
        groups = optimizer_groups(detector, NO_STEP, weight_decay=0.01)
        self.optimizer = torch.optim.AdamW(groups, fused=setting.on_gpu)
        positions = backbone.position_function()
        self.pack = PackedDataCollator(positions)
        self.pad = StandardDataCollator(positions, token_ids["<|endoftext|>"])

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.backbone.parameters())

    @property
    def recomputes(self) -> bool:
        return self.mode != "kept"

    def use(self, mode: str) -> None:
        """What happens to activations, one of MODES; `selective` is this project's own, padded recomputes all there."""
        for vlm in (self.backbone.vlm, self.stock):
            call_checkpointing(vlm, "disable")
        self.mode = mode
        if self.recomputes:
            call_checkpointing(self.stock, "enable")
            checkpoint_activations(self.backbone, "full" if mode == "recomputed" else mode)

    def samples(self, count: int) -> list[ChatProcessorOutput]:
        return draw_samples(self.processor, count, self.image_tokens, self.most_objects)

    # ------------------------------------------------------------ batches and losses

    def on_device(self, batch: Batch) -> Batch:
        return {k: v.to(self.setting.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def packed_batch(self, samples: Sequence[ChatProcessorOutput]) -> Batch:
        return self.on_device(self.pack(samples))

    def padded_inputs(self, samples: Sequence[ChatProcessorOutput]) -> dict[str, Any]:
        """What transformers' model takes, labels included."""
        batch = self.on_device(self.pad(samples))
        keys = ("input_ids", "labels", "position_ids", "pixel_values")
        return {
            **{key: batch[key] for key in keys},
            "attention_mask": batch["attention_mask"].long(),
            "image_grid_thw": torch.as_tensor(batch["image_grid_thw"], device=self.setting.device),
            "use_cache": False,
        }

    def packed_states(self, batch: Batch) -> torch.Tensor:
        """(T, D) last hidden states."""
        return self.backbone(  # type: ignore[no-any-return]
            batch["input_ids"], batch["position_ids"], batch["pixel_values"], batch["image_grid_thw"],
            batch["cu_seqlens"], batch["max_seqlen"],
        ).hidden_TD  # fmt: skip

    def packed_loss(self, batch: Batch) -> torch.Tensor:
        """The language loss alone."""
        spans = [span for of_sample in batch["teacher_spans"] for span in of_sample] + batch["student_spans"]
        supervised = sum(stop - start for start, stop in spans)
        hidden_TD = self.packed_states(batch)
        return answer_loss_sum(hidden_TD, batch["labels"][0], self.backbone.lm_head_weight, spans) / supervised

    def whole_loss(self, batch: Batch) -> torch.Tensor:
        """With the detection branch, as it is trained."""
        components = weigh(self.objective(**batch), count_terms(batch), term_weights(self.loss_config))
        return torch.stack([components[term] for term in TERMS]).sum()

    # ------------------------------------------------------------ steps

    def step(self, losses: Losses) -> None:
        """Forward and backward of each micro-batch, AdamW; the parts carry labels for a profile."""
        self.optimizer.zero_grad(set_to_none=True)
        self.accumulate(losses)
        with record_function("bbu/optimizer"):
            self.optimizer.step()

    def accumulate(self, losses: Losses) -> None:
        """Gradients of the sum of all micro-batches' losses."""
        for loss in losses:
            with record_function("bbu/forward"):
                value = loss()
            with record_function("bbu/backward"):
                value.backward()

    def memory_of(self, losses: Losses) -> tuple[int, int] | None:
        """Most bytes of a forward and backward pass, in all and above weights, gradients and optimizer state.

        Returns:
            None where the device does not count them.
        """
        if next(self.backbone.parameters()).grad is None:  # then there may be no optimizer state either
            self.step(losses)
        self.optimizer.zero_grad(set_to_none=False)
        return self.setting.memory_of(lambda: self.accumulate(losses))

    def fits(self, losses: Losses) -> bool:
        """Whether a step fits into the memory; where not, it is emptied."""
        fits = unless_out_of_memory(lambda: self.step(losses) or True) is not None
        self.optimizer.zero_grad(set_to_none=True)
        return fits


def shared_bench(setting: Setting) -> Bench:
    """The model of real sizes (a test's, if tiny), made once for all parts."""
    if setting.bench is None:
        setting.bench = Bench(setting, real=not setting.tiny)
    return setting.bench  # type: ignore[no-any-return]
