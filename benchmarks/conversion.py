"""Conversion of many labels: photos a second, peak memory as the source grows ten times, the same bytes twice.

    python benchmarks/conversion.py              # 10,000 and 100,000 photos' COCO labels, and real photos if there
    python benchmarks/conversion.py --photos 500 # a tenth and the whole of so many

The labels are one COCO file with 8 boxes a photo; their photos do not exist and are not opened (``images none``), so
the figure is of reading, checking, ordering and writing. Real photos (../shared/data/bccd_voc, 364 of 640 x 480)
are opened, hashed and decoded too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
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
REAL = Path(os.environ.get("BBU_SHARED", PROJECT.parent / "shared")) / "data" / "bccd_voc"
BOXES = 8  # a photo
LABELS = [f"{part}/{place}/{state}" for part in "abcd" for place in "xyz" for state in ("loose", "tight")]


def write_coco(path: Path, photos: int) -> None:
    """One COCO file, written as a stream; annotations in an order of their own, as tools leave them."""
    random = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        images = ({"id": n, "file_name": f"{n:06}.jpg", "width": 1440, "height": 1920} for n in range(photos))
        stream.write('{"images": [' + ",\n".join(json.dumps(image) for image in images) + '], "categories": ')
        stream.write(json.dumps([{"id": n, "name": name} for n, name in enumerate(LABELS)]) + ', "annotations": [')
        for number, photo in enumerate(random.permutation(photos * BOXES) % photos):
            x, y, w, h = random.integers((0, 0, 20, 20), (1200, 1700, 200, 200))
            item = {"id": number, "image_id": int(photo), "category_id": int(random.integers(len(LABELS)))}
            box = {"bbox": [int(x), int(y), int(w), int(h)], "iscrowd": 0, "area": int(w * h)}
            stream.write((",\n" if number else "") + json.dumps({**item, **box}))
        stream.write("]}")


def convert_once(source_format: str, source: Path, output: Path, images: str) -> None:
    """Run in a process of its own, whose peak memory is its own; prints seconds and peak MiB."""
    from data_conversion.pipeline import convert

    started = time.perf_counter()
    report = convert(source_format, source, output, taxonomy=None, images=images)
    seconds = time.perf_counter() - started
    peak = peak_bytes() / 2**20
    print(json.dumps({"seconds": seconds, "peak": peak, "photos": report.photos_written}))


def measure(source_format: str, source: Path, output: Path, images: str) -> dict[str, float]:
    """One conversion in a fresh process."""
    arguments = [sys.executable, __file__, "--once", source_format, str(source), str(output), images]
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def digest(folder: Path) -> str:
    """SHA-256 of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="500 photos: shows that it runs")
    parser.add_argument("--once", nargs=4, metavar=("FORMAT", "SOURCE", "OUTPUT", "IMAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        name, source, output, images = arguments.once
        convert_once(name, Path(source), Path(output), images)
        return
    if arguments.quick:
        arguments.photos = 500
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        sizes = (max(1, arguments.photos // 10), arguments.photos)
        runs = {}
        print(f"{'photos':>8} {'seconds':>8} {'photos/s':>9} {'peak MiB':>9}")
        for size in sizes:
            write_coco(base / str(size) / "annotations" / "instances_train.json", size)
            runs[size] = measure("coco", base / str(size), base / f"out{size}", "none")
            seconds, peak = runs[size]["seconds"], runs[size]["peak"]
            print(f"{size:>8} {seconds:>8.1f} {size / seconds:>9.0f} {peak:>9.0f}")
        measure("coco", base / str(sizes[0]), base / "again", "none")
        same = digest(base / "again") == digest(base / f"out{sizes[0]}")
        real = None
        if REAL.is_dir():
            found = measure("pascal_voc", REAL, base / "real", "keep")
            real = round(found["photos"] / found["seconds"], 1)
            print(f"real photos, opened and decoded: {real:.0f} a second")
        else:
            print(f"real photos: not measured, {REAL} is not there")
    result = {
        "photos_per_second": round(sizes[1] / runs[sizes[1]]["seconds"], 1),
        "peak_mib": round(runs[sizes[1]]["peak"], 1),
        "peak_growth": round(runs[sizes[1]]["peak"] / runs[sizes[0]]["peak"], 3),
        "same_bytes": same,
        "real_photos_per_second": real,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
