"""Every photo is read as training reads it: what is wrong with one is a finding, and never ends or stops the doctor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bbu.doctor.photos import look
from tests.damaged_photos import POSTSCRIPT, SIZE, encoded, exif_kinds, mutated, no_files, with_exif


@pytest.mark.parametrize("orientation", [1, 6])
def test_odd_exif_data_costs_no_photo(orientation: int, tmp_path: Path) -> None:
    for number, exif in enumerate(exif_kinds(orientation).values()):
        (tmp_path / f"{number}.jpg").write_bytes(with_exif(exif))
        facts = look(f"{number}.jpg", str(tmp_path))
        assert (facts.problem, {facts.width, facts.height}) == ("", set(SIZE))


def test_what_is_no_photo_is_a_finding_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "eps.jpg").write_bytes(POSTSCRIPT)
    (tmp_path / "avif.jpg").write_bytes(encoded("AVIF")[:200])
    paths = [tmp_path / "eps.jpg", tmp_path / "avif.jpg", *no_files(tmp_path, "a.jpg").values()]
    found = {path.name: look(path.name, str(tmp_path)) for path in paths}
    assert {name: facts.problem for name, facts in found.items()} == {
        "eps.jpg": "photo_unreadable",
        "avif.jpg": "photo_unreadable",
        "pipe_a.jpg": "photo_unreadable",
        "socket_a.jpg": "photo_unreadable",
        "folder_a.jpg": "photo_unreadable",
        "device_a.jpg": "photo_outside_root",
        "gone_a.jpg": "photo_missing",
        "loop_a.jpg": "photo_outside_root",
    }
    assert all(facts.detail for facts in found.values())


def test_damaged_photos_are_findings(tmp_path: Path) -> None:
    problems = set()
    for data in mutated(with_exif(exif_kinds(6)["maker note"]), np.random.default_rng(0), 60):
        (tmp_path / "a.jpg").write_bytes(data)
        problems.add(look("a.jpg", str(tmp_path)).problem)
    assert problems == {"", "photo_unreadable"}
