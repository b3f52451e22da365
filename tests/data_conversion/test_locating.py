"""A photo is found where tools put it, and never outside the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_conversion.locating import PhotoFinder


@pytest.fixture
def finder(tmp_path: Path) -> PhotoFinder:
    for name in ("a.jpg", "images/b.jpg", "deep/er/c.jpg", "x/d.jpg", "y/d.jpg"):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "secret.jpg").touch()
    return PhotoFinder(tmp_path / "source")


@pytest.mark.parametrize(
    ("name", "folders", "found"),
    [
        ("a.jpg", (), "a.jpg"),
        ("b.jpg", ("images",), "images/b.jpg"),
        ("..\\images\\b.jpg", ("labels",), "images/b.jpg"),
        ("c.jpg", ("images",), "deep/er/c.jpg"),
        ("d.jpg", ("y",), "y/d.jpg"),
        ("d.jpg", (), "d.jpg"),  # two of that name: no guess
        ("none.jpg", ("images",), "none.jpg"),
        ("../secret.jpg", (), "../secret.jpg"),  # refused when it is opened
    ],
)
def test_where_a_name_leads(finder: PhotoFinder, name: str, folders: tuple[str, ...], found: str) -> None:
    assert finder.find(name, *folders) == found
