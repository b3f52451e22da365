"""Similarity of photos: perceptual hashes of their pixels, Jaccard distances of their label sets. Needs no torch.

Shapes: R rows, Ca categories.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bbu.errors import RecordError, UserError
from bbu.images import load_image
from bbu.jsonl import iter_json_lines, write_jsonl
from bbu.records import resolve_image

if TYPE_CHECKING:
    from PIL import Image

HASH_BITS = 64


def photo_hash(image: Image.Image) -> int:
    """64-bit perceptual hash (pHash of the ImageHash library): signs of the 8 x 8 lowest DCT coefficients.

    Re-encoding, resizing and brightness change few bits; rotating or mirroring a photo changes about half.
    """
    import imagehash

    bits = 0
    for bit in imagehash.phash(image).hash.ravel():
        bits = bits << 1 | int(bit)
    return bits


def jaccard_distances(sets_RCa: np.ndarray, one_Ca: np.ndarray) -> np.ndarray:
    """(R,) Jaccard distances of sets (rows of a boolean membership table) to one set: 0 = equal, 1 = disjoint."""
    union = (sets_RCa | one_Ca).sum(1)
    return 1 - (sets_RCa & one_Ca).sum(1) / np.maximum(union, 1) - (union == 0)


def hash_photos(names: Iterable[str], image_root: str | Path, cache: Path) -> dict[str, int]:
    """Hashes of photo files, read from the cache while a file's size and mtime are unchanged.

    A photo is decoded only once (about 4 ms for 640 x 480, 0.1 s for 12 megapixels), on all cores: Pillow releases the
    GIL while it decodes. The cache is written atomically, and only if something is new.

    Args:
        names: image paths relative to ``image_root``.
        cache: JSON lines of image, size in bytes, mtime_ns and hash in hexadecimal.

    Returns:
        Name → hash. A photo that cannot be read keeps its earlier hash, so that a resumed run draws the same teachers;
        without one it is left out. Whoever opens it next reports the error.
    """
    wanted = dict.fromkeys(names)
    known = _read_cache(cache)
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        found = list(threads.map(lambda name: _entry(name, image_root, known.get(name)), wanted))
    entries = {entry["image"]: entry for entry in found if entry is not None}
    if any(known.get(name) != entry for name, entry in entries.items()):
        write_jsonl(cache, {**known, **entries}.values())
    return {name: int(entry["phash"], 16) for name, entry in entries.items()}


def _entry(name: str, image_root: str | Path, known: dict[str, Any] | None) -> dict[str, Any] | None:
    try:
        path = resolve_image(image_root, name)
        state = path.stat()
        entry = {"image": name, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
        if known is not None and entry == {key: known[key] for key in entry}:
            return known
        return {**entry, "phash": f"{photo_hash(load_image(path)):016x}"}
    except (UserError, OSError):
        return known


def _read_cache(cache: Path) -> dict[str, dict[str, Any]]:
    """Entries by image; a damaged cache counts as empty, because it can be rebuilt."""
    try:
        entries = [entry for _, entry in iter_json_lines(cache)]
        if all(int(entry["phash"], 16) >= 0 and entry["size"] >= 0 and entry["mtime_ns"] for entry in entries):
            return {entry["image"]: entry for entry in entries}
    except (RecordError, KeyError, TypeError, ValueError):
        pass
    return {}
