"""Sources of photos: a folder, a pattern, a file, a list, records."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bbu.errors import UserError
from bbu.inference.photo_lists import list_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/er/d.jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "note.md").touch()
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


def test_a_folder_gives_all_photos_below_it_by_name(folder: Path) -> None:
    assert list_photos(folder) == (["a.JPG", "b.png", "deep/c.webp", "deep/er/d.jpg"], str(folder))


def test_one_photo_is_one_photo(folder: Path) -> None:
    assert list_photos(folder / "b.png") == (["b.png"], str(folder))


def test_records_give_their_photos_in_their_order(folder: Path) -> None:
    rows = [f'{{"images": ["{name}"], "objects": [], "width": 8, "height": 6}}\n' for name in ("deep/c.webp", "a.JPG")]
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    assert list_photos(folder / "rows.jsonl") == (["deep/c.webp", "a.JPG"], str(folder))


@pytest.mark.parametrize(
    ("pattern", "root", "names"),
    [
        ("*.png", "", ["b.png"]),
        ("*", "", ["a.JPG", "b.png"]),
        ("deep/**/*", "deep", ["c.webp", "er/d.jpg"]),
        ("d??p/*.webp", "", ["deep/c.webp"]),
    ],
)
def test_a_pattern_gives_matches_relative_to_the_last_folder_without_wildcards(
    folder: Path, pattern: str, root: str, names: list[str]
) -> None:
    assert list_photos(f"{folder}/{pattern}") == (names, str(folder / root))


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    Image.new("RGB", (8, 6)).save(folder / "x[1].png")
    assert list_photos(folder / "x[1].png") == (["x[1].png"], str(folder))


def test_a_list_keeps_its_order_and_repetitions(folder: Path) -> None:
    lines = "\ufeffdeep/c.webp\r\n\r\n  b.png \r\n照片.jpg\r\nb.png\r\n"
    (folder / "frames.txt").write_text(lines, encoding="utf-8", newline="")
    assert list_photos(folder / "frames.txt") == (["deep/c.webp", "b.png", "照片.jpg", "b.png"], str(folder))


def test_a_source_without_photos_is_an_error(folder: Path) -> None:
    (folder / "bare").mkdir()
    (folder / "empty.txt").write_text("\n \n", encoding="utf-8")
    (folder / "latin.txt").write_bytes("größe.jpg".encode("latin-1"))
    (folder / "empty.jsonl").touch()
    for name, why in (
        ("nowhere", "does not exist"),
        ("bare", "has no photo"),
        ("*.bmp", "has no photo"),
        ("empty.txt", "lists no photo"),
        ("latin.txt", "not UTF-8"),
        ("empty.jsonl", "has no row"),
    ):
        with pytest.raises(UserError, match=why):
            list_photos(folder / name)
