"""Read every photo once, in several processes if there are many. Worker processes import this file: no torch."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from bbu.data.sampling.similarity import photo_hash
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.reading import Rows, Sample
from bbu.errors import ImageError, ImageMissingError, UserError
from bbu.geometry import MAX_ASPECT_RATIO
from bbu.images import exif_orientation, load_image, open_image, read_image_bytes
from bbu.records import Row, resolve_image

PHOTOS_A_PROCESS = 100  # reading fewer is faster than starting a process


@dataclass(frozen=True)
class PhotoFacts:
    """What the doctor remembers of a photo.

    Args:
        width, height: displayed pixels; 0 if it cannot be read.
        orientation: EXIF orientation, 1 to 8.
        digest: of the file's bytes.
        hash: 64-bit perceptual hash.
        problem: code of a finding, or "".
        detail: the reason.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    digest: bytes = b""
    hash: int = 0
    problem: str = ""
    detail: str = ""


def look(name: str, root: str) -> PhotoFacts:
    """Read one photo as training does."""
    try:
        path = resolve_image(root, name)
        content = read_image_bytes(path, name)
        image = load_image(content, name)
    except ImageMissingError:
        return PhotoFacts(problem="photo_missing", detail=f"{path} does not exist")
    except ImageError as error:
        return PhotoFacts(problem="photo_unreadable", detail=str(error))
    except UserError as error:
        return PhotoFacts(problem="photo_outside_root", detail=str(error))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    long = max(image.size) > MAX_ASPECT_RATIO * min(image.size)
    problem, detail = ("photo_too_long", f"{image.width}x{image.height}") if long else ("", "")
    return PhotoFacts(*image.size, _orientation(content), digest, photo_hash(image), problem, detail)


def _orientation(content: bytes) -> int:
    with open_image(content) as image:
        return exif_orientation(image)


def look_at_all(names: Iterable[str], root: str) -> dict[str, PhotoFacts]:
    """Facts of every photo by name; a bar on stderr."""
    from tqdm import tqdm

    unique = list(dict.fromkeys(names))
    processes = min(os.cpu_count() or 1, len(unique) // PHOTOS_A_PROCESS)
    work = partial(look, root=root)
    if processes < 2:
        return dict(zip(unique, map(work, tqdm(unique, desc="photos", unit="photo", disable=None)), strict=True))
    # spawn, not fork: threads of an imported torch or tokenizer would be copied half-way
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.map(work, unique, chunksize=max(1, min(50, len(unique) // processes // 4)))
        return dict(zip(unique, tqdm(found, total=len(unique), desc="photos", unit="photo", disable=None), strict=True))


def names_of(rows: Rows) -> list[str]:
    """Photos of all rows, teachers and context inside samples included."""
    return [row.images[0] for sample in rows.samples for row in sample.shown]


def photo_findings(rows: Rows, facts: Mapping[str, PhotoFacts], root: str) -> list[Finding]:
    """Photos that would stop training: missing, unreadable, of another size than stated, not exactly one per row."""
    found: dict[str, list[Example]] = {}
    seen: set[tuple[str, str]] = set()
    for sample in rows.samples:
        for row in sample.shown:
            for code, detail in _problems(row, facts[row.images[0]]):
                if sample.row is row or (code, row.images[0]) not in seen:  # a teacher may be in many samples
                    found.setdefault(code, []).append(Example(sample.where, row.images[0], detail=detail))
                seen.add((code, row.images[0]))
    return [finding(code, examples, root=root) for code, examples in found.items()]


def _problems(row: Row, facts: PhotoFacts) -> list[tuple[str, str]]:
    problems = [("not_one_photo", f"{len(row.images)} photos")] if len(row.images) != 1 else []
    if facts.problem:
        problems.append((facts.problem, facts.detail))
    if facts.width and (facts.width, facts.height) != (row.width, row.height):
        turned = f", EXIF orientation {facts.orientation}" if facts.orientation != 1 else ""
        shows = f"the photo shows {facts.width}x{facts.height}{turned}"
        problems.append(("size_mismatch", f"the row says {row.width}x{row.height}, {shows}"))
    return problems


def readable(samples: Sequence[Sample], facts: Mapping[str, PhotoFacts]) -> list[Sample]:
    """Samples whose rows have one photo each, which can be read and resized."""
    images = ((sample, [row.images for row in sample.shown]) for sample in samples)
    return [sample for sample, rows in images if all(len(row) == 1 and not facts[row[0]].problem for row in rows)]
