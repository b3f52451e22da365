"""Scoring of many photos: seconds and peak memory of `bbu evaluate`, with its bootstrap intervals timed apart.

    python benchmarks/scoring.py                                # 10,000 photos, 100 predictions each
    python benchmarks/scoring.py --photos 1000 --bootstrap-samples 100
    python benchmarks/scoring.py --photos 1000000 --up-to 10 --bootstrap-samples 0

Every photo has 8 objects of 24 descriptions in 3 levels, or with ``--up-to 10`` 1 to 10 objects and 1 to 10
predictions; 30 % of its predictions are near an object, the others anywhere. ``seconds`` (and ``cpu_seconds``) is the
time from two JSONL files to all metrics without intervals, in a process of its own without a limit on cores;
``peak_mib`` is the peak memory of that process until then. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import peak_bytes

PROJECT = Path(__file__).resolve().parents[1]
OBJECTS, NEAR = 8, 0.3
SIZE = 1000  # pixels, width and height
LABELS = [f"{kind}/{place}/{state}" for kind in "abcd" for place in "xyz" for state in ("loose", "tight")]


def write_files(folder: Path, photos: int, predictions: int, up_to: int | None) -> None:
    """truth.jsonl and found.jsonl, a photo at a time."""
    objects_of, predictions_of = OBJECTS, predictions
    random = np.random.default_rng(0)
    with (folder / "truth.jsonl").open("w") as truth, (folder / "found.jsonl").open("w") as found:
        for number in range(photos):
            photo = {"images": [f"{number:06}.jpg"], "width": SIZE, "height": SIZE}
            if up_to:
                objects_of, predictions_of = random.integers(1, up_to + 1, size=2).tolist()
            boxes = some_boxes(random, objects_of)
            labels = random.integers(len(LABELS), size=objects_of)
            objects = [{"desc": LABELS[k], "bbox_2d": box} for k, box in zip(labels, boxes.tolist(), strict=True)]
            truth.write(json.dumps({**photo, "objects": objects}) + "\n")
            found.write(json.dumps({**photo, "predictions": guesses(random, predictions_of, boxes, labels)}) + "\n")


def some_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) xyxy."""
    corners = random.uniform(0, 0.75 * SIZE, size=(count, 2))
    return np.concatenate([corners, corners + random.uniform(20, 0.2 * SIZE, size=(count, 2))], axis=1).round(1)


def guesses(random: np.random.Generator, count: int, boxes: np.ndarray, labels: np.ndarray) -> list[dict[str, object]]:
    """Predictions of one photo; those near an object mostly have its description and a higher score."""
    nearest, near = random.integers(len(boxes), size=count), random.random(count) < NEAR
    moved = np.clip(boxes[nearest] + random.normal(0, 6, size=(count, 4)), 0, SIZE)
    place = np.where(near[:, None], moved, some_boxes(random, count)).round(1)
    said = np.where(near & (random.random(count) < 0.8), labels[nearest], random.integers(len(LABELS), size=count))
    scores = random.beta(np.where(near, 3, 1), 4).round(6)
    return [
        {"bbox_2d": box, "desc": LABELS[label], "score": score, "objectness": score**0.5}
        for box, label, score in zip(place.tolist(), said, scores.tolist(), strict=True)
    ]


def score_once(folder: Path, bootstrap_samples: int) -> None:
    """Score and print time and peak memory; run in a process of its own, so the peak is its own."""
    from bbu.evaluation import evaluate
    from bbu.records import iter_predictions, iter_rows

    def score(samples: int) -> dict[str, object]:
        truth, found = iter_rows(folder / "truth.jsonl"), iter_predictions(folder / "found.jsonl")
        return evaluate(truth, found, bootstrap_samples=samples)

    started, cpu_before = time.perf_counter(), time.process_time()
    metrics = score(0)
    took = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu_before, "intervals": 0.0}
    peak, started = peak_bytes() / 2**20, time.perf_counter()
    if bootstrap_samples:
        score(bootstrap_samples)
        took["intervals"] = time.perf_counter() - started - took["seconds"]
    print(json.dumps({**took, "peak": peak, "AP": metrics["AP"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--predictions", type=int, default=100, help="per photo (default 100)")
    parser.add_argument("--up-to", type=int, metavar="N", help="1 to N objects and predictions a photo instead")
    parser.add_argument("--bootstrap-samples", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="50 photos, 20 bootstrap samples: shows that it runs")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        score_once(Path(arguments.once), arguments.bootstrap_samples)
        return
    if arguments.quick:
        arguments.photos, arguments.bootstrap_samples = 50, 20
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), arguments.photos, arguments.predictions, arguments.up_to)
        command = [sys.executable, __file__, "--once", folder, "--bootstrap-samples", str(arguments.bootstrap_samples)]
        path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise SystemExit(done.stderr)
    took = json.loads(done.stdout.splitlines()[-1])
    each = (
        f"1 to {arguments.up_to} objects and" if arguments.up_to else f"{OBJECTS} objects and {arguments.predictions}"
    )
    print(f"{arguments.photos} photos, {each} predictions each, AP {took['AP']:.3f}")
    print(f"{'scoring':<16} {took['seconds']:>8.1f} s, {took['cpu']:.1f} CPU s")
    print(f"{f'{arguments.bootstrap_samples} bootstraps':<16} {took['intervals']:>8.1f} s")
    print(f"{'peak memory':<16} {took['peak']:>8.0f} MiB")
    result = {
        "rows": arguments.photos,
        "seconds": round(took["seconds"], 1),
        "cpu_seconds": round(took["cpu"], 1),
        "peak_mib": round(took["peak"], 1),
        "intervals_seconds": round(took["intervals"], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
