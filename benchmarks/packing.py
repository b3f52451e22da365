"""Packed against padded: one training step of the language model on the same samples.

    python benchmarks/packing.py [--batches 1] [--samples 8] [--repeats 3] [--threads 2] [--quick]

Padded is transformers' own Qwen2.5-VL: its code, a padded batch, SDPA, its loss. Packed is this project's backbone and
loss. Both have the same weights, see the same samples (0 to 3 worked examples, 1 to 43 objects, photos of 64 to 256
image tokens) and take a whole step: forward, backward, AdamW, in the precision that a run takes here (``auto``:
bfloat16 autocast where the processor has it). Loss and gradients are checked equal in float32 before anything is timed,
and the arms take turns. The model is Qwen2.5-VL-3B in small: widths an eighth, heads as wide as there, every part of
about the share of the work that it has there. The third arm runs the packed samples one by one, which is what a pack
would cost if packing were free.

Memory is read in a process of its own for each arm: the most above what weights, gradients and optimizer hold. The last
line is one JSON object.

Shapes: D feature width, T packed tokens.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import in_own_process, interleaved_medians, last_line, peak_bytes, resident_bytes
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessorOutput
from bbu.data.collators import PackedDataCollator, StandardDataCollator
from bbu.data.photo import Photo
from bbu.families.qwen2_5_vl.backbone import Qwen25VL
from bbu.losses.language_loss import answer_loss_sum
from bbu.models.build import build_processor
from bbu.models.precision import use_bf16
from bbu.records import FewShotSample, ObjectRow, Row

DESCRIPTIONS = ("螺丝连接点/BBU安装螺丝/安装正确", "标签贴纸/可识别", "线缆/蛇形管")
PIXELS = (224 * 224, 448 * 448)  # of a photo: 64 to 256 image tokens of 28 x 28
QUICK_PIXELS = (56 * 56, 112 * 112)

# Qwen2.5-VL-3B-Instruct's config.json has 32 blocks of width 1280 (inner 3420, heads 16, every eighth with full
# attention) and 36 layers of width 2048 (inner 11008, heads 16 of 128, 2 key/value heads), vocabulary 151936.
VISION = {
    "depth": 4, "hidden_size": 160, "intermediate_size": 428, "num_heads": 2, "out_hidden_size": 256,
    "fullatt_block_indexes": [3],
}  # fmt: skip
TEXT = {
    "num_hidden_layers": 5, "hidden_size": 256, "intermediate_size": 1376, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 2638,  # the head has 11 % of the layers' weights, as there
}  # fmt: skip

ARMS = ("packed", "padded", "one by one")
Batch = dict[str, Any]


def random_photo(random: np.random.Generator, count: int, pixels: tuple[int, int]) -> Photo:
    """A photo of noise with ``count`` boxes in it; sizes even in the logarithm of the area, sides up to 1 : 1.5."""
    side = np.exp(random.uniform(*np.log(pixels)) / 2)
    stretch = np.exp(random.uniform(-0.2, 0.2))
    width, height = round(side * stretch), round(side / stretch)
    corners = random.uniform(0, 0.8, size=(count, 2)) * (width, height)
    sides = random.uniform(0.05, 0.2, size=(count, 2)) * (width, height)
    objects = tuple(
        ObjectRow(DESCRIPTIONS[number % 3], "bbox_2d", (*low, *(low + side)))
        for number, (low, side) in enumerate(zip(corners, sides, strict=True))
    )
    noise = random.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Photo(Image.fromarray(noise), "noise", objects)


def make_samples(
    batches: int, size: int, seed: int, pixels: tuple[int, int] = PIXELS
) -> tuple[list[list[ChatProcessorOutput]], dict[str, int]]:
    """Batches of samples of realistic lengths, and the vocabulary."""
    config = Config()
    config.data.min_pixels, config.data.max_pixels = pixels
    text = Row(("x",), tuple(ObjectRow(d, "bbox_2d", (0, 0, 1, 1)) for d in DESCRIPTIONS), 1, 1)
    processor = build_processor(config, [FewShotSample(text)], ".")
    random = np.random.default_rng(seed)

    def sample() -> ChatProcessorOutput:
        teachers = [random_photo(random, 1 + int(random.integers(8)), pixels) for _ in range(int(random.integers(4)))]
        student = random_photo(random, min(43, 1 + int(random.exponential(7))), pixels)
        return processor.process_photos(teachers, student, with_answer=True)

    return [[sample() for _ in range(size)] for _ in range(batches)], processor.tokenizer.get_vocab()


def small_model(token_ids: dict[str, int]) -> Qwen2_5_VLForConditionalGeneration:
    """Stock Qwen2.5-VL with fresh weights, the same for every process."""
    torch.manual_seed(0)
    half = TEXT["hidden_size"] // TEXT["num_attention_heads"] // 2  # type: ignore[operator]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8]}
    end = token_ids["<|endoftext|>"]
    config = Qwen2_5_VLConfig(
        vision_config=VISION,
        text_config={**TEXT, "rope_parameters": rope, "pad_token_id": end, "bos_token_id": end, "eos_token_id": end},
        image_token_id=token_ids["<|image_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.set_attn_implementation("sdpa")
    return model.train()


@dataclass
class Arm:
    """A model with its optimizer and, for each step, the batches that it takes; their losses add up to the mean."""

    model: torch.nn.Module
    loss_of: Callable[[Batch], torch.Tensor]
    steps: list[list[Batch]]
    bf16: bool = False

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)  # rate 0: every step the same

    def backward(self, number: int) -> torch.Tensor:
        """Gradients of a step's mean loss, which is returned."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for batch in self.steps[number]:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = self.loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def step(self, number: int) -> None:
        self.backward(number)
        self.optimizer.step()

    def all_steps(self) -> None:
        for number in range(len(self.steps)):
            self.step(number)


