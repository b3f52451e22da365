"""Read photos: any mode that cameras and offices produce → RGB as displayed, or an error that names the file.

The only place that opens image files. Pillow tells a file's type by its content, and some of its types start other
programs (a PostScript file called .jpg starts Ghostscript), so it is only ever asked for FORMATS.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from bbu.errors import ImageError, ImageMissingError, ImageSizeError
from bbu.geometry import displayed_size

MAX_IMAGE_PIXELS = 200_000_000  # beyond any camera; a compressed file can decode to far more
MAX_IMAGE_BYTES = 2_000_000_000  # so many pixels need less in any format
# The plugins are named, so that Pillow never loads all of its own to look for one.
PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    BmpImagePlugin.BmpImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
    GifImagePlugin.GifImageFile,
    AvifImagePlugin.AvifImageFile,
    Jpeg2KImagePlugin.Jpeg2KImageFile,
    PpmImagePlugin.PpmImageFile,
)
FORMATS = tuple(plugin.format for plugin in PLUGINS)  # Pillow's names; all decode in this process
IMAGE_SUFFIXES = tuple(suffix for name in FORMATS for suffix, of in Image.EXTENSION.items() if of == name)
HEIC_SUFFIXES = (".heic", ".heif", ".hif")  # photos of phones, which Pillow does not read
TURNS = {  # EXIF orientation → what shows the photo upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION_CARRIERS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # keys of Image.info
_HEIC = "is a HEIC photo, which cannot be read; convert it: heif-convert a.heic a.jpg"
_POSTSCRIPT = "is PostScript, not a photo; export it as JPEG or PNG"
_OTHERS = {  # first bytes, from an offset → what the file is
    (4, b"ftyphei"): _HEIC,
    (4, b"ftyphev"): _HEIC,
    (4, b"ftypmif1"): _HEIC,
    (4, b"ftypmsf1"): _HEIC,
    (0, b"%!PS"): _POSTSCRIPT,
    (0, b"\xc5\xd0\xd3\xc6"): _POSTSCRIPT,
}


def load_image(source: str | Path | bytes, name: str = "") -> Image.Image:
    """Read a photo as 8-bit RGB with its EXIF orientation applied.

    CMYK, palette, grey and 16-bit photos are converted; transparent pixels are blended with white. Of several frames
    the first is read. The photo carries no EXIF data any more.

    Args:
        source: path of the file, or its bytes.
        name: its name in messages; default: the path.

    Raises:
        ImageError: missing, not a file, not an image, truncated, or over MAX_IMAGE_PIXELS; nothing else, whatever is
            in the file.
    """
    name = name or _name_of(source)
    data = source if isinstance(source, bytes) else read_image_bytes(source, name)
    with image_errors(name), open_image(data, name) as opened:
        return _to_rgb(upright(_decode(opened, data)))


def open_image(source: str | Path | bytes, name: str = "", damaged: str = "") -> Image.Image:
    """A photo whose header is read and whose pixels are not, as Pillow gives it; close it, or use it with ``with``.

    Decode it inside ``with image_errors(name)``.

    Args:
        source: path of the file, or its bytes.
        name: its name in messages; default: the path.
        damaged: as for ``image_errors``.

    Raises:
        ImageError: missing, not a file, or none of FORMATS.
        ImageSizeError: over MAX_IMAGE_PIXELS.
    """
    name = name or _name_of(source)
    if not isinstance(source, bytes):
        _check_file(source, name)
    with image_errors(name, damaged):
        try:
            opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        except UnidentifiedImageError:
            _name_other_kinds(source, name)
            raise
    if opened.width * opened.height > MAX_IMAGE_PIXELS:
        opened.close()
        raise ImageSizeError(
            f"{name}: {opened.width}x{opened.height} pixels is over the limit of {MAX_IMAGE_PIXELS}; shrink the photo"
        )
    return opened


def photo_size(path: Path) -> tuple[int, int]:
    """Width and height as displayed, from the file's header if possible.

    Raises:
        ImageError: the photo cannot be read.
    """
    try:
        with open_image(path) as image:
            if image.format != "TIFF":  # Pillow may rotate these on opening or on loading
                return displayed_size(*image.size, exif_orientation(image))
    except ImageError:  # load_image says why
        pass
    return load_image(path).size


@contextmanager
def image_errors(name: str, damaged: str = "") -> Iterator[None]:
    """Turns whatever Pillow raises for a file's content into an ImageError.

    Args:
        name: of the photo.
        damaged: in messages about damage, also about what is no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage, which Pillow reads past or not
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageSizeError(f"{name}: is too large: {error}") from None
    except MemoryError:
        raise ImageError(f"{name}: needs more memory than is free; shrink the photo") from None
    except Exception as error:  # Pillow and its decoders raise errors of any kind for damaged files
        if isinstance(error, UnidentifiedImageError) and not damaged:
            raise ImageError(f"{name}: is not an image that can be read") from None
        reason = " ".join(str(error).partition(" <_io")[0].split()) or type(error).__name__
        raise ImageError(f"{name}: {damaged or 'is damaged or cut off'}: {reason}") from None


