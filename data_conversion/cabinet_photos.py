"""A demo data set of drawn cabinet photos, since no public photos of the field exist.

Each photo is a JPEG beside a raw annotation file in the annotators' schema (see ``data_conversion.formats.bbu_json``).
One photo in twenty is stored turned, with an EXIF orientation; one in thirty-three was annotated at another size.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from bbu.errors import UserError
from bbu.geometry import exif_affine, invert, transform_points
from data_conversion.cabinet.backdrop import expose
from data_conversion.cabinet.catalogue import BOX, LABELS, LINE
from data_conversion.cabinet.scene import Part, arrange, compose

TURNED_SHARE = 0.05  # photos stored with EXIF orientation 3, 6 or 8
RESIZED_SHARE = 0.03  # photos whose JSON gives another size than the file
RESIZED_BY = (0.5, 0.75, 1.5, 2.0)
STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
EPOCH_MS = 1_680_000_000_000  # a fixed day, so that the files do not depend on when they were drawn
FEWEST_FOR_POOL = 24  # starting processes costs more than drawing this many photos


@dataclass(frozen=True)
class Photo:
    """One drawn photo, as it goes to disk.

    Args:
        image: RGB, pixels as stored.
        orientation: EXIF value, 1 = none.
        quality: of the JPEG.
        annotation: the raw JSON document.
    """

    image: Image.Image
    orientation: int
    quality: int
    annotation: dict[str, Any]


def draw_data_set(output_dir: str | Path, photos: Mapping[str, int], seed: int, workers: int = 2) -> None:
    """Draw every split into ``output_dir``, which appears whole or not at all.

    The same seed gives the same bytes, whatever the number of workers. Splits never share a photo.

    Args:
        output_dir: a folder that does not exist yet, or is empty.
        photos: split name → number of photos, e.g. ``{"train": 600, "val": 40, "test": 60}``.
        seed: 0 or more.
        workers: processes; 1 draws in this one.

    Raises:
        UserError: the folder holds something, or a split name, a count or the seed makes no sense.
    """
    output_dir = Path(output_dir)
    _check(output_dir, photos, seed, workers)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=output_dir.parent, prefix=f".{output_dir.name}."))
    try:
        jobs = [(split, index) for split, count in photos.items() for index in range(count)]
        for split in photos:
            (draft / split).mkdir()
        _draw_all(jobs, draft, seed, workers)
        draft.chmod(0o755)
        os.replace(draft, output_dir)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _check(output_dir: Path, photos: Mapping[str, int], seed: int, workers: int) -> None:
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} already holds something; remove it or name another folder")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, is {seed}")
    if workers < 1:
        raise UserError(f"workers must be 1 or more, is {workers}")
    if not photos:
        raise UserError("photos names no split; give e.g. {'train': 600, 'val': 40, 'test': 60}")
    for split, count in photos.items():
        if not split.isidentifier():
            raise UserError(f"split name {split!r} is not a plain word; use e.g. train, val or test")
        if count < 0:
            raise UserError(f"split {split!r} needs 0 photos or more, is {count}")


def _draw_all(jobs: list[tuple[str, int]], folder: Path, seed: int, workers: int) -> None:
    save = partial(_save_photo, folder=folder, seed=seed)
    if workers == 1 or len(jobs) < FEWEST_FOR_POOL:
        for job in jobs:
            save(job)
        return
    # spawn, not fork: the caller may hold threads (torch) that a fork would copy half-locked
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(save, jobs, chunksize=8):
            pass


def _save_photo(job: tuple[str, int], folder: Path, seed: int) -> None:
    split, index = job
    photo = draw_photo(seed, split, index)
    stem = folder / split / f"cabinet_{split}_{index:05d}"
    exif = Image.Exif()
    if photo.orientation != 1:
        exif[ExifTags.Base.Orientation] = photo.orientation
    photo.image.save(stem.with_suffix(".jpg"), quality=photo.quality, exif=exif)
    text = json.dumps(photo.annotation, ensure_ascii=False, allow_nan=False)
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8", newline="\n")


def photo_seed(seed: int, split: str, index: int) -> np.random.SeedSequence:
    """The seed of one photo: streams of different splits and photos never meet."""
    return np.random.SeedSequence((seed, zlib.crc32(split.encode()), index))


def draw_photo(seed: int, split: str, index: int) -> Photo:
    """Draw photo ``index`` of a split, with its annotation in stored pixels."""
    arranged, camera = photo_seed(seed, split, index).spawn(2)
    scene, rng = arrange(arranged), np.random.default_rng(camera)
    image = expose(rng, compose(scene))
    quality = int(rng.integers(85, 96))
    habit = rng.random()
    orientation = int(rng.choice(list(STORED))) if habit < TURNED_SHARE else 1
    resized = TURNED_SHARE <= habit < TURNED_SHARE + RESIZED_SHARE
    if orientation != 1:
        image = image.transpose(STORED[orientation])
    scale = float(rng.choice(RESIZED_BY)) if resized else 1.0
    size = (round(image.width * scale), round(image.height * scale))
    # how displayed points reach the annotated frame: back to stored pixels, then to the JSON's size
    back = invert(exif_affine(orientation, image.width, image.height))
    ratio = np.array(size) / image.size
    points = [transform_points(np.asarray(part.points), back) * ratio for part in scene.parts]
    order = rng.permutation(len(scene.parts))  # annotators follow no order
    features = [_feature(number, scene.parts[i], points[i], rng) for number, i in enumerate(order, start=1)]
    return Photo(image, orientation, quality, _document(size, features, f"{split}-{index:05d}", rng))


def _feature(number: int, part: Part, points: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    english, kind = LABELS[part.label]
    if kind == BOX:
        (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
        points = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
    spots = [[round(float(x), 3), round(float(y), 3)] for x, y in points]
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": spots if kind == LINE else [spots]},
        "properties": {
            "content": {"label": english},
            "contentZh": {"标签": part.label},
            "objectId": number,
            "layerId": 1,
            "ocrContent": "",
            "generateMode": 1,
            "quality": {"errorType": {}, "changes": {}, "qualityStatus": "unqualified"},
            "labelColor": f"#{int(rng.integers(0, 1 << 24)):06x}",
            "area": 0.0 if kind == LINE else round(_area(points), 2),
            "groups": [],
        },
    }


def _area(points: np.ndarray) -> float:
    """Area inside a ring of (n, 2) points, closed or not, in square pixels."""
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _document(
    size: tuple[int, int], features: Iterable[dict[str, Any]], name: str, rng: np.random.Generator
) -> dict[str, Any]:
    """The raw annotation file; the last four entries are the tool's own and of no use to training."""
    features = list(features)
    stamp = EPOCH_MS + int(rng.integers(0, 10**10))
    return {
        "info": {"width": size[0], "height": size[1], "depth": 3},
        "tagInfo": {"mode": "image", "dataId": f"demo-{name}", "taskId": "demo", "timestamp": stamp},
        "version": "1.0",
        "markResult": {"type": "FeatureCollection", "features": features},
        "qualityResult": {"type": "FeatureCollection", "features": []},
        "workload": {"pointCount": sum(len(_ring(feature)) for feature in features)},
        "statistcs": {"objectCount": len(features)},
        "submitWorkflow": "finished",
    }


def _ring(feature: dict[str, Any]) -> list[Any]:
    coordinates = feature["geometry"]["coordinates"]
    return coordinates if feature["geometry"]["type"] == LINE else coordinates[0]
