"""How the cost of a training step grows: with the samples of a pack, boxes, queries and pixels, each by itself.

    python benchmarks/scale.py [--repeats 5] [--plot scale.png] [--quick]

A step is forward, backward and AdamW of the whole DetectionObjective at the sizes and in the precision of
configs/demo.yaml, on one thread of the CPU, in CPU seconds, so that what else the machine does counts little. An
exponent is the slope of log seconds against log size over all sizes: 1 = twice the size takes twice as long. Sizes take
turns; medians count.

- tokens: 1 to 16 samples of equal length in a pack.
- boxes: objects of a photo, with the answer that names them.
- queries: of the detection head, in every sample. They attend to each other, which is quadratic but small. Most of a
  step depends neither on boxes nor on queries, so both exponents are small.
- pixels: of one photo. It may exceed 1: half of the demo's vision blocks let every patch attend to every other, as some
  of Qwen2.5-VL's do, and so does the language model over the image tokens.

Before anything is timed, the loss sums of a pack are checked to be those of its samples. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import interleaved_medians, last_line
from PIL import Image

from bbu.config import Config, LearningRates, load_config
from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.collators import PackedDataCollator
from bbu.data.photo import Photo
from bbu.losses.weighting import TERMS, count_terms, term_weights, weigh
from bbu.models.build import build_model, build_processor
from bbu.models.precision import use_bf16
from bbu.records import FewShotSample, ObjectRow, Row
from bbu.training.objective import DetectionObjective
from bbu.training.param_groups import optimizer_groups

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
DESCRIPTIONS = ("螺丝连接点/BBU安装螺丝/安装正确", "标签贴纸/可识别", "线缆/蛇形管", "挡风板")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """What a step is made of."""

    samples: int = 2
    objects: int = 8  # of a photo
    queries: int = 50
    side: int = 308  # pixels of the square photos: 121 image tokens, the demo has 64 to 128


@dataclass(frozen=True)
class Scan:
    """One thing that grows.

    Args:
        field: of Size.
        values: it takes in turn.
        unit: what is counted for the exponent.
        measure: (size, tokens of the pack) → how many of that.
    """

    field: str
    values: tuple[int, ...]
    unit: str
    measure: Callable[[Size, int], int]
    base: Size = Size()

    def sizes(self) -> list[Size]:
        return [replace(self.base, **{self.field: value}) for value in self.values]


SCANS = {
    "tokens": Scan("samples", (1, 2, 4, 8, 16), "tokens of a pack of 1 to 16 samples", lambda _, tokens: tokens),
    "boxes": Scan("objects", (1, 2, 4, 8, 16, 32), "boxes a photo, 2 photos", lambda size, _: size.objects),
    "queries": Scan("queries", (25, 50, 100, 200, 400), "queries a photo, 2 photos", lambda size, _: size.queries),
    "pixels": Scan("side", (112, 224, 448, 896), "pixels of one photo", lambda size, _: size.side**2, Size(samples=1)),
}


def make_samples(size: Size, processor: ChatProcessor, random: np.random.Generator) -> list[ChatProcessorOutput]:
    """Samples of equal length: the same boxes on other pixels."""
    corners, sides = random.uniform(0, 0.7, (size.objects, 2)), random.uniform(0.05, 0.3, (size.objects, 2))
    boxes = (np.concatenate([corners, corners + sides], axis=1) * size.side).tolist()
    objects = tuple(
        ObjectRow(desc, "bbox_2d", tuple(box)) for desc, box in zip(cycle(DESCRIPTIONS), boxes, strict=False)
    )
    photos = [
        Photo(Image.fromarray(random.integers(0, 256, (size.side, size.side, 3), dtype=np.uint8)), "noise", objects)
        for _ in range(size.samples)
    ]
    samples = [processor.process_photos([], photo, with_answer=True) for photo in photos]
    assert len({len(sample.input_ids) for sample in samples}) == 1, "samples must be of equal length"
    return samples


class Step:
    """Forward, backward and optimizer on one pack, again and again with the same weights."""

    def __init__(self, size: Size, config: Config, processor: ChatProcessor, random: np.random.Generator) -> None:
        config = copy.deepcopy(config)
        config.model.detection.queries = size.queries
        self.bf16 = use_bf16(config.training.precision, CPU)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        model = build_model(config, processor.tokenizer, device=CPU, dtype=dtype)
        self.objective, self.weights = DetectionObjective(model, config.loss), term_weights(config.loss)
        still = LearningRates(0.0, 0.0, 0.0, 0.0, 0.0)  # the same work at every step
        self.optimizer = torch.optim.AdamW(optimizer_groups(model, still, config.training.weight_decay), fused=True)
        self.samples = make_samples(size, processor, random)
        self.collate = PackedDataCollator(model.backbone.position_function())
        self.batch = self.collate(self.samples)
        self.tokens = self.batch["input_ids"].numel()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            components = weigh(self.objective(**self.batch), count_terms(self.batch), self.weights)
        torch.stack([components[term] for term in TERMS]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def sums(self, samples: Sequence[ChatProcessorOutput]) -> torch.Tensor:
        """(terms,) loss sums of one pack, in float32."""
        found = self.objective(**self.collate(samples))
        return torch.stack([found[term] for term in TERMS])

    def check(self) -> None:
        """A pack does the work of all its samples."""
        alone = torch.stack([self.sums([sample]) for sample in self.samples]).sum(0)
        torch.testing.assert_close(self.sums(self.samples), alone, rtol=1e-3, atol=1e-3)


def measure(scan: Scan, config: Config, processor: ChatProcessor, repeats: int) -> list[tuple[int, float]]:
    """(how many, seconds a step) for every size."""
    random = np.random.default_rng()
    steps = {str(size): (size, Step(size, config, processor, random)) for size in scan.sizes()}
    next(step for size, step in steps.values() if size.samples > 1 or scan.base.samples == 1).check()
    arms: dict[str, Callable[[], Any]] = {name: step for name, (_, step) in steps.items()}
    seconds = interleaved_medians(arms, repeats, clock=time.process_time)
    return [(scan.measure(size, step.tokens), seconds[name]) for name, (size, step) in steps.items()]


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """Slope of log seconds against log size, least squares over all points."""
    sizes, seconds = np.log(np.array(points)).T
    return float(np.polyfit(sizes, seconds, 1)[0])


def table(unit: str, points: Sequence[tuple[int, float]]) -> str:
    """Sizes in rows; the last column is the exponent from the size before to this one."""
    lines = [f"{unit}: exponent {exponent(points):.2f}", f"{'size':>12}{'CPU s a step':>14}{'from before':>13}"]
    for number, (count, seconds) in enumerate(points):
        step = f"{exponent(points[number - 1 : number + 1]):.2f}" if number else "-"
        lines.append(f"{count:>12,}{seconds:>14.3f}{step:>13}")
    return "\n".join(lines)


def plot(points: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """A panel for each thing that grows: seconds a step, and a line of exponent 1 through the largest size."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, panels = pyplot.subplots(2, 2, figsize=(8.5, 6.5), dpi=120)
    for axes, (name, curve) in zip(panels.flat, points.items(), strict=True):
        sizes, seconds = (np.array(column) for column in zip(*curve, strict=True))
        axes.loglog(sizes, seconds[-1] * sizes / sizes[-1], "--", color="0.6", linewidth=1, label="exponent 1")
        axes.loglog(sizes, seconds, "o-", color="C0", linewidth=2, label=f"measured: {exponent(curve):.2f}")
        axes.set(xlabel=SCANS[name].unit, ylabel="CPU seconds a step")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_ylim(seconds.min() / 1.5, seconds.max() * 1.5)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="upper left")
    figure.suptitle("Cost of a training step, forward, backward and AdamW (one CPU thread, demo sizes)")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def quick(scan: Scan) -> Scan:
    """Two small sizes."""
    values = (28, 56) if scan.field == "side" else scan.values[:2]
    return replace(scan, values=values, base=replace(scan.base, side=56, samples=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="PNG to write, such as outputs/benchmarks/scale.png")
    parser.add_argument("--quick", action="store_true", help="two small sizes of each, once")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(DEMO, [])
    config.data.min_pixels, config.data.max_pixels = 28 * 28, 4096 * 4096  # photos as they are
    text = Row(("x",), tuple(ObjectRow(name, "bbox_2d", (0, 0, 1, 1)) for name in DESCRIPTIONS), 1, 1)
    processor = build_processor(config, [FewShotSample(text)], ".")
    points = {}
    for name, scan in SCANS.items():
        scan = quick(scan) if arguments.quick else scan
        points[name] = measure(scan, config, processor, 1 if arguments.quick else arguments.repeats)
        print(table(scan.unit, points[name]), flush=True)
    if arguments.plot:
        plot(points, arguments.plot)
        print(f"plot: {arguments.plot}")
    last_line("scale", **{f"exponent_{name}": exponent(curve) for name, curve in points.items()})


if __name__ == "__main__":
    main()
