"""The command line: exit status 0, 1 or 2, results on stdout, and a user's mistake as one line on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bbu.cli import build_parser, main, one_line
from bbu.errors import ImageError, RecordError, UserError
from bbu.jsonl import write_jsonl
from bbu.records import Row


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text("training: {max_steps: 5}\n", encoding="utf-8")
    return path


def bbu(*arguments: str, cwd: Path, project: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    path = os.pathsep.join([str(project / "src"), str(project)])
    return subprocess.run(
        [sys.executable, "-m", "bbu.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
    )


# ---------------------------------------------------------------- statuses


def test_check_says_that_a_config_is_fine_and_where_it_writes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(config), "training.max_steps=7"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{config}: fine; writes to outputs/small\n" and printed.err == ""
    assert os.listdir(config.parent) == ["small.yaml"]  # it only reads


def test_a_mistake_is_status_2_and_one_line_on_stderr(config: Path, project: Path) -> None:
    done = bbu("check", str(config), "training.max_step=7", cwd=config.parent, project=project)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "bbu: error: override 'training.max_step=7': unknown key training.max_step; did you mean training.max_steps?"
    ]


def test_a_mistake_of_ours_is_not_hidden(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> int:
        raise KeyError("a bug")

    monkeypatch.setattr("bbu.cli.runs._check", broken)
    with pytest.raises(KeyError):
        main(["check", str(config)])


def test_an_interruption_is_status_130_and_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("bbu.cli.runs._check", interrupted)
    assert main(["check", str(config)]) == 130
    assert capsys.readouterr().err == "bbu: stopped\n"


def test_every_command_has_help_and_work(capsys: pytest.CaptureFixture[str]) -> None:
    (commands,) = (action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    assert len(commands) >= 14
    for command, parser in commands.items():
        assert callable(parser.get_default("action"))
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0 and f"bbu {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in commands)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "COMMAND"),
        (["trainn"], "trainn"),
        (["check"], "config"),
        (["predict", "m"], "photos"),
        (["predict", "m", "p", "o", "--max-detections", "many"], "--max-detections"),
        (["predict", "m", "p", "o", "--precision", "fp8"], "--precision"),
        (["evaluate", "t", "p", "--threshold", "high"], "--threshold"),
        (["evaluate", "t", "p", "--outputt", "x"], "--outputt"),
    ],
)
def test_wrong_arguments_are_status_2_and_named(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert word in line


def test_overrides_may_hold_spaces_braces_and_dashes() -> None:
    arguments = build_parser().parse_args(["run", "c.yaml", "data.source.photos={train: 2, val: 1}", "a.b=-1"])
    assert arguments.overrides == ["data.source.photos={train: 2, val: 1}", "a.b=-1"]


# ---------------------------------------------------------------- one line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("plain"), "plain"),
        (UserError("two\n  lines\n\n"), "two lines"),
        (RecordError("a.jsonl:3", "width", "is missing"), "a.jsonl:3: width: is missing"),
        (
            ImageError(
                "Caught ImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                '  File "x.py", line 1, in y\nbbu.errors.ImageError: /p/a.jpg: is damaged: cut off\n'
            ),
            "/p/a.jpg: is damaged: cut off",
        ),
    ],
)
def test_an_error_is_shown_as_one_line(error: UserError, line: str) -> None:
    assert one_line(error) == line


# ---------------------------------------------------------------- prepare and evaluate


def test_prepare_says_where_rows_and_photos_are(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "train.jsonl", [Row(("a.jpg",), (), 3, 4)])
    assert main(["prepare", str(config), f"data.source.path={tmp_path}", "data.image_root=/photos"]) == 0
    assert capsys.readouterr().out == f"rows in {tmp_path}, photos under /photos\n"


def test_evaluate_prints_a_table_and_writes_what_it_is_asked_for(
    make_row: Callable[..., Row], photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = make_row("a.png", 2)
    truth, found = photo_folder / "truth.jsonl", photo_folder / "found.jsonl"
    write_jsonl(truth, [row])
    items = [{"bbox_2d": list(item.points), "desc": item.desc, "score": 0.9} for item in row.objects]
    write_jsonl(found, [{"images": ["a.png"], "width": row.width, "height": row.height, "predictions": items}])
    metrics, pictures = photo_folder / "metrics.json", photo_folder / "pictures"
    arguments = ["evaluate", str(truth), str(found), "--output", str(metrics), "--pictures", str(pictures)]
    assert main(arguments) == 0
    assert "AP50" in capsys.readouterr().out
    assert json.loads(metrics.read_text(encoding="utf-8"))["AP50"] == pytest.approx(1.0)
    assert len(list(pictures.iterdir())) == 1


def test_the_command_works_from_any_folder(tmp_path: Path, project: Path) -> None:
    done = bbu("check", str(project / "configs" / "demo.yaml"), cwd=tmp_path, project=project)
    assert (done.returncode, done.stderr) == (0, "")
