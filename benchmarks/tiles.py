"""Small targets in large photos: AP50 of a model that trains on tiles against one that trains on whole photos.

    python benchmarks/tiles.py [--seconds 100] [--seeds 17] [--quick]

Drawn walls of 672 x 672 pixels with screws of 28 to 40, of which the model sees 224 x 224, so that all screws are under
one image token. Both models start from random weights and train for the same CPU seconds, on one thread, on the same
photos; loading, tiles and augmentation count, evaluation does not. Each is scored on val by AP50 by description, the
one trained on whole photos also with tiles in prediction alone. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convergence_arms import OwnArm, rate_at
from harness import last_line

from bbu.config import Config, load_config
from bbu.evaluation import evaluate
from bbu.jsonl import write_jsonl
from bbu.records import ObjectRow, Row
from bbu.stages import PreparedData, prepare
from bbu.tiles import Tiles
from data_conversion.cabinet.backdrop import backdrop
from data_conversion.cabinet.fittings import loose_screw, tight_screw

PROJECT = Path(__file__).resolve().parents[1]
SIDE, SEEN = 432, 168  # pixels of a photo, and of what the model sees of it
SCREWS = {"screw/tight": tight_screw, "screw/loose": loose_screw}
SMALLEST, LARGEST = 28, 40  # pixels of a screw
PHOTOS = {"train": 80, "val": 20}
ARMS = ("whole photos", "whole photos, tiles in prediction", "tiles")


def draw_photo(folder: Path, split: str, number: int) -> Row:
    """A wall with 4 to 12 screws that do not overlap, and its row."""
    rng = np.random.default_rng((number, len(split)))
    image, objects = backdrop(rng, SIDE, SIDE, 0.0), list[ObjectRow]()
    cells = rng.permutation((SIDE // 54) ** 2)[: int(rng.integers(4, 13))]  # a screw is smaller than a cell
    for cell in cells.tolist():
        desc = str(rng.choice(list(SCREWS)))
        part = SCREWS[desc](rng, float(rng.uniform(SMALLEST, LARGEST)))
        sheet = part.sheet.reduce(part.finer)
        left, top = (54 * place + int(rng.integers(0, 55 - side)) for place, side in zip((cell % 8, cell // 8), sheet.size))
        image.paste(sheet, (left, top), sheet)
        x1, y1, x2, y2 = sheet.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox()
        objects.append(ObjectRow(desc, "bbox_2d", (left + x1, top + y1, left + x2, top + y2)))
    name = f"{split}_{number}.jpg"
    image.save(folder / name, quality=92)
    return Row((name,), tuple(objects), SIDE, SIDE)


def config_of(folder: Path, seed: int, tiles: str) -> Config:
    overrides = [
        f"output_dir={folder / 'run'}", f"seed={seed}", f"data.tiles={tiles}", f"data.source.path={folder}",
        "data.source.format=records", "data.source.taxonomy=", "data.language=en", f"data.max_pixels={SEEN**2}",
        f"data.min_pixels={SEEN**2 // 4}", "training.precision=fp32",
    ]  # fmt: skip
    return load_config(PROJECT / "configs" / "demo.yaml", overrides)


def train(config: Config, data: PreparedData, seconds: float) -> OwnArm:
    """Train for so many CPU seconds; the learning rate follows the share of them that is spent."""
    arm, started, spent = OwnArm(config, data), time.process_time(), 0.0
    while spent < seconds:
        arm.learn(rate_at(spent / seconds, 0.1))
        spent = time.process_time() - started
    return arm


def average_precision(arm: OwnArm, rows: list[Row]) -> float:
    return float(evaluate(rows, arm.predict(rows), bootstrap_samples=0)["AP50"] or 0.0)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--seconds", type=float, default=100)
    p.add_argument("--seeds", type=int, nargs="+", default=[17])
    p.add_argument("--arms", nargs="+", default=["", "auto"])
    p.add_argument("--set", nargs="*", default=[])
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as t:
        folder = Path(t)
        t0 = time.time()
        for split, count in PHOTOS.items():
            write_jsonl(folder / f"{split}.jsonl", [draw_photo(folder, split, n).to_json() for n in range(count)])
        print("drawn", time.time() - t0)
        import shutil
        shutil.copy(folder / "train_0.jpg", "/tmp/train_0.jpg")
        for seed in a.seeds:
            for tiles in a.arms:
                config = config_of(folder, seed, tiles)
                data = prepare(config)
                rows = data.rows("val")
                arm = train(config, data, a.seconds)
                t0 = time.time()
                print(repr(tiles), seed, arm.steps, "steps", len(arm.stream.samples), arm.stream.order.epoch_length, "AP50", average_precision(arm, rows), time.time() - t0, flush=True)
                if not tiles:
                    arm.predictor.options = __import__("dataclasses").replace(arm.predictor.options, tiles=Tiles())
                    print("  with tiles", average_precision(arm, rows), flush=True)


main()
