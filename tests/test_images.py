"""Photos of every kind become 8-bit RGB as displayed; what is no photo is an error that names the file."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from bbu import images
from bbu.errors import ImageError
from bbu.images import HEIC_SUFFIXES, IMAGE_SUFFIXES, load_image, open_image, photo_size, read_image_bytes
from data_conversion.photos import read_photo
from tests.damaged_photos import KINDS, POSTSCRIPT, SIZE, encoded, exif_kinds, mutated, no_files, with_exif

PROJECT = Path(__file__).resolve().parents[1]

RAMP = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (24, 1))


def check(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    assert image.mode == "RGB" and image.size == size
    return np.asarray(image).astype(int)


WRITABLE = {
    ".png": ["RGB", "L", "1", "P", "RGBA", "LA"],
    ".jpg": ["RGB", "L", "1", "CMYK", "YCbCr"],
    ".tif": ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LAB", "RGBA", "LA"],
    ".bmp": ["RGB", "L", "1", "P", "RGBA"],
    ".webp": ["RGB", "L", "RGBA"],
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in WRITABLE.items() for mode in modes])
def test_any_mode_of_any_format_reads_as_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    colours = Image.merge("RGB", [Image.fromarray(RAMP), Image.fromarray(RAMP[:, ::-1]), Image.fromarray(RAMP // 2)])
    path = tmp_path / f"photo{suffix}"
    colours.convert(mode).save(path)
    pixels = check(load_image(path), (32, 24))
    expected = np.asarray(colours.convert(mode).convert("RGB"), dtype=int)
    lossy = suffix in (".jpg", ".webp")
    assert np.abs(pixels - expected).mean() <= (30 if lossy else 3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (100, 75)])
def test_a_jpegs_pixels_are_pillows(tmp_path: Path, size: tuple[int, int], subsampling: int, progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(noise).save(path, quality=85, subsampling=subsampling, progressive=progressive)
    with open_image(path) as image:
        np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(image))


def test_a_real_jpegs_pixels_are_pillows(shared_dir: Path) -> None:
    for path in sorted((shared_dir / "data").rglob("*.jpg"))[::60]:
        with open_image(path) as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
            np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(expected), err_msg=str(path))


def test_a_cmyk_jpeg_shows_its_colours(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(check(load_image(tmp_path / "a.jpg"), (16, 16))[8, 8], (200, 30, 90), atol=6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_shades_instead_of_clipping_to_white(tmp_path: Path, suffix: str) -> None:
    values = RAMP.astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    pixels = check(load_image(tmp_path / f"deep{suffix}"), (32, 24))
    np.testing.assert_array_equal(pixels[..., 0], RAMP)


def test_a_dark_sixteen_bit_photo_whose_values_fit_eight_bits_is_read_as_eight_bits(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "dark.png")
    np.testing.assert_array_equal(check(load_image(tmp_path / "dark.png"), (32, 24))[..., 1], RAMP)


def test_floating_point_and_32_bit_photos_are_read(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.int32) * 257).save(tmp_path / "int.tif")
    for name in ("float.tif", "int.tif"):
        np.testing.assert_array_equal(check(load_image(tmp_path / name), (32, 24))[..., 2], RAMP)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((10, 20, 30, 255), (0, 0, 4, 8))
    image.save(tmp_path / "a.png")
    pixels = check(load_image(tmp_path / "a.png"), (8, 8))
    assert pixels[0, 0].tolist() == [10, 20, 30] and pixels[0, 7].tolist() == [255, 255, 255]


def test_a_palette_with_a_transparent_colour_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 0, 250, 0, 0])
    image.putpixel((0, 0), 1)
    image.save(tmp_path / "a.gif", transparency=0)
    pixels = check(load_image(tmp_path / "a.gif"), (4, 4))
    assert pixels[0, 0].tolist() == [250, 0, 0] and pixels[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with open_image(tmp_path / "a.png") as stored:
        expected = ImageOps.exif_transpose(stored)
    loaded = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(expected))
    assert loaded.getexif().get(ExifTags.Base.Orientation, 1) == 1


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_a_photo_needs_its_file_no_more_once_it_is_read(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"photo{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)).save(path, exif=exif)
    with open_image(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    content = path.read_bytes()
    photos = [load_image(path), load_image(content)]
    path.unlink()
    for photo in photos:
        for again in (photo, photo.copy(), pickle.loads(pickle.dumps(photo)), photo.crop((0, 0, *photo.size))):
            np.testing.assert_array_equal(np.asarray(again), expected)
        assert ImageOps.exif_transpose(photo).size == photo.size  # turned once, also for whoever asks again


def test_a_single_pixel_is_a_photo(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert check(load_image(tmp_path / "a.png"), (1, 1)).tolist() == [[[1, 2, 3]]]


# ---------------------------------------------------------------- refusing


def saved(folder: Path, suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / f"whole{suffix}")
    return (folder / f"whole{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_photo_cut_off_is_an_error_and_not_a_grey_area(tmp_path: Path, suffix: str, kept: float) -> None:
    whole = saved(tmp_path, suffix)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jpg", b""),
        ("note.jpg", "这不是照片".encode()),
        ("page.png", b"<!doctype html><html>404</html>"),
        ("head.png", b"\x89PNG\r\n\x1a\n"),
        ("head.jpg", b"\xff\xd8\xff\xe0"),
        ("zeros.jpg", b"\0" * 5000),
    ],
)
def test_what_is_no_photo_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about the damage
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_damaged_bytes_give_a_photo_or_an_error_that_names_the_file_and_nothing_else(
    tmp_path: Path, suffix: str
) -> None:
    whole = saved(tmp_path, suffix)
    random = np.random.default_rng(1)
    path = tmp_path / f"damaged{suffix}"
    for _ in range(60):
        content = bytearray(whole)
        for place in random.integers(0, min(len(content), 400), 4):
            content[place] = int(random.integers(0, 256))
        path.write_bytes(content)
        try:
            assert load_image(path).mode == "RGB"
        except ImageError as error:
            assert str(path) in str(error)


def test_a_missing_photo_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: no such photo"):
        load_image(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match=r"folder\.jpg"):
        load_image(tmp_path / "folder.jpg")


def test_a_photo_over_the_limit_is_refused_before_it_is_unfolded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "big.png")
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 1200)
    assert load_image(tmp_path / "big.png").size == (40, 30)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 1199)
    with pytest.raises(ImageError, match=r"big\.png: 40x30 pixels is over the limit of 1199"):
        load_image(tmp_path / "big.png")


@pytest.mark.parametrize("side", [14_143, 60_000])
def test_a_small_file_that_says_it_is_enormous_is_refused(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"bomb\.png: .*(over the limit|too large)"):
        load_image(tmp_path / "bomb.png")


# ---------------------------------------------------------------- fuzzing


@pytest.mark.parametrize("orientation", range(1, 9))
def test_odd_exif_data_never_costs_the_photo_and_an_orientation_that_can_be_read_is_applied(orientation: int) -> None:
    sizes = {}
    for kind, exif in exif_kinds(orientation).items():
        image = load_image(with_exif(exif), f"{kind}.jpg")
        sizes[kind] = image.size
        assert image.mode == "RGB" and ImageOps.exif_transpose(image).size == image.size, kind
    turned = SIZE if orientation < 5 else SIZE[::-1]
    readable = {"plain", "big-endian", "as a long", "resolution by zero", "unknown type", "not a number", "infinite"}
    assert {kind: sizes[kind] for kind in readable} == dict.fromkeys(readable, turned)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, while it writes them
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_odd_exif_data_in_other_formats_gives_a_photo_or_an_error_that_names_it(kind: str) -> None:
    read = 0
    for name, exif in exif_kinds(6).items():
        try:
            data = encoded(kind, exif=exif)
        except Exception:  # Pillow itself refuses to write it
            continue
        with contextlib.suppress(ImageError):
            assert load_image(data, name).mode == "RGB"
            read += 1
    assert read >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_damaged_file_gives_a_photo_or_an_error_that_names_it(kind: str) -> None:
    seed = int(os.environ.get("BBU_FUZZ_SEED", "0"))
    random = np.random.default_rng(seed)
    print(f"seed {seed}")  # shown if it fails
    exif = exif_kinds(6)["maker note"] if kind in ("JPEG", "WEBP", "AVIF", "TIFF") else b""
    outcomes: Counter[bool] = Counter()
    for number, data in enumerate(mutated(encoded(kind, exif=exif), random, 150)):
        for read in (load_image, read_photo):
            try:
                read(data, f"{number}.jpg")
                outcomes[True] += 1
            except ImageError as error:
                assert str(error).startswith(f"{number}.jpg: ") and "\n" not in str(error)
                outcomes[False] += 1
    assert outcomes[True] and outcomes[False]


def test_real_photos_with_damage_give_a_photo_or_an_error_that_names_them(shared_dir: Path) -> None:
    paths = sorted((shared_dir / "data").rglob("*.jpg"))[::40][:12]
    for path in paths:
        for number, data in enumerate(mutated(path.read_bytes(), np.random.default_rng(0), 12)):
            try:
                assert load_image(data, "a.jpg").mode == "RGB", (path, number)
            except ImageError as error:
                assert str(error).startswith("a.jpg: ")


READ_IT = """
import sys
from pathlib import Path
from bbu.errors import ImageError
from bbu.images import load_image, open_image
from data_conversion.photos import read_photo

