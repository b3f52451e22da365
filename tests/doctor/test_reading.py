"""A broken line is an example and not the end; what is outside its photo is taken out and the rest is kept."""

from __future__ import annotations

import json
from pathlib import Path

from bbu.doctor.reading import read_folder
from tests.doctor.small_set import row


def test_every_kind_of_broken_line_is_passed_over(tmp_path: Path) -> None:
    good = json.dumps(row("a.png"))
    lines = [
        b"{",
        b'{"images": NaN}',
        b"\xff\xfe",
        b"3",
        b"[]",
        b'{"teachers": 3}',
        b"",
        good.encode(),
        b'{"a":1,"a":2}',
    ]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines))
    rows = read_folder(tmp_path)
    assert [sample.where for sample in rows.samples] == ["train.jsonl:8"]
    assert [example.where for example in rows.bad] == [f"train.jsonl:{n}" for n in (1, 2, 3, 4, 5, 6, 9)]
    assert all(example.detail for example in rows.bad)


def test_a_row_with_an_object_outside_keeps_the_others(tmp_path: Path) -> None:
    broken = row("a.png")
    broken["objects"][0] = {"desc": "wire", "line": [0, 0, 50, -3]}
    broken["objects"].append({"desc": "edge", "bbox_2d": [0, 0, 168.5, 140]})  # half a pixel of slack
    (tmp_path / "val.jsonl").write_text(json.dumps(broken), encoding="utf-8")
    rows = read_folder(tmp_path)
    assert [example.object for example in rows.outside] == ["wire"] and rows.bad == []
    assert [item.desc for item in rows.samples[0].row.objects] == ["label/legible", "edge"]


def test_few_shot_samples_are_for_train_only(tmp_path: Path) -> None:
    sample = json.dumps({"teachers": [row("t.png")], "student": row("s.png"), "context": [row("c.png")]})
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(sample, encoding="utf-8")
    rows = read_folder(tmp_path)
    assert [shown.images[0] for shown in rows.samples[0].shown] == ["t.png", "c.png", "s.png"]
    assert [example.where for example in rows.bad] == ["test.jsonl:1"]
