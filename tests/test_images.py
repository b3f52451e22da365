"""Photos of every kind become 8-bit RGB as displayed; what is no photo is an error that names the file."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from bbu import images
from bbu.errors import ImageError
from bbu.images import load_image

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
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(image))


def test_a_real_jpegs_pixels_are_pillows(shared_dir: Path) -> None:
    for path in sorted((shared_dir / "data").rglob("*.jpg"))[::60]:
        with Image.open(path) as image:
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
    with Image.open(tmp_path / "a.png") as stored:
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
    with Image.open(path) as stored:
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
