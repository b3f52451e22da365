"""What belongs to a source folder: all its files, or an error that names what cannot be opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bbu.errors import RecordError
from data_conversion.source_folder import walk_files


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b/two.xml", "a/one.xml", ".hidden/three.xml", "out/four.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_files_come_by_name_but_for_hidden_ones_and_the_output(source: Path) -> None:
    found = [path.relative_to(source).as_posix() for path in walk_files(source, source / "out")]
    assert found == ["a/one.xml", "b/two.xml"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become someone else")
def test_a_folder_that_cannot_be_opened_is_an_error_that_names_it(source: Path) -> None:
    (source / "b").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(RecordError, match=r"b: folder: cannot be opened: Permission denied"):
            list(walk_files(Path(".")))
    finally:
        os.seteuid(0)
