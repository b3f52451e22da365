"""All benchmarks in a row: a missed aim is said, a failure is one, and the file appears whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.run_all import BENCHMARKS, Aim, Benchmark, main, run_all

PROJECT = Path(__file__).resolve().parents[2]
GOOD = 'print("a table")\nprint(\'{"benchmark": "good", "speedup": 3, "peak": 0.5}\')'


@pytest.fixture
def benchmark_of(tmp_path: Path) -> Any:
    """benchmark_of(name, code, aims…): a script in a folder of its own."""

    def make(name: str, code: str, *aims: Aim, **options: Any) -> Benchmark:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        return Benchmark(name, aims, folder=tmp_path, **options)

    return make


def written(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_every_figure_is_told_with_its_aim_and_a_missed_one_is_no_failure(
    benchmark_of: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    aims = (Aim("speedup", 4, at_least=True), Aim("peak", 0.5))
    assert run_all([benchmark_of("good", GOOD, *aims, shown=("speedup",))], tmp_path / "out") == 0
    out = capfd.readouterr().out
    assert "a table\n" in out and '"speedup"' not in out, "tables as they come, without the line for machines"
    rows = [line.split() for line in out.splitlines() if line.startswith("good ")]
    assert rows == [
        ["good", "speedup", "3", "≥", "4", "missed"],
        ["good", "peak", "0.5", "≤", "0.5", "met"],
        ["good", "speedup", "3"],
    ]
    found = written(tmp_path / "out")
    assert set(found["machine"]) >= {"cpu", "cores", "torch", "transformers"}
    (entry,) = found["benchmarks"]
    assert entry["figures"] == {"benchmark": "good", "speedup": 3, "peak": 0.5}
    assert [entry["aims"][key]["met"] for key in ("speedup", "peak")] == [False, True]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('half a table')\nraise SystemExit(3)", "exit status 3"),
        ("print('no figures')", "its last line is no JSON object: 'no figures'"),
        ("print('[1]')", "its last line is no JSON object"),
        ("print('{\"speedup\": NaN}')", "its last line is no JSON object"),
        ("print('{\"other\": 1}')", "its last line has no number for speedup"),
        ("", "its last line is no JSON object: ''"),
    ],
)
def test_a_benchmark_that_fails_is_told_and_the_others_go_on(
    code: str, why: str, benchmark_of: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = benchmark_of("bad", code, Aim("speedup", 1))
    assert run_all([bad, benchmark_of("good", GOOD, Aim("speedup", 5))], tmp_path / "out") == 1
    out = capfd.readouterr().out
    assert f"FAILED: {why}" in out and "met" in out
    failed, good = written(tmp_path / "out")["benchmarks"]
    assert failed["failed"].startswith(why) and failed["aims"] == {} and good["failed"] == ""
    assert ("half a table" in out) == ("half" in code), "what it said before it failed"


def test_what_cannot_run_here_is_skipped_with_the_reason(
    benchmark_of: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lacking = benchmark_of("java", "raise SystemExit(1)", Aim("seconds", 1), lacking=lambda: "there is no Java")
    assert run_all([lacking], tmp_path / "out") == 0
    assert "skipped: there is no Java" in capfd.readouterr().out
    assert written(tmp_path / "out")["benchmarks"][0]["skipped"] == "there is no Java"


def test_the_list_names_scripts_that_are_there_once_each() -> None:
    names = [benchmark.name for benchmark in BENCHMARKS]
    assert len(set(names)) == len(names)
    scripts = {path.stem for path in (PROJECT / "benchmarks").glob("*.py")}
    assert set(names) <= scripts
    left_out = {name for name in scripts - set(names) if not name.startswith(("convergence", "gpu"))}
    reckoned = {"memory_table"}  # measures nothing
    assert left_out == {"harness", "run_all", *reckoned}, "add a new benchmark to BENCHMARKS in benchmarks/run_all.py"


def test_some_can_be_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_all.py", "startup", "--quick", "--output", str(tmp_path)])
    assert main() == 0
    assert [entry["benchmark"] for entry in written(tmp_path)["benchmarks"]] == ["startup"]
    monkeypatch.setattr(sys, "argv", ["run_all.py", "startupp"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and "unknown benchmark startupp" in capfd.readouterr().err