for read in (load_image, open_image, read_photo):
    try:
        read(Path(sys.argv[1]))
    except ImageError as error:
        print(error)
"""


def test_a_type_that_starts_programs_is_refused_by_content_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real program called gs, first on the path, that leaves a mark if anything starts it."""
    mark, program = tmp_path / "ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\necho 10.0\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    photo = tmp_path / "a.jpg"
    photo.write_bytes(POSTSCRIPT)
    done = subprocess.run([sys.executable, "-c", READ_IT, str(photo)], capture_output=True, text=True, check=True)
    assert done.stdout.count("is PostScript, not a photo") == 3 and not mark.exists()
    with_pillow = "import sys; from PIL import Image; Image.open(sys.argv[1]).load()"
    subprocess.run([sys.executable, "-c", with_pillow, str(photo)], capture_output=True, check=False)
    assert mark.exists(), "Pillow itself would have run it"


def test_a_photo_of_a_type_that_cannot_be_read_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(ImageError, match=r"a\.jpg: is a HEIC photo, which cannot be read; convert it"):
        load_image(tmp_path / "a.jpg")


def test_what_is_called_a_photo_and_is_no_file_is_an_error_at_once(tmp_path: Path) -> None:
    for kind, path in no_files(tmp_path, "a.jpg").items():
        for read in (load_image, open_image, photo_size, read_image_bytes):
            with pytest.raises(ImageError, match=rf"{kind}_a\.jpg: "):
                read(path)


