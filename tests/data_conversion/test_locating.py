"""A photo is found under every name that tools give it, once, and never outside the source."""

from __future__ import annotations

import base64
import unicodedata
from pathlib import Path

import pytest

from data_conversion.locating import BY_SPELLING, BY_STEM, BY_TAIL, PhotoFinder
from data_conversion.source_folder import following_links, is_outside

ACCENT = "é.jpg"  # as one character
PHOTOS = (
    "a.jpg",
    "images/b.jpg",
    "images/Upper.JPG",
    f"images/{unicodedata.normalize('NFD', ACCENT)}",
    "images/two words.jpg",
    "images/50%20.jpg",
    "images/what?.jpg",
    "deep/er/c.jpg",
    "deep/mask/c.png",
    "x/d.jpg",
    "y/d.jpg",
    "y/scan.png",
    "train/e.jpg",
    "val/e.jpg",
    "phone/f.HEIC",
    "phone/g.HEIC",
    "phone/g.jpg",
)


@pytest.fixture
def finder(tmp_path: Path) -> PhotoFinder:
    for name in PHOTOS:
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "secret.jpg").touch()
    return PhotoFinder(tmp_path / "source")


def presigned(address: str) -> str:
    return f"/tasks/7/presign/?fileuri={base64.urlsafe_b64encode(address.encode()).decode().rstrip('=')}"


@pytest.mark.parametrize(
    ("name", "folders", "found", "notes"),
    [
        ("a.jpg", (), "a.jpg", ()),
        ("b.jpg", ("images",), "images/b.jpg", ()),
        ("..\\images\\b.jpg", ("labels",), "images/b.jpg", ()),
        ("d.jpg", ("y",), "y/d.jpg", ()),
        ("50%20.jpg", ("images",), "images/50%20.jpg", ()),
        ("what?.jpg", ("images",), "images/what?.jpg", ()),
        ("two%20words.jpg", ("images",), "images/two words.jpg", ()),
        ("g.HEIC", ("phone",), "phone/g.jpg", (BY_STEM,)),  # converted beside the original
        ("B.JPG", ("images",), "images/b.jpg", (BY_SPELLING,)),
        ("Images/upper.jpg", (), "images/Upper.JPG", (BY_SPELLING,)),
        (ACCENT, ("images",), f"images/{unicodedata.normalize('NFD', ACCENT)}", (BY_SPELLING,)),
        ("b", ("images",), "images/b.jpg", (BY_STEM,)),
        ("b.png", ("images",), "images/b.jpg", (BY_STEM,)),
        ("B.PNG", ("images",), "images/b.jpg", (BY_STEM,)),
        ("c.jpg", ("images",), "deep/er/c.jpg", (BY_TAIL,)),
        ("C.Jpg", ("images",), "deep/er/c.jpg", (BY_TAIL,)),
        ("/home/me/line 3/images/b.jpg", (), "images/b.jpg", (BY_TAIL,)),
        ("C:\\Users\\me\\deep\\er\\c.jpg", (), "deep/er/c.jpg", (BY_TAIL,)),
        ("/content/train/e.jpg", (), "train/e.jpg", (BY_TAIL,)),  # the longest tail
        ("/content/photos/d.jpg", ("y",), "y/d.jpg", (BY_TAIL,)),  # two of that name, one where the tool keeps them
        ("/old/b.webp", (), "images/b.jpg", (BY_TAIL, BY_STEM)),
        ("https://host/x/two%20words.jpg?sig=a/b.jpg#top", (), "images/two words.jpg", (BY_TAIL,)),
        ("s3://bucket/y/d.jpg", (), "y/d.jpg", ()),
        ("file:///C:/photos/y/d.jpg", (), "y/d.jpg", (BY_TAIL,)),
        (presigned("s3://bucket/set/x/d.jpg"), (), "x/d.jpg", (BY_TAIL,)),
        ("/data/local-files/?d=x%5Cd.jpg", (), "x/d.jpg", ()),
        ("../secret/a.jpg", (), "a.jpg", (BY_TAIL,)),
    ],
)
def test_where_a_name_leads(
    finder: PhotoFinder, name: str, folders: tuple[str, ...], found: str, notes: tuple[str, ...]
) -> None:
    assert finder.find(name, *folders) == (found, "", notes)


def test_an_absolute_path_into_the_source_is_a_path_of_the_source(finder: PhotoFinder) -> None:
    assert finder.find(str(finder.root / "x" / "d.jpg")) == ("x/d.jpg", "", ())


def test_another_name_is_tried_when_the_first_leads_nowhere(finder: PhotoFinder) -> None:
    assert finder.find("IMG_2931.jpg", "images", others=["b"]) == ("images/b.jpg", "", (BY_STEM,))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("d.jpg", "'d.jpg' may be any of x/d.jpg, y/d.jpg; write the path from the source folder, or keep one"),
        ("/somewhere/E.JPG", "'/somewhere/E.JPG' may be any of train/e.jpg, val/e.jpg;"),
        ("c", "may be any of deep/er/c.jpg, deep/mask/c.png"),
        ("sub/none.jpg", "no photo at {root}/sub/none.jpg, and none in {root} has that name"),
        ("../none.jpg", "'../none.jpg' leaves the source folder, and no photo in it"),
        ("../secret.jpg", "'../secret.jpg' leaves the source folder"),
        ("/etc/passwd", "'/etc/passwd' leaves the source folder"),
        ("f.HEIC", "phone/f.HEIC is a HEIC photo, which cannot be read; convert it to JPEG beside it"),
        ("f.jpg", "phone/f.HEIC is a HEIC photo"),
        ("\ud83d.jpg", "no photo at"),
        ("a\0.jpg", "no photo at"),
        ("", "no photo at"),
    ],
)
def test_why_there_is_none(finder: PhotoFinder, name: str, why: str) -> None:
    found = finder.find(name)
    assert why.format(root=finder.root) in found.missing
    assert "\n" not in found.missing and found.missing.encode("utf-8")


def test_photos_of_an_ignored_folder_are_no_candidates(finder: PhotoFinder) -> None:
    copy = finder.root / "out" / "photos" / "c.jpg"
    copy.parent.mkdir(parents=True)
    copy.touch()
    assert PhotoFinder(finder.root).find("c.jpg").missing
    assert PhotoFinder(finder.root, ignore=(finder.root / "out").resolve()).find("c.jpg").image == "deep/er/c.jpg"


def test_a_linked_folder_outside_is_searched_only_if_allowed(finder: PhotoFinder, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "far.jpg").touch()
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "disk")
    (finder.root / "far").symlink_to(tmp_path / "disk")
    why = PhotoFinder(finder.root).find("far.jpg").missing
    assert "add --follow-links (data.source.follow_links: true)" in why and why.endswith(": far")
    with following_links(True):
        assert PhotoFinder(finder.root).find("far.jpg") == ("far/far.jpg", "", (BY_TAIL,))
    assert is_outside(finder.root / "far" / "far.jpg", finder.root)
