"""Small targets in large photos: AP50 of a model trained on tiles, and of one trained on whole photos.

    python benchmarks/tiles.py [--seconds 75] [--seeds 17] [--quick]

Drawn walls of 432 x 432 pixels with screws of 28 to 40, tight or loose. The model sees 168 x 168 pixels, so that in the
whole photo every screw is under one image token. Both models start from random weights, as in configs/demo.yaml, and
train on the same photos for the same CPU seconds on one thread; opening and cutting photos counts, evaluation does not.
bbu.evaluation scores them on val by AP50 by description, the model of whole photos also with tiles in prediction alone.
The last line is one JSON object; its figures are means over the seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
from data_conversion.cabinet.brush import OPAQUE
from data_conversion.cabinet.fittings import loose_screw, tight_screw

PROJECT = Path(__file__).resolve().parents[1]
SIDE, SEEN = 432, 168  # pixels of a photo's side, and of what the model sees of it
SCREWS = {"screw/tight": tight_screw, "screw/loose": loose_screw}
SMALLEST, LARGEST = 28, 40  # pixels of a screw
CELL = 54  # pixels; screws lie in a grid of cells, so that they do not overlap
FEWEST, MOST = 4, 12  # screws on a photo
PHOTOS = {"train": 80, "val": 20}
WARM_UP = 0.1  # share of the training time
WHOLE, IN_PREDICTION, TILES = "ap50_whole", "ap50_tiles_in_prediction", "ap50_tiles"  # figures of the last line
TITLES = {
    WHOLE: "trained and predicted on whole photos",
    IN_PREDICTION: "trained on whole photos, predicted on tiles",
    TILES: "trained and predicted on tiles",
}


def draw_photos(folder: Path, photos: dict[str, int]) -> None:
    """Draw the photos of every split, and write its rows."""
    for number, (split, count) in enumerate(photos.items()):
        rows = [draw_photo(folder / f"{split}_{n}.jpg", np.random.default_rng((number, n))) for n in range(count)]
        write_jsonl(folder / f"{split}.jsonl", [row.to_json() for row in rows])


def draw_photo(path: Path, rng: np.random.Generator) -> Row:
    """Draw a wall with some screws; its row."""
    image, objects = backdrop(rng, SIDE, SIDE, 0.0), list[ObjectRow]()
    across = SIDE // CELL
    for cell in rng.permutation(across**2)[: int(rng.integers(FEWEST, MOST + 1))].tolist():
        desc = str(rng.choice(list(SCREWS)))
        brush = SCREWS[desc](rng, float(rng.uniform(SMALLEST, LARGEST)))
        part = brush.sheet.reduce(brush.finer)
        corner = [
            CELL * at + int(rng.integers(CELL - side + 1))
            for at, side in zip(divmod(cell, across), part.size, strict=True)
        ]
        image.paste(part, (corner[0], corner[1]), part)
        seen = np.argwhere(np.array(part.getchannel("A")) >= OPAQUE)[:, ::-1] + corner
        (x1, y1), (x2, y2) = seen.min(0).tolist(), (seen.max(0) + 1).tolist()
        objects.append(ObjectRow(desc, "bbox_2d", (x1, y1, x2, y2)))
    image.save(path, quality=92)
    return Row((path.name,), tuple(objects), SIDE, SIDE)


def config_of(folder: Path, seed: int, tiles: str) -> Config:
    """The demo's job on these photos."""
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
        arm.learn(rate_at(spent / seconds, WARM_UP))
        spent = time.process_time() - started
    return arm


def average_precision(arm: OwnArm, rows: Sequence[Row]) -> float:
    """AP50 by description."""
    return float(evaluate(rows, arm.predict(rows), bootstrap_samples=0)["AP50"] or 0.0)


def compare(folder: Path, seed: int, seconds: float) -> dict[str, float]:
    """Train both models with one seed and score them."""
    found = {}
    for name, tiles in ((WHOLE, ""), (TILES, "auto")):
        config = config_of(folder, seed, tiles)
        with contextlib.redirect_stdout(sys.stderr):
            data = prepare(config)
        arm = train(config, data, seconds)
        found[name] = average_precision(arm, data.rows("val"))
        print(f"seed {seed}, {TITLES[name]}: {found[name]:.3f}, {arm.steps} steps", file=sys.stderr, flush=True)
        if not tiles:
            arm.predictor.options = replace(arm.predictor.options, tiles=Tiles())
            found[IN_PREDICTION] = average_precision(arm, data.rows("val"))
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=75, help="CPU seconds of training, for each model and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--quick", action="store_true", help="a few photos, one step a model")
    return parser.parse_args()


def main() -> None:
    arguments, photos = parse(), PHOTOS
    if arguments.quick:
        arguments.seconds, arguments.seeds, photos = 0.01, arguments.seeds[:1], {"train": 4, "val": 1}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bbu-benchmark-") as folder:
        draw_photos(Path(folder), photos)
        found = [compare(Path(folder), seed, arguments.seconds) for seed in arguments.seeds]
    figures = {name: statistics.fmean(values[name] for values in found) for name in TITLES}
    print(f"{'AP50 by description, mean over seeds':<46}{'AP50':>6}")
    for name, title in TITLES.items():
        print(f"{title:<46}{figures[name]:>6.3f}")
    last_line("tiles", seconds=arguments.seconds, **figures)


if __name__ == "__main__":
    main()
