"""One pass for all boxes against the language model writing the same boxes as text, token by token.

    python benchmarks/detect_vs_generate.py [--model outputs/demo/model] [--repeats 3] [--threads 2] [--quick]

Same model, same photos, one photo at a time, from pixels to boxes and captions on both sides. Detection takes the n
highest-scoring boxes of one forward pass and decodes their captions in parallel. Text is greedy with a key/value cache,
and is exactly as long as the correct answer for n boxes, so that an untrained model neither stops early nor rambles.
Without --model the weights are fresh, of two sizes: Qwen2.5-VL-3B in small (widths an eighth, depths a quarter), whose
``speedup`` at 20 boxes is the headline, and configs/demo.yaml, whose language model of two layers writes a token in
about a millisecond (``speedup_demo_size``). Captions of fresh weights never end before
model.detection.caption_max_tokens, which is to detection's disadvantage. The two take turns. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import interleaved_medians, last_line
from PIL import Image

from bbu.config import load_config
from bbu.data.photo import Photo
from bbu.errors import UserError
from bbu.inference import Inference
from bbu.inference.predictor import Predictor
from bbu.models.build import build_model, build_processor
from bbu.models.checkpoint import save_model
from bbu.models.precision import compute_device, use_bf16
from bbu.records import FewShotSample, ObjectRow, Row, read_rows

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
BOXES, HEADLINE = (5, 20, 40), 20
SMALL_3B = dict(  # its config.json: 32 blocks of 1280, every eighth with full attention; 36 layers of 2048
    vision_width=160,
    vision_depth=8,
    vision_heads=2,
    vision_full_attention=[7],
    text_width=256,
    text_depth=9,
    text_heads=2,
    text_kv_heads=1,
)
DESCRIPTIONS = (
    "螺丝连接点/BBU安装螺丝/安装正确", "螺丝连接点/BBU安装螺丝/未拧紧", "螺丝连接点/CPRI光缆和BBU连接点/安装正确",
    "螺丝连接点/地排处螺丝/安装正确", "螺丝连接点/BBU接地线机柜接地端/生锈", "bbu基带处理单元/华为", "标签贴纸/可识别",
    "挡风板", "线缆/蛇形管", "机柜空间/非满载",
)  # fmt: skip
WIDTH, HEIGHT = 320, 288  # pixels; the demo's limit resizes it a little

Step = Callable[[], int]


def random_objects(random: np.random.Generator, count: int, descriptions: list[str]) -> tuple[ObjectRow, ...]:
    """Boxes anywhere, described at random."""
    corners = random.uniform(0, 0.8, size=(count, 2)) * (WIDTH, HEIGHT)
    sides = random.uniform(0.05, 0.2, size=(count, 2)) * (WIDTH, HEIGHT)
    return tuple(
        ObjectRow(descriptions[int(random.integers(len(descriptions)))], "bbox_2d", (*low, *(low + side)))
        for low, side in zip(corners, sides, strict=True)
    )


def random_photo(random: np.random.Generator, count: int, descriptions: list[str]) -> Photo:
    """Noise with ``count`` boxes in it."""
    pixels = random.integers(0, 256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Photo(Image.fromarray(pixels), f"{count} boxes", random_objects(random, count, descriptions))


def save_fresh_model(
    folder: Path, random: np.random.Generator, descriptions: list[str], scratch: dict[str, Any] | None = None
) -> None:
    """Untrained weights (None: of the demo's size) with a tokenizer that has learned from answers like these."""
    config = load_config(DEMO)
    config.model.scratch = scratch or config.model.scratch
    rows = [Row(("x",), random_objects(random, 1 + number % 20, descriptions), WIDTH, HEIGHT) for number in range(200)]
    processor = build_processor(config, [FewShotSample(row) for row in rows], ".")
    save_model(
        folder, build_model(config, processor.tokenizer, device=torch.device("cpu"), dtype=torch.float32), processor
    )


def make_steps(inference: Inference, photo: Photo) -> tuple[dict[str, Step], dict[str, int]]:
    """Both ways to the boxes of one photo, and the counts that each has to come to: boxes and tokens."""
    processor, count = inference.processor, len(photo.objects)
    place = next(inference.model.parameters()).device
    autocast = torch.bfloat16 if use_bf16("auto", place) else None
    predictor = Predictor(
        inference.model, processor, batch_size=1, max_detections=count, nms_iou=1.0, autocast=autocast
    )
    span = processor.process_photos([], photo, with_answer=True).student_span
    assert span is not None
    tokens = span[1] - span[0]

    def detect() -> int:
        return len(predictor.predict_photos([photo])[0])

    def generate() -> int:
        sample = processor.process_photos([], photo, with_answer=False)
        return inference.write_answer(sample, max_new_tokens=tokens, min_new_tokens=tokens).tokens

    return {"detect": detect, "generate": generate}, {"detect": count, "generate": tokens}


def measure(inference: Inference, photos: list[Photo], repeats: int) -> list[dict[str, float]]:
    """Median seconds of both ways for every photo, taking turns.

    Raises:
        UserError: one of them gives another number of boxes or tokens than it should.
    """
    made = [make_steps(inference, photo) for photo in photos]
    for photo, (steps, expected) in zip(photos, made, strict=True):
        for name, step in steps.items():
            if (found := step()) != expected[name]:
                raise UserError(f"{photo.name}: {name} gave {found}, expected {expected[name]}; has it enough queries?")
    results: list[dict[str, float]] = []
    for steps, expected in made:
        seconds = interleaved_medians(steps, repeats, warm_up=False)  # the check above was one
        counts = {"boxes": expected["detect"], "tokens": expected["generate"]}
        results.append({**counts, **seconds, "speedup": seconds["generate"] / seconds["detect"]})
    return results


def report(title: str, results: list[dict[str, float]]) -> float | None:
    """Print a model's table; its speedup at the headline's number of boxes."""
    print(f"{title}\n{'boxes':>6}{'one pass':>12}{'text':>12}{'tokens':>8}{'speedup':>9}")
    for found in results:
        milliseconds = [found[name] * 1e3 for name in ("detect", "generate")]
        print(f"{found['boxes']:>6}{milliseconds[0]:>12.1f}{milliseconds[1]:>12.1f}", end="")
        print(f"{found['tokens']:>8}{found['speedup']:>9.1f}")
    return next((found["speedup"] for found in results if found["boxes"] == HEADLINE), None)


def fresh_inference(random: np.random.Generator, descriptions: list[str], scratch: dict[str, Any] | None) -> Inference:
    with tempfile.TemporaryDirectory(prefix="bbu-benchmark-") as folder:
        save_fresh_model(Path(folder), random, descriptions, scratch)
        return Inference(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="a run's model folder (default: fresh weights of two sizes)")
    parser.add_argument(
        "--descriptions", help="JSONL of rows whose descriptions are written (default: some of the demo's)"
    )
    parser.add_argument("--boxes", type=int, nargs="+", default=list(BOXES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two boxes, once, the demo's size: shows that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.boxes, arguments.repeats = [2], 1
    torch.set_num_threads(arguments.threads)
    random = np.random.default_rng(0)
    descriptions = list(DESCRIPTIONS)
    if arguments.descriptions:
        descriptions = sorted({desc for row in read_rows(arguments.descriptions) for desc in row.labels})
    photos = [random_photo(random, count, descriptions) for count in arguments.boxes]
    device = torch.cuda.get_device_name() if compute_device().type == "cuda" else f"{arguments.threads} CPU threads"
    print(f"{device}; milliseconds a photo, median of {arguments.repeats}")
    if arguments.model:
        results = measure(Inference(arguments.model), photos, arguments.repeats)
        last_line("detect_vs_generate", speedup=report(arguments.model, results))
        return
    figures = {}
    if not arguments.quick:
        results = measure(fresh_inference(random, descriptions, SMALL_3B), photos, arguments.repeats)
        figures["speedup"] = report("fresh weights, Qwen2.5-VL-3B in small", results)
    results = measure(fresh_inference(random, descriptions, None), photos, arguments.repeats)
    figures["speedup_demo_size"] = report("fresh weights, the demo's size", results)
    last_line("detect_vs_generate", **figures)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
