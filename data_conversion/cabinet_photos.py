"""Draw a demo data set of cabinet photos, since there are no public ones.

Each photo is a JPEG beside a raw annotation file in the annotators' schema (see ``data_conversion.formats.bbu_json``).
5 % of the photos are stored turned, with an EXIF orientation; 3 % are annotated at another size. Consecutive photos of
a split are one site (``sites``); the files do not say so.

Shapes: R rows.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from bbu.errors import UserError
from bbu.geometry import exif_affine, invert, polygon_area, transform_points
from data_conversion.cabinet.backdrop import expose
from data_conversion.cabinet.catalogue import BOX, LABELS, LINE
from data_conversion.cabinet.scene import Part, arrange, compose

TURNED_SHARE = 0.05  # fraction of photos stored with EXIF orientation 3, 6 or 8
RESIZED_SHARE = 0.03  # fraction of photos whose JSON declares another size than the file
RESIZED_BY = (0.5, 0.75, 1.5, 2.0)
STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
EPOCH_MS = 1_680_000_000_000  # a fixed day, so that files do not depend on the time of drawing
SITE_SIZES = (2, 6)  # fewest and most photos of a site
SITE_STREAM = 1  # of the random draws of a split, beside those of its photos
FEWEST_FOR_POOL = 24  # photos; starting processes costs more than drawing fewer


@dataclass(frozen=True)
class Photo:
    """One drawn photo, as written to disk.

    Args:
        image: RGB, pixels as stored.
        orientation: EXIF orientation, 1 = upright.
        quality: JPEG quality.
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
        workers: number of processes; 1 means this one.

    Raises:
        UserError: the folder is not empty, or a split name, a count or the seed is invalid.
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
    # spawn, not fork: a fork would copy the caller's threads (torch) with their locks held
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in pool.imap_unordered(save, jobs, chunksize=8):
            pass


def _save_photo(job: tuple[str, int], folder: Path, seed: int) -> None:
    split, index = job
    photo = draw_photo(seed, split, index)
    stem = folder / photo_stem(split, index)
    exif = Image.Exif()
    if photo.orientation != 1:
        exif[ExifTags.Base.Orientation] = photo.orientation
    photo.image.save(stem.with_suffix(".jpg"), quality=photo.quality, exif=exif)
    text = json.dumps(photo.annotation, ensure_ascii=False, allow_nan=False)
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8", newline="\n")


def photo_stem(split: str, index: int) -> str:
    """Path of a photo in the data set, without suffix."""
    return f"{split}/cabinet_{split}_{index:05d}"


def sites(photos: Mapping[str, int], seed: int) -> dict[str, str]:
    """Path of each photo of a drawn data set → its site, which lies within one split.

    A site is 2 to 6 consecutive photos; a split of a single photo is a site of one.

    Args:
        photos, seed: as for ``draw_data_set``.
    """
    return {
        f"{photo_stem(split, index)}.jpg": f"{split}-site-{site:04d}"
        for split, count in photos.items()
        for index, site in enumerate(np.repeat(*_site_sizes(split, count, seed)).tolist())
    }


def _site_sizes(split: str, count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Number of each site of a split, and its photos; they add up to ``count``."""
    rng = np.random.default_rng((seed, zlib.crc32(split.encode()), 0, SITE_STREAM))
    fewest, most = SITE_SIZES
    sizes: list[int] = []
    while left := count - sum(sizes):
        size = min(left, int(rng.integers(fewest, most + 1)))
        if left - size == 1:  # nobody is left alone
            size += 1 if size < most else -1
        sizes.append(size)
    return np.arange(len(sizes)), sizes


def photo_seed(seed: int, split: str, index: int) -> np.random.SeedSequence:
    """The seed of one photo, independent of all other photos and splits."""
    return np.random.SeedSequence((seed, zlib.crc32(split.encode()), index))


def draw_photo(seed: int, split: str, index: int) -> Photo:
    """Draw photo ``index`` of a split, annotated in stored pixels."""
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
    # displayed points → stored pixels → the size that the JSON declares
    back = invert(exif_affine(orientation, image.width, image.height))
    ratio = np.array(size) / image.size
    points = [transform_points(np.asarray(part.points), back) * ratio for part in scene.parts]
    order = rng.permutation(len(scene.parts))  # annotators follow no order
    features = [_feature(number, scene.parts[i], points[i], rng) for number, i in enumerate(order, start=1)]
    return Photo(image, orientation, quality, _document(size, features, f"{split}-{index:05d}", rng))


def _feature(number: int, part: Part, points_R2: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    english, kind = LABELS[part.label]
    if kind == BOX:
        (x1, y1), (x2, y2) = points_R2.min(axis=0), points_R2.max(axis=0)
        points_R2 = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
    spots = [[round(float(x), 3), round(float(y), 3)] for x, y in points_R2]
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
            "area": 0.0 if kind == LINE else round(polygon_area(points_R2), 2),
            "groups": [],
        },
    }


def _document(
    size: tuple[int, int], features: list[dict[str, Any]], name: str, rng: np.random.Generator
) -> dict[str, Any]:
    """The raw annotation file; training has no use for the last four entries, which belong to the tool."""
    stamp = EPOCH_MS + int(rng.integers(0, 10**10))
    return {
        "info": {"width": size[0], "height": size[1], "depth": 3},
        "tagInfo": {"mode": "image", "dataId": f"demo-{name}", "taskId": "demo", "timestamp": stamp},
        "version": "1.0",
        "markResult": {"type": "FeatureCollection", "features": features},
        "qualityResult": {"type": "FeatureCollection", "features": []},
        "workload": {"pointCount": sum(np.size(feature["geometry"]["coordinates"]) // 2 for feature in features)},
        "statistcs": {"objectCount": len(features)},
        "submitWorkflow": "finished",
    }
