"""A photo in memory with its objects: augmentation changes it, the processor reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bbu.errors import ImageError, PhotoChangedError, SampleError
from bbu.geometry import IDENTITY, Affine
from bbu.images import load_image
from bbu.records import ObjectRow, Row, resolve_image

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Photo:
    """Pixels and what they show.

    Args:
        image: RGB, upright.
        name: for messages.
        objects: in pixels of ``image``.
        to_canvas: displayed pixels of the file → pixels of ``image``; None where augmentation mixed several files.
        summary, annotated: of the row.
    """

    image: Image.Image
    name: str
    objects: tuple[ObjectRow, ...] = ()
    to_canvas: Affine | None = IDENTITY
    summary: str | None = None
    annotated: bool = True


# Photos of one sample (teachers, context, then the student) → the same photos as the model will see them.
Augment = Callable[[Sequence[Photo]], list[Photo]]


def open_photo(image_root: str | Path, row: Row) -> Photo:
    """Load the photo of a row, or the part of it that the row is about, and check it against the row.

    Raises:
        SampleError: not exactly one photo; PhotoChangedError: its size is not the record's.
        ImageError: the photo cannot be read.
    """
    if len(row.images) != 1:
        raise SampleError(f"{row.images[0]}: a turn has exactly one photo, this record has {len(row.images)}")
    name, tile = row.images[0], row.tile
    width, height = tile.photo if tile else (row.width, row.height)
    try:
        image = load_image(resolve_image(image_root, name))
        if image.size != (width, height):
            raise PhotoChangedError(
                f"{name}: the record says {width}x{height}, the photo shows {image.width}x{image.height} "
                "(after EXIF); convert the annotations again"
            )
    except (ImageError, PhotoChangedError) as error:
        error.photo = name
        raise
    if tile is None:
        return Photo(image, name, row.objects, summary=row.summary, annotated=row.annotated)
    return Photo(image.crop(tile.window), name, row.objects, tile.to_tile)
