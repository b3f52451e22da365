"""Large sources: several processes change nothing, a stopped conversion goes on, two do not mix."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bbu.errors import UserError
from data_conversion import parallel, photo_task, pipeline
from data_conversion.journal import Journal

PROJECT = Path(__file__).resolve().parents[2]


def fill(source: Any, bbu_object: Any, photos: int) -> None:
    for index in range(photos):
        source.bbu(
            f"p{index:03}", [bbu_object(f"标签/{'abc'[index % 3]}", (10 * i, 5, 10 * i + 8, 15)) for i in range(3)]
        )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def square(number: int) -> int:
    return number * number


def test_results_come_in_order_from_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "INLINE", 3)
    monkeypatch.setattr(parallel, "CHUNK", 2)
    expected = [number * number for number in range(20)]
    for workers in (1, 2):
        assert list(parallel.map_in_order(square, range(20), workers)) == expected


def test_items_are_drawn_only_as_results_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "INLINE", 1)
    monkeypatch.setattr(parallel, "CHUNK", 2)
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            drawn.append(number)
            yield number

    results = parallel.map_in_order(square, items(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    results.close()
    assert len(drawn) < 20


def end(number: int) -> int:
    os._exit(1)


def test_a_process_that_ends_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "INLINE", 0)
    with pytest.raises(UserError, match="a worker process died"):
        list(parallel.map_in_order(end, range(9), 2))


def test_two_processes_write_the_same_bytes_as_one(
    source: Any, bbu_object: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "INLINE", 5)
    fill(source, bbu_object, 60)
    source.convert(workers=1, val_fraction=0.2, max_teachers=3)
    alone = contents(source.out)
    source.out = source.out.with_name("two")
    source.convert(workers=2, val_fraction=0.2, max_teachers=3)
    assert contents(source.out) == alone


def stop_after(monkeypatch: pytest.MonkeyPatch, photos: int) -> list[str]:
    """Ctrl-C when so many photos have been opened; the list fills with those that are opened."""
    opened: list[str] = []
    real = photo_task.read_photo

    def read(path: Path, name: str = "") -> Any:
        if len(opened) == photos:
            raise KeyboardInterrupt
        opened.append(path.name)
        return real(path, name)

    monkeypatch.setattr(photo_task, "read_photo", read)
    return opened


def test_a_stopped_conversion_goes_on_and_ends_with_the_same_bytes(
    source: Any, bbu_object: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, bbu_object, 30)
    source.convert(workers=1)
    never_stopped = contents(source.out)
    source.out = source.out.with_name("again")
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        with pytest.raises(KeyboardInterrupt):
            source.convert(workers=1)
    assert not source.out.exists(), "nothing appears before it is whole"
    opened = stop_after(monkeypatch, 10**6)
    source.convert(workers=1)
    assert opened == [f"p{index:03}.jpg" for index in range(20, 30)]
    assert contents(source.out) == never_stopped
    assert not source.out.with_name(".again.partial").exists()


def test_what_changed_since_it_was_stopped_is_read_again(
    source: Any, bbu_object: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, bbu_object, 12)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            source.convert(workers=1)
    source.bbu("p002", [bbu_object("标签/新", (1, 1, 30, 30))], text="another photo")
    (source.root / "p011.json").unlink()
    (source.root / "p011.jpg").unlink()
    report = source.convert(workers=1)
    assert report.photos_read == report.photos_written == 11
    assert "标签/新" in {item.desc for row in source.rows() for item in row.objects}


def test_other_arguments_start_anew(source: Any, bbu_object: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(source, bbu_object, 12)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            source.convert(workers=1)
    opened = stop_after(monkeypatch, 10**6)
    source.convert(workers=1, images="copy")
    assert len(opened) == 12


def test_a_killed_process_loses_little_and_nothing_is_torn(source: Any, bbu_object: Any, tmp_path: Path) -> None:
    fill(source, bbu_object, 40)
    source.convert()
    never_stopped = contents(source.out)
    script = (
        "import sys, time\nfrom data_conversion import photo_task, journal, pipeline\n"
        "journal.SECONDS_BETWEEN_COMMITS = 0.0\nreal = photo_task.read_photo\ncount = 0\n"
        "def slow(*a):\n    global count\n    count += 1\n    if count == 25:\n"
        "        print('here', flush=True); time.sleep(60)\n"
        "    return real(*a)\nphoto_task.read_photo = slow\n"
        f"pipeline.convert('bbu_json', {str(source.root)!r}, {str(tmp_path / 'killed')!r}, taxonomy=None, "
        "val_fraction=0.0, workers=1)\n"
    )
    environment = {"PYTHONPATH": f"{PROJECT / 'src'}:{PROJECT}", "PATH": "/usr/bin:/bin"}
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None and child.stdout.readline() == b"here\n"
    child.kill()
    child.wait()
    assert not (tmp_path / "killed").exists()
    source.out = tmp_path / "killed"
    started = time.monotonic()
    source.convert()
    assert time.monotonic() - started < 30
    assert contents(source.out) == never_stopped


def test_two_conversions_into_one_folder_do_not_mix(source: Any, bbu_object: Any) -> None:
    fill(source, bbu_object, 3)
    work = source.out.with_name(".out.partial")
    journal = Journal(work, {})
    with pytest.raises(UserError, match="is another conversion using it"):
        source.convert()
    journal.discard()
    assert source.convert().photos_written == 3


def test_a_broken_journal_is_replaced(source: Any, bbu_object: Any) -> None:
    fill(source, bbu_object, 3)
    work = source.out.with_name(".out.partial")
    work.mkdir()
    (work / "journal.sqlite").write_bytes(b"")
    assert source.convert().photos_written == 3


def test_memory_holds_a_few_photos_whatever_the_source(source: Any) -> None:
    """The pipeline keeps no list that grows by a row a photo: rows live in the journal."""
    from data_conversion.base import RawObject, SourceImage
    from data_conversion.formats import FORMATS, Format

    def read(root: Path, options: Any) -> Iterator[SourceImage]:
        for index in range(300):
            objects = tuple(RawObject(f"object {i}", "bbox_2d", (i, i, i + 9, i + 9), "") for i in range(40))
            yield SourceImage(f"{index:05}.jpg", "all.json", objects, size=(80, 60))

    import tracemalloc

    FORMATS["endless"] = Format(read, "for this test")
    try:
        tracemalloc.start()
        pipeline.convert("endless", source.root, source.out, taxonomy=None, images="none", workers=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del FORMATS["endless"]
    # 300 rows of 40 objects are 600 kB of text and ten times that as objects.
    assert peak < 2e6
    assert (source.out / "all_samples.jsonl").stat().st_size > 5e5
