"""ChatProcessor against transformers' Qwen2_5_VLProcessor: the same conversations, the same photos in memory.

    python benchmarks/chat_processor.py [--repeats 7] [--tokenizer FOLDER] [--quick]

Theirs gets the answers ready-written; ours writes them, and finds spans, labels, captions and boxes besides. Ids,
patches and grids are checked equal (to the bit) before anything is timed, and the two take turns, on one thread as in
a loader's process. The last line is one JSON object; `speedup` is that of the scene with the least.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from harness import interleaved_medians, last_line
from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.photo import Photo
from bbu.families.photo_plan import plan_resize
from bbu.families.prompts import answer_text, text_boxes
from bbu.models.build import build_processor
from bbu.records import FewShotSample, ObjectRow, Row

DESCRIPTIONS = ("螺丝连接点/BBU安装螺丝/安装正确", "标签贴纸/可识别", "线缆/蛇形管", "机柜空间/非满载")
# sides of the photos, and most pixels that the model sees of one
SCENES = {
    "phone photos, 12 megapixels": ((3000, 4000), 512 * 28 * 28),
    "phone photos, 1440 x 1920": ((1440, 1920), 512 * 28 * 28),
    "small photos, demo sizes": ((448, 336), 128 * 28 * 28),
}
Sample = tuple[list[Photo], Photo]


def make_processor(max_pixels: int, tokenizer: str) -> ChatProcessor:
    """As a run builds it; without a tokenizer folder, with one trained on a few answers."""
    config = Config()
    config.data.min_pixels, config.data.max_pixels, config.model.tokenizer = 224 * 224, max_pixels, tokenizer
    row = Row(("x",), tuple(ObjectRow(desc, "bbox_2d", (0, 0, 1, 1)) for desc in DESCRIPTIONS), 1, 1)
    return build_processor(config, [FewShotSample(row)], ".")


def random_photo(random: np.random.Generator, size: tuple[int, int], count: int) -> Photo:
    width, height = size
    low = random.uniform(0, 0.8, size=(count, 2)) * size
    high = low + random.uniform(0.05, 0.2, size=(count, 2)) * size
    objects = tuple(
        ObjectRow(str(random.choice(DESCRIPTIONS)), "bbox_2d", (*map(float, a), *map(float, b)))
        for a, b in zip(low, high, strict=True)
    )
    pixels = random.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Photo(Image.fromarray(pixels), "noise", objects)


def random_samples(random: np.random.Generator, size: tuple[int, int], count: int) -> list[Sample]:
    """0 to 3 teachers, 1 to 43 objects (mean about 8)."""
    samples = []
    for number in range(count):
        counts = [min(43, 1 + int(random.exponential(7))) for _ in range(number % 4 + 1)]
        *teachers, student = [random_photo(random, size, objects) for objects in counts]
        samples.append((teachers, student))
    return samples


def stock_of(ours: ChatProcessor) -> Qwen2_5_VLProcessor:
    spec = ours.spec
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}),
        tokenizer=ours.tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=spec.chat_template,
    )


def messages_of(ours: ChatProcessor, sample: Sample) -> list[dict[str, Any]]:
    """The conversation with its answers."""
    answers = []
    for photo in (*sample[0], sample[1]):
        plan = plan_resize(
            *photo.image.size, factor=28, min_pixels=ours.spec.min_pixels, max_pixels=ours.spec.max_pixels
        )
        boxes = text_boxes(plan, np.array([item.box for item in photo.objects]), ours.spec.box_convention)
        answers.append(answer_text(boxes, [item.desc for item in photo.objects]))
    return ours.messages(answers[:-1], answers[-1])


def arms(ours: ChatProcessor, samples: Sequence[Sample]) -> dict[str, Callable[[], list[Any]]]:
    stock = stock_of(ours)
    talks = [(messages_of(ours, sample), [photo.image for photo in (*sample[0], sample[1])]) for sample in samples]

    def stock_samples() -> list[Any]:
        texts = [stock.apply_chat_template(messages, tokenize=False) for messages, _ in talks]
        return [
            stock(text=[text], images=photos, return_tensors="pt")
            for text, (_, photos) in zip(texts, talks, strict=True)
        ]

    def our_samples() -> list[Any]:
        return [ours.process_photos(*sample, with_answer=True) for sample in samples]

    return {"transformers": stock_samples, "ours": our_samples}


def check_equal(theirs: Sequence[Any], ours: Sequence[ChatProcessorOutput]) -> None:
    for one, other in zip(theirs, ours, strict=True):
        for found, expected in (
            (other.input_ids, one["input_ids"][0]),
            (other.pixel_values, one["pixel_values"]),
            (other.image_grid_thw, one["image_grid_thw"]),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--samples", type=int, default=4, help="of each kind")
    parser.add_argument("--tokenizer", default="", help="folder, such as ../shared/data/qwen_tokenizer")
    parser.add_argument("--quick", action="store_true", help="small photos alone, twice")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng()
    speedups = {}
    for name in list(SCENES)[-1:] if arguments.quick else SCENES:
        size, max_pixels = SCENES[name]
        ours = make_processor(max_pixels, arguments.tokenizer)
        pair = arms(ours, random_samples(random, size, arguments.samples))
        check_equal(*(arm() for arm in pair.values()))
        seconds = interleaved_medians(pair, 2 if arguments.quick else arguments.repeats)
        for arm, value in seconds.items():
            print(f"{name:<28} {arm:<13} {1000 * value / arguments.samples:7.2f} ms a sample")
        speedups[name] = round(seconds["transformers"] / seconds["ours"], 3)
        print(f"{name:<28} {speedups[name]:.2f} times as fast")
    last_line("chat_processor", speedup=min(speedups.values()), speedup_of=speedups)


if __name__ == "__main__":
    main()