def test_a_name_that_no_file_can_have_is_an_error(tmp_path: Path) -> None:
    for name in ("x" * 5000 + ".jpg", "a\0.jpg", "/".join(["deep"] * 2000)):
        with pytest.raises(ImageError, match="cannot be read"):
            load_image(tmp_path / name)


def test_the_suffixes_are_those_of_the_formats_that_are_read() -> None:
    assert {".jpg", ".jfif", ".jpe", ".avif", ".gif", ".png", ".webp", ".tiff", ".jp2"} <= set(IMAGE_SUFFIXES)
    for suffix in IMAGE_SUFFIXES:
        assert load_image(encoded(Image.EXTENSION[suffix])).size == SIZE
    assert {".eps", ".ps", ".pdf", ".wmf", *HEIC_SUFFIXES}.isdisjoint(IMAGE_SUFFIXES)


def test_only_one_file_opens_images() -> None:
    """Every other reader goes through it, and so through its list of formats."""
    readers = {"imread", "imdecode", "decode_jpeg", "decode_image", "read_image", "default_loader", "pil_loader"}
    for folder in ("src", "data_conversion", "benchmarks", "tests"):
        for path in (PROJECT / folder).rglob("*.py"):
            if path in (PROJECT / "src/bbu/images.py", Path(__file__)):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
                opens = (
                    isinstance(node, ast.Attribute)
                    and node.attr == "open"
                    and ast.unparse(node.value).endswith(("Image", "ImageFile", "PIL"))
                )
                taken = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("PIL")
                opens |= taken and any(alias.name == "open" for alias in node.names)
                assert not opens and called not in readers, f"{path}:{node.lineno}: use bbu.images"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_the_header_is_that_of_the_loaded_photo(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{suffix}"
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    exif = image.getexif()
    exif[274] = orientation
    image.save(path, exif=exif)
    assert photo_size(path) == load_image(path).size == ((30, 40) if orientation >= 5 else (40, 30))


def test_a_header_that_cannot_be_read_gives_the_error_of_loading(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(ImageError, match=r"note\.png: is not an image"):
        photo_size(tmp_path / "note.png")