def answer_spans(batch: Batch) -> list[tuple[int, int]]:
    return [span for group in batch["teacher_spans"] for span in group] + batch["student_spans"]


def packed_arm(groups: list[list[ChatProcessorOutput]], token_ids: dict[str, int], *, one_by_one: bool = False) -> Arm:
    """Ours: each group one pack, or each of its samples by itself."""
    model = Qwen25VL(small_model(token_ids))
    collate = PackedDataCollator(model.position_function())

    def loss_of(batch: Batch) -> torch.Tensor:
        hidden = model(
            batch["input_ids"], batch["position_ids"], batch["pixel_values"], batch["image_grid_thw"],
            batch["cu_seqlens"], batch["max_seqlen"],
        ).hidden_TD  # fmt: skip
        loss = answer_loss_sum(hidden, batch["labels"][0], model.lm_head_weight, answer_spans(batch))
        return loss / batch["supervised"]

    steps = []
    for group in groups:
        supervised = sum(stop - start for start, stop in answer_spans(collate(group)))
        packs = [[sample] for sample in group] if one_by_one else [group]
        steps.append([{**collate(pack), "supervised": supervised} for pack in packs])
    return Arm(model, loss_of, steps)


def padded_arm(groups: list[list[ChatProcessorOutput]], token_ids: dict[str, int]) -> Arm:
    """Stock transformers; each group one rectangle."""
    model = small_model(token_ids)
    positions = Qwen25VL(copy.deepcopy(model)).position_function()
    collate = StandardDataCollator(positions, token_ids["<|endoftext|>"])
    steps = []
    for group in groups:
        batch = collate(group)
        inputs = {name: batch[name] for name in ("input_ids", "labels", "position_ids", "pixel_values")}
        inputs["attention_mask"] = batch["attention_mask"].long()
        inputs["image_grid_thw"] = torch.tensor(batch["image_grid_thw"])
        steps.append([inputs])
    return Arm(model, lambda inputs: model(**inputs, use_cache=False).loss, steps)


def make_arm(name: str, groups: list[list[ChatProcessorOutput]], token_ids: dict[str, int]) -> Arm:
    if name == "padded":
        return padded_arm(groups, token_ids)
    return packed_arm(groups, token_ids, one_by_one=name == "one by one")


