"""Packed against padded: one training step of the language model on the same samples.

    .venv/bin/python benchmarks/packing.py [--repeats 5] [--threads 2]

Padded is transformers' own Qwen2.5-VL: a padded batch, SDPA, its own loss. Packed is this project's backbone
and chunked loss. Both share weights and see the same samples (0 to 3 worked examples, 1 to 43 parts, mixed
photo sizes); their losses are checked equal before anything is timed, and the two take turns. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessorOutput
from bbu.data.collators import PackedDataCollator, StandardDataCollator
from bbu.data.photo import Photo
from bbu.losses.language_loss import answer_loss_sum
from bbu.models.backbones.qwen2_5_vl import Qwen25VL
from bbu.models.build import build_processor
from bbu.records import FewShotSample, ObjectRow, Row

DESCRIPTIONS = ("螺丝连接点/BBU安装螺丝/安装正确", "标签贴纸/可识别", "线缆/蛇形管")


def random_photo(random: np.random.Generator, parts: int) -> Photo:
    """A photo of noise with ``parts`` boxes in it."""
    width, height = (int(side) for side in random.integers(224, 449, size=2))
    corners = random.uniform(0, 0.8, size=(parts, 2)) * (width, height)
    sides = random.uniform(0.05, 0.2, size=(parts, 2)) * (width, height)
    objects = tuple(
        ObjectRow(DESCRIPTIONS[number % 3], "bbox_2d", (*low, *(low + side)))
        for number, (low, side) in enumerate(zip(corners, sides, strict=True))
    )
    pixels = random.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Photo(Image.fromarray(pixels), "noise", objects)


def make_samples(count: int, seed: int) -> tuple[list[ChatProcessorOutput], int, dict[str, int]]:
    """Samples of realistic lengths, the size of the vocabulary and the vocabulary."""
    config = Config()
    config.data.min_pixels, config.data.max_pixels = 224 * 224, 336 * 336
    text = Row(("x",), tuple(ObjectRow(d, "bbox_2d", (0, 0, 1, 1)) for d in DESCRIPTIONS), 1, 1)
    processor = build_processor(config, [FewShotSample(text)], ".")
    random = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        parts = min(43, 1 + int(random.exponential(7)))
        teachers = [random_photo(random, 1 + int(random.integers(8))) for _ in range(number % 4)]
        samples.append(processor.process_photos(teachers, random_photo(random, parts), with_answer=True))
    return samples, len(processor.tokenizer), processor.tokenizer.get_vocab()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    samples, vocabulary, token_ids = make_samples(arguments.samples, seed=0)
    ours = Qwen25VL.from_scratch(Config().model.scratch, vocabulary, token_ids)
    stock = Qwen2_5_VLForConditionalGeneration(copy.deepcopy(ours.vlm.config))
    stock.set_attn_implementation("sdpa")
    stock.load_state_dict(ours.vlm.state_dict())
    positions = ours.position_function()
    packed = PackedDataCollator(positions)(samples)
    padded = StandardDataCollator(positions, token_ids["<|endoftext|>"])(samples)
    spans = [s for group in packed["teacher_spans"] for s in group] + packed["student_spans"]
    supervised = sum(stop - start for start, stop in spans)

    def packed_step() -> torch.Tensor:
        hidden = ours(
            packed["input_ids"], packed["position_ids"], packed["pixel_values"], packed["image_grid_thw"],
            packed["cu_seqlens"], packed["max_seqlen"],
        ).hidden_TD  # fmt: skip
        loss = answer_loss_sum(hidden, packed["labels"][0], ours.lm_head_weight, spans) / supervised
        loss.backward()
        return loss.detach()

    def padded_step() -> torch.Tensor:
        loss = stock(
            input_ids=padded["input_ids"], attention_mask=padded["attention_mask"].long(), labels=padded["labels"],
            position_ids=padded["position_ids"], pixel_values=padded["pixel_values"],
            image_grid_thw=torch.tensor(padded["image_grid_thw"]), use_cache=False,
        ).loss  # fmt: skip
        loss.backward()
        return loss.detach()

    torch.testing.assert_close(packed_step(), padded_step(), rtol=1e-4, atol=1e-4)
    times: dict[str, list[float]] = {"packed": [], "padded": []}
    steps: dict[str, Callable[[], torch.Tensor]] = {"packed": packed_step, "padded": padded_step}
    for _ in range(arguments.repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(values) for name, values in times.items()}
    tokens, cells = packed["input_ids"].numel(), padded["input_ids"].numel()
    print(f"{len(samples)} samples, {tokens} tokens, {cells} cells when padded ({1 - tokens / cells:.0%} padding)")
    for name, seconds in middle.items():
        print(f"{name}  {seconds:6.3f} s a step  {tokens / seconds:8.0f} real tokens/s")
    print(json.dumps({"benchmark": "packing", "speedup_vs_padded": round(middle["padded"] / middle["packed"], 3)}))


if __name__ == "__main__":
    main()
