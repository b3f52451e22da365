"""Photo files of a conversion: kept, linked, copied or re-encoded; the source is never changed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bbu.errors import ImageError
from bbu.images import load_image
from bbu.jsonl import atomic_file
from data_conversion.base import SourceImage

KEEP, LINK, COPY, REENCODE, WITHOUT = "keep", "link", "copy", "reencode", "none"
MODES = {
    KEEP: "photos stay where they are; rows name them relative to the input",
    LINK: "hard links in OUTPUT/photos (copies from another disk)",
    COPY: "copies in OUTPUT/photos",
    REENCODE: "new files in OUTPUT/photos: upright, at most --max-pixels, JPEG quality 95 (PNG stays PNG)",
    WITHOUT: "labels alone: no photo is opened; sizes are those that the annotations declare",
}
QUALITY = 95  # of re-encoded JPEG files, on Pillow's scale
COPIED_NOT_LINKED = "copied_not_linked"  # note


@dataclass(frozen=True)
class Stored:
    """Path of a row's photo, and its displayed (width, height) there."""

    name: str
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


def store_photo(
    item: SourceImage, path: Path | None, mode: str, folder: Path, max_pixels: int, size: tuple[int, int]
) -> Stored:
    """Put a photo where its row will name it.

    Args:
        path: its file; None if the source holds its bytes, or none are needed.
        folder: root of linked, copied and re-encoded photos.
        max_pixels: largest re-encoded photo; 0 means no limit.
        size: its displayed (width, height).

    Raises:
        ImageError: the photo cannot be read, or its name leaves the folder.
    """
    if mode in (KEEP, WITHOUT):
        if item.content is not None and mode == KEEP:
            raise ImageError(f"{item.image}: lies inside {item.source}; unpack it with images = copy or reencode")
        return Stored(item.image, size)
    target = (folder / item.image).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ImageError(f"{item.image}: leaves the folder of photos; give it a name inside")
    if mode == REENCODE:
        return _reencode(item, path, target, max_pixels, size)
    if item.content is not None:
        with atomic_file(target) as file:
            file.write_bytes(item.content)
        return Stored(item.image, size)
    assert path is not None
    return Stored(item.image, size, _place(path, target, link=mode == LINK))


def _place(path: Path, target: Path, link: bool) -> tuple[str, ...]:
    if link:
        try:
            with atomic_file(target) as file:
                file.unlink()
                os.link(path, file)
            return ()
        except OSError:  # another disk, or one without hard links
            pass
    with atomic_file(target) as file:
        shutil.copyfile(path, file)
    return (COPIED_NOT_LINKED,) if link else ()


def _reencode(item: SourceImage, path: Path | None, target: Path, max_pixels: int, size: tuple[int, int]) -> Stored:
    image = load_image(path if path is not None else item.content or b"", item.image)
    width, height = fit(size, max_pixels)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    name = item.image
    suffix = target.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        name, target = f"{name}.jpg", target.with_name(f"{target.name}.jpg")
    how = {"format": "PNG"} if suffix == ".png" else {"format": "JPEG", "quality": QUALITY, "subsampling": 0}
    with atomic_file(target) as file:
        image.save(file, **how)
    return Stored(name, (width, height))


def fit(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """(width, height) scaled down to at most ``max_pixels`` pixels (0: no limit)."""
    width, height = size
    if not max_pixels or width * height <= max_pixels:
        return size
    scale = (max_pixels / (width * height)) ** 0.5
    return max(1, int(width * scale)), max(1, int(height * scale))
