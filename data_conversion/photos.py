"""The facts about a photo file, and the map from annotation pixels to displayed pixels.

Photo files are never changed: training applies the EXIF transpose itself, by the same tag that is read here.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path

from bbu.errors import ImageError
from bbu.geometry import Affine, compose, displayed_size, exif_affine
from bbu.images import exif_orientation, image_errors, open_image

SHAPE_TOLERANCE = 0.02  # relative difference in aspect ratio that the rounding of a resize may cause

# Notes, counted in the report
ALREADY_DISPLAYED = "size_declared_as_displayed"
RESCALED = "rescaled"
STRETCHED = "rescaled_unevenly"


@dataclass(frozen=True)
class Photo:
    """One photo file: stored size in pixels, EXIF orientation 1-8, SHA-256 of its bytes."""

    width: int
    height: int
    orientation: int
    digest: str

    @property
    def displayed(self) -> tuple[int, int]:
        """(width, height) after the EXIF transpose."""
        return displayed_size(self.width, self.height, self.orientation)


def read_photo(source: Path | bytes, name: str = "") -> Photo:
    """Size, orientation and content hash. The pixels are decoded once, so a truncated file is found here.

    Args:
        source: the file, or its bytes.
        name: its name in messages; default: the file's name.

    Raises:
        ImageError: missing, or not a whole image; the message says why.
    """
    name = name or (source.name if isinstance(source, Path) else "photo")
    try:
        raw = _content(source) if isinstance(source, Path) else source
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from None
    damaged = "is not a whole image"
    with image_errors(name, damaged), open_image(raw, name, damaged) as image:
        width, height = image.size
        if image.format == "TIFF":  # for a turned TIFF Pillow gives the displayed size, but keeps the tag
            width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
        orientation = exif_orientation(image)
        # Decoding a JPEG at an eighth of its size is cheapest and still reads every byte.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
    return Photo(width, height, orientation, hashlib.sha256(raw).hexdigest())


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe could keep its reader waiting for ever
        raise OSError(errno.EINVAL, "not a file")
    return path.read_bytes()


def assumed_photo(name: str, declared: tuple[int, int] | None) -> Photo:
    """A photo that is not opened: upright, of the declared (width, height), identified by its name.

    Raises:
        ImageError: the annotation declares no size.
    """
    if declared is None:
        raise ImageError(f"{name}: its annotation declares no size, which is needed where photos are not opened")
    return Photo(*declared, 1, hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest())


def points_to_displayed(
    photo: Photo, declared: tuple[int, int] | None, already_displayed: bool, relative: bool = False
) -> tuple[Affine, list[str]]:
    """Affine map from annotation pixels to displayed pixels, and notes for the report.

    Args:
        declared: (width, height) of the frame that the points are in; None means the file's own.
        already_displayed: whether the points are in the displayed frame according to the format.
        relative: whether points are fractions of the frame, 0 to 1, not pixels.

    A declared size with the shape of the displayed photo, but not of the stored one, means that the annotation tool
    applied the EXIF orientation.

    Raises:
        ImageError: the declared size is the photo on its side without an EXIF turn, which has no safe reading.
    """
    stored, displayed = (photo.width, photo.height), photo.displayed
    frame = displayed if already_displayed else stored
    declared = declared or frame
    notes = []
    lies_on_side = _same_shape(declared, (frame[1], frame[0])) and not _same_shape(declared, frame)
    if lies_on_side and displayed != stored and not already_displayed:
        already_displayed = True
        notes.append(ALREADY_DISPLAYED)
    elif lies_on_side:
        size = f"declared size {declared[0]}x{declared[1]} is the photo ({frame[0]}x{frame[1]}) on its side"
        if displayed != stored:
            raise ImageError(
                f"{size}: it is that of the file as stored, which EXIF orientation {photo.orientation} turns for "
                "display; if coordinates are pixels of the stored file, add --frame stored (data.source.frame: "
                "stored), otherwise correct the declared size"
            )
        raise ImageError(
            f"{size}, and no EXIF turn explains it, so --frame (data.source.frame) cannot help; restore the photo's "
            "EXIF tag or correct the declared size"
        )
    affine = exif_affine(1 if already_displayed else photo.orientation, *declared)
    width, height = declared if already_displayed else displayed_size(*declared, photo.orientation)
    if (width, height) != displayed:
        notes.append(RESCALED if _same_shape((width, height), displayed) else STRETCHED)
        affine = compose(affine, (displayed[0] / width, 0.0, 0.0, 0.0, displayed[1] / height, 0.0))
    if relative:
        affine = compose((float(declared[0]), 0.0, 0.0, 0.0, float(declared[1]), 0.0), affine)
    return affine, notes


def _same_shape(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Same aspect ratio within SHAPE_TOLERANCE, or the same size."""
    return a == b or abs(a[0] * b[1] / (a[1] * b[0]) - 1) <= SHAPE_TOLERANCE