def check_equal(arms: dict[str, Arm]) -> None:
    """Same loss and same gradients, step by step and parameter by parameter."""
    for number in range(len(arms["padded"].steps)):
        losses = {name: arm.backward(number) for name, arm in arms.items()}
        expected = {name: parameter.grad for name, parameter in arms["padded"].model.named_parameters()}
        for name in set(arms) - {"padded"}:
            torch.testing.assert_close(losses[name], losses["padded"], rtol=1e-5, atol=1e-6)
            for key, parameter in arms[name].model.named_parameters():
                gradient = expected[key.removeprefix("vlm.")]
                assert gradient is not None and parameter.grad is not None, key
                error = float((parameter.grad - gradient).norm() / gradient.norm().clamp(min=1e-12))
                if error > 1e-3:
                    raise SystemExit(f"{name}: the gradient of {key} is off by {error:.1e}")


def set_precision(arms: dict[str, Arm], precision: str) -> str:
    """That of a run here; losses stay as close as rounding lets them."""
    for arm in arms.values():
        arm.bf16 = use_bf16(precision, torch.device("cpu"))
    losses = {name: arm.backward(0) for name, arm in arms.items()}
    for loss in losses.values():
        torch.testing.assert_close(loss, losses["padded"], rtol=1e-2, atol=0)
    return "bfloat16 autocast" if arms["padded"].bf16 else "float32"


def step_memory(
    name: str, groups: list[list[ChatProcessorOutput]], token_ids: dict[str, int], precision: str
) -> dict[str, int]:
    """In this process: the most that a step takes above weights, gradients and the optimizer's state."""
    shortest = min((sample for group in groups for sample in group), key=lambda sample: len(sample.input_ids))
    arm = make_arm(name, [[shortest], *groups], token_ids)
    arm.bf16 = use_bf16(precision, torch.device("cpu"))
    arm.step(0)  # from here on gradients and state are there
    before = resident_bytes()
    for number in range(1, len(arm.steps)):
        arm.step(number)
    return {"step": peak_bytes() - before, "peak": peak_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--samples", type=int, default=8, help="in a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--quick", action="store_true", help="few, small, once: shows that it runs")
    parser.add_argument("--memory", choices=ARMS, help="of one arm, in this process")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.samples, arguments.repeats = 1, 2, 1
    torch.set_num_threads(arguments.threads)
    pixels = QUICK_PIXELS if arguments.quick else PIXELS
    groups, token_ids = make_samples(arguments.batches, arguments.samples, arguments.seed, pixels)
    if arguments.memory:
        last_line("packing", **step_memory(arguments.memory, groups, token_ids, arguments.precision))
        return
    settings = {name: getattr(arguments, name) for name in ("batches", "samples", "threads", "seed", "precision")}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    options += ["--quick"] * arguments.quick
    memory = {name: in_own_process(__file__, ["--memory", name, *options]) for name in ARMS}
    arms = {name: make_arm(name, groups, token_ids) for name in ARMS}
    check_equal(arms)
    precision = set_precision(arms, arguments.precision)
    runs = {name: arm.all_steps for name, arm in arms.items()}
    seconds = interleaved_medians(runs, arguments.repeats, warm_up=False)  # the check above was one
    lengths = [[len(sample.input_ids) for sample in group] for group in groups]
    tokens, cells = sum(map(sum, lengths)), sum(max(group) * len(group) for group in lengths)
    print(f"{precision}; {len(groups)} batches of {arguments.samples}: {tokens} tokens", end=", ")
    print(f"{min(map(min, lengths))} to", end=" ")
    print(f"{max(map(max, lengths))} a sample, {cells} cells when padded ({1 - tokens / cells:.0%} padding)")
    print(f"{'':<12}{'s a step':>10}{'tokens/s':>10}{'MiB a step':>12}{'MiB in all':>12}")
    for name, taken in seconds.items():
        mib = [memory[name][key] / 2**20 for key in ("step", "peak")]
        print(f"{name:<12}{taken / len(groups):>10.3f}{tokens / taken:>10.0f}{mib[0]:>12.0f}{mib[1]:>12.0f}")
    last_line(
        "packing",
        speedup_vs_padded=seconds["padded"] / seconds["packed"],
        peak_memory_ratio=memory["packed"]["step"] / memory["padded"]["step"],
        overhead_vs_ideal=seconds["packed"] / seconds["one by one"],
        padding=1 - tokens / cells,
    )


if __name__ == "__main__":
    main()