def read_image_bytes(path: str | Path, name: str = "") -> bytes:
    """The content of a photo's file. A pipe or device, which could keep its reader waiting for ever, is not opened.

    Args:
        name: its name in messages; default: the path.

    Raises:
        ImageError: it cannot be read; says why.
    """
    _check_file(path, name or str(path))
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{name or path}: cannot be read: {error.strerror}") from None


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened photo, 1 to 8; a missing, impossible or unreadable one is 1, as viewers do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tag = image.getexif().get(ExifTags.Base.Orientation, 1)
        return next((number for number in range(1, 9) if number == tag), 1)  # a 6 written as a fraction is still a 6
    except Exception:  # Pillow raises errors of any kind for damaged EXIF data
        return 1


def upright(image: Image.Image) -> Image.Image:
    """An opened photo as displayed, in its own colours and without EXIF data.

    The data is dropped, not written back without its orientation, which fails for much that cameras write.
    """
    image.load()  # Pillow turns a TIFF itself while loading
    turn = TURNS.get(exif_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    for key in ORIENTATION_CARRIERS:
        image.info.pop(key, None)
    return image


# ---------------------------------------------------------------- files


def _name_of(source: str | Path | bytes) -> str:
    return "photo" if isinstance(source, bytes) else str(source)


def _check_file(path: str | Path, name: str) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ImageMissingError(f"{name}: no such photo") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise ImageError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise ImageError(f"{name}: is a {kind}, not a photo")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ImageSizeError(f"{name}: {status.st_size} bytes is over the limit of {MAX_IMAGE_BYTES}")


def _name_other_kinds(source: str | Path | bytes, name: str) -> None:
    if isinstance(source, bytes):
        head = source[:32]
    else:
        with open(source, "rb") as stream:
            head = stream.read(32)
    for (start, magic), what in _OTHERS.items():
        if head.startswith(magic, start):
            raise ImageError(f"{name}: {what}")


# ---------------------------------------------------------------- pixels


def _decode(opened: Image.Image, data: bytes) -> Image.Image:
    """The pixels of an opened photo; simplejpeg decodes colour JPEGs.

    It uses libjpeg-turbo with Pillow's settings, so the pixels are the same (a test compares them), but saves a copy: a
    fifth to a third of the time on photos of 12 megapixels. Pillow decodes whatever simplejpeg refuses.
    """
    if opened.format == "JPEG" and opened.mode == "RGB":
        try:
            image = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))
        except ValueError:
            pass
        else:
            image.info = opened.info  # with the EXIF orientation
            return image
    opened.load()
    return opened


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; an RGB photo is not copied, which would take half as long as decoding it."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0.0) > 255 else 255.0
        return Image.fromarray((values.clip(0, top) * (255.0 / top)).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
