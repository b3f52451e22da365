"""``python -m data_conversion``: arguments, what is printed, exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from data_conversion.__main__ import main


def run(source: Any, *arguments: str) -> int:
    return main(["bbu_json", str(source.root), str(source.out), *arguments])


def test_it_prints_what_was_dropped_and_returns_1_for_labels_outside_the_taxonomy(
    source: Any, bbu_object: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source.bbu("a", [bbu_object("标签"), bbu_object("猫", (1, 1, 9, 9))])
    assert run(source, "--taxonomy", "bbu", "--val-fraction", "0") == 1
    printed = capsys.readouterr().out
    assert "objects  2 read, 1 written, 1 dropped" in printed
    assert "dropped  1 x 猫: outside_hierarchy" in printed


def test_a_taxonomy_may_be_a_file(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object("标签")])
    words = source.write("words.yaml", "tokens: {标签: sticker}")
    assert run(source, "--taxonomy", str(words)) == 0
    assert source.objects()[0]["desc"] == "sticker"


def test_splits_and_teachers(source: Any, bbu_object: Any) -> None:
    for name in ("train/a", "val/b", "test/c", "train/d"):
        source.bbu(name, [bbu_object()])
    assert run(source, "--splits", "train=train+val,test=test", "--max-teachers", "1", "--seed", "3") == 0
    assert [len(source.rows(name)) for name in ("train", "val", "test", "teacher")] == [2, 0, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--taxonomy", "bub"), "neither a file nor one of the shipped taxonomies: bbu"),
        (("--splits", "train"), "write each target once"),
        (("--max-teachers", "9"), "leaves no photo to train on"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    source: Any, bbu_object: Any, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
) -> None:
    source.bbu("a", [bbu_object()])
    assert run(source, *arguments) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1


def test_it_starts_without_the_training_stack() -> None:
    heavy = ("torch", "transformers", "scipy", "pandas")
    code = f"import sys, data_conversion.__main__; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
