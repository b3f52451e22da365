"""Sources of photos: a folder, a pattern, a file, a list, records."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from bbu.errors import UserError
from bbu.images import IMAGE_SUFFIXES, load_image
from bbu.inference.photo_lists import LeftOut, list_photos
from bbu.records import resolve_image
from tests.damaged_photos import encoded, no_files


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


# ---------------------------------------------------------------- nothing is left out without a word


@pytest.fixture
def mixed(folder: Path) -> Path:
    """Photos of every suffix, beside what looks like photos and what does not."""
    for suffix in IMAGE_SUFFIXES:
        (folder / f"x{suffix}").write_bytes(encoded(Image.EXTENSION[suffix]))
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (folder / "raw.CR2").touch()
    (folder / "link").symlink_to("deep")
    no_files(folder, "a.jpg")
    return folder


@pytest.mark.parametrize("source", ["", "*", "**/*"])
def test_whatever_is_called_like_a_photo_is_listed_and_the_rest_is_counted(mixed: Path, source: str) -> None:
    left_out = LeftOut()
    names, root = list_photos(f"{mixed}/{source}" if source else mixed, left_out)
    things = {f"{kind}_a.jpg" for kind in ("pipe", "socket", "device", "gone", "loop")}
    assert {f"x{suffix}" for suffix in IMAGE_SUFFIXES} | {"IMG_1.HEIC", "a.JPG", "b.png"} | things <= set(names)
    assert root == str(mixed) and left_out.others == {".md": 1, ".cr2": 1}
    notes = " ".join(left_out.notes())
    assert "2 files not called like photos: 1 .md, 1 .cr2" in notes or "1 .cr2, 1 .md" in notes
    assert source or "1 link to folders not followed: link" in notes


def test_each_unreadable_one_gets_an_error_that_names_it_and_says_why(mixed: Path) -> None:
    names, root = list_photos(mixed)
    problems = {}
    for name in names:
        try:
            load_image(resolve_image(root, name), name)
        except UserError as error:
            problems[name] = str(error)
    assert "convert it" in problems["IMG_1.HEIC"] and "no such photo" in problems["gone_a.jpg"]
    assert set(problems) == {"IMG_1.HEIC", *(f"{k}_a.jpg" for k in ("pipe", "socket", "device", "gone", "loop"))}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become someone else")
def test_closed_folders_are_counted_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o755)
    (folder / "deep" / "er").chmod(0)
    (folder / "half").mkdir()
    (folder / "half" / "e.jpg").touch()
    (folder / "half").chmod(0o744)  # its names can be read, its files cannot
    (folder / "closed").mkdir(0)
    monkeypatch.chdir(folder)
    left_out = LeftOut()
    os.seteuid(65534)
    try:
        names, root = list_photos(".", left_out)
        with pytest.raises(UserError, match=r"e\.jpg: cannot be read: Permission denied"):
            load_image(Path(root) / "half/e.jpg")
        with pytest.raises(UserError, match=r"closed: has no photo .*1 folder cannot be read"):
            list_photos("closed")
        with pytest.raises(UserError, match=r"closed/x: cannot be read: Permission denied"):
            list_photos("closed/x")
    finally:
        os.seteuid(0)
    assert names == ["a.JPG", "b.png", "deep/c.webp", "half/e.jpg"]
    note = "2 folders cannot be read, their photos are missing: closed (Permission denied), deep/er (Permission denied)"
    assert note in left_out.notes()


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".jpg", "a\0.jpg"])
def test_a_name_that_no_file_can_have_is_one_line(folder: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        list_photos(folder / name)
    assert "\n" not in str(caught.value)
