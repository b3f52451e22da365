"""The script of the GPU measurement on a CPU: its parts run, fail alone and end in time; docs stay as they are."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.jobs import compiled_once, environment

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "benchmarks" / "README.md"
sys.path.append(str(PROJECT / "benchmarks"))  # whose scripts import one another
gpu, gpu_arms, machine, small, steps, table = (
    importlib.import_module(f"gpu{part}") for part in ("", "_arms", "_machine", "_small", "_steps", "_table")
)
MODES = {"kept", "selective", "recomputed"}
PLAIN = ("padded", "sorted", "unpadded", "packed", "narrow", "objective")  # arms that run on any machine
SCRIPT = ["bash", str(PROJECT / "benchmarks" / "gpu.sh"), "--tiny", "--device", "cpu"]


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    return machine.Setting(torch.device("cpu"), True, False, time.monotonic() + 300, tmp_path)


# ---------------------------------------------------------------- the whole script


def run(output: Path, *words: str, **variables: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """What the script writes, and how it ended."""
    variables = {"BBU_PYTHON": sys.executable, "PYTHONPATH": "", **variables}
    done = subprocess.run(
        [*SCRIPT, *words, "--output", str(output)], capture_output=True, text=True, env=environment(**variables)
    )
    (written,) = output.glob("*.json")
    return json.loads(written.read_text(encoding="utf-8")), done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run of all parts, and its folder; docs stay as they are."""
    output, before = tmp_path_factory.mktemp("gpu"), {path: path.read_bytes() for path in PAGE.parent.iterdir()}
    names = [name for name, part in gpu.PARTS.items() if part.when != "asked" or importable("deepspeed")]
    found, done = run(output, "--parts", ",".join(names), **compiled_once())
    assert done.returncode == 0, done.stderr[-3000:]
    assert {name: part["ended"] for name, part in found["parts"].items()} == dict.fromkeys(names, "ok")
    assert {path: path.read_bytes() for path in PAGE.parent.iterdir()} == before
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["all_parts_ended"] and last["failed_arms"] == []
    return found, output


def importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def test_the_table_beside_the_json_has_its_row(whole: Any) -> None:
    (written,) = whole[1].glob("*.json")
    page = (whole[1] / "README.md").read_text(encoding="utf-8")
    assert f"]({written.name}) (tiny) | cpu |" in page and table.EMPTY_ROW not in page


def test_the_facts_name_versions_and_rates(whole: Any) -> None:
    found = whole[0]["parts"]["facts"]
    assert found["gpu"] == "cpu" and found["torch"] == torch.__version__ and "sdpa" in found["backends"]
    assert found["matmul_flops"] > 0 and found["copy_bytes"] > 0


def test_no_bleed_holds_in_bfloat16_and_its_checks_see_bleeding(whole: Any) -> None:
    found = whole[0]["parts"]["no_bleed"]
    assert found["passed"] and found["parity"]["passed"] and found["parity"]["ran"] > 0
    sdpa = found["sdpa qwen2_5_vl"]
    assert sdpa["gradient_across_samples"] == 0 < sdpa["without_boundaries"]["gradient_across_samples"]
    assert sdpa["without_boundaries"]["error"]["lm_logits"] > 10 * sdpa["error_packed"]["lm_logits"]


def test_the_arms_take_steps_on_the_same_samples_in_every_mode(whole: Any) -> None:
    found = whole[0]["parts"]["step"]
    assert found["packed_equals_padded"] and len({found[mode]["tokens"] for mode in MODES}) == 1
    for mode in MODES:
        for arm, figures in found[mode]["arms"].items():
            assert figures.get("seconds", 0) > 0 or figures["skipped"], (mode, arm)
        assert found[mode]["speedup_vs_padded"] > 0 and found[mode]["detection_share"] < 1
    timed = {arm for mode in MODES for arm, figures in found[mode]["arms"].items() if "seconds" in figures}
    assert {*PLAIN, "compiled", "compiled_narrow"} <= timed
    assert found["recomputed"]["best_stock"] in gpu_arms.STOCK and found["graphs"] > 0


def test_the_step_without_a_gpu_waits_for_none(whole: Any) -> None:
    found = whole[0]["parts"]["syncs"]
    assert {found[mode]["a_step"] for mode in MODES} == {0}


def test_the_largest_pack_is_searched_in_every_mode(whole: Any) -> None:
    found = whole[0]["parts"]["largest_pack"]
    assert all(found[mode]["samples"] == 4 and found[mode]["tokens"] > 4 for mode in MODES)


def test_the_timeline_is_a_trace_of_one_step(whole: Any) -> None:
    from bbu.monitoring.trace import read_events

    found = whole[0]["parts"]["timeline"]
    labels = {event.name for event in read_events(whole[1] / found["trace"])["user_annotation"]}
    assert {"bbu/forward", "bbu/backward", "bbu/optimizer"} <= labels
    assert found["step_us"] > 0 and found["gaps"] == 0  # no kernels, no gaps between them


def test_a_small_model_is_profiled_and_trained_on_drawn_photos_where_there_are_no_others(whole: Any) -> None:
    profile, train = (whole[0]["parts"][name] for name in ("profile", "train"))
    assert profile["operators"] > 1000 and profile["kernels"] == 0 and profile["idle_share"] is None
    assert train["steps"] == 2 and train["steps_a_second"] > 0 and 0 <= train["AP50"] <= 1
    assert train["config"] == profile["config"] == "configs/demo.yaml" and train["instead_because"] == "tiny"
    assert whole[0]["headline"]["bccd_steps_a_second"] is None


def test_deepspeed_goes_on_from_its_checkpoint(whole: Any) -> None:
    if "deepspeed" not in whole[0]["parts"]:
        pytest.skip("deepspeed is not installed")
    found = whole[0]["parts"]["deepspeed"]
    assert found["resumed"] and found["finite"] and found["zero_files"] and found["checkpoint_bytes"] > 1e6


def wheel(path: Path, content: str) -> None:
    """A wheel that holds sitecustomize.py, which Python imports when it starts."""
    with zipfile.ZipFile(path / "probe-1.0-py3-none-any.whl", "w") as file:
        file.writestr("sitecustomize.py", content)
        file.writestr("probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
        file.writestr("probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("probe-1.0.dist-info/RECORD", "")


def test_a_quick_run_has_fewer_parts_and_uses_the_wheels_that_were_brought(tmp_path: Path) -> None:
    pytest.importorskip("pip")
    (wheels := tmp_path / "wheels").mkdir()
    wheel(wheels, f"open({str(tmp_path / 'used')!r}, 'w').close()")
    found, done = run(tmp_path / "out", "--quick", BBU_WHEELS=str(wheels))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "used").exists(), "the wheels that were brought are not used"
    assert list(found["parts"]) == ["facts", "no_bleed", "step", "profile", "train"]
    assert found["quick"] and found["headline"]["all_parts_ended"] and found["headline"]["failed_arms"] == []
    timed = {arm for arm, figures in found["parts"]["step"]["selective"]["arms"].items() if "seconds" in figures}
    assert set(PLAIN) <= timed
    assert "(tiny) (quick) | cpu |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_kill_leaves_what_was_found_by_then(tmp_path: Path) -> None:
    command = [*SCRIPT, "--parts", "no_bleed", "--output", str(tmp_path)]
    variables = environment(BBU_PYTHON=sys.executable, PYTHONPATH="")
    found: dict[str, Any] = {}
    with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, start_new_session=True) as script:
        try:
            until = time.monotonic() + 60
            while "no_bleed" not in found.get("parts", {}) and time.monotonic() < until:
                time.sleep(0.02)
                for path in tmp_path.glob("*.json"):
                    found = json.loads(path.read_text(encoding="utf-8"))  # whole at any time
        finally:
            os.killpg(script.pid, signal.SIGKILL)
    (path,) = tmp_path.glob("*.json")
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert parts["facts"]["ended"] == "ok" and parts["facts"]["matmul_flops"] > 0
    assert parts["no_bleed"]["ended"] == "running"


def test_when_the_time_is_over_a_part_that_hangs_is_ended_with_all_that_was_found(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(PROJECT / "benchmarks")!r})
import gpu, gpu_steps  # with torch, so that this takes none of the seconds
def hangs(setting, findings):
    findings.add(first=1)
    time.sleep(600)
gpu_steps.step = hangs
sys.argv = ["gpu.py", "--tiny", "--device", "cpu", "--parts", "step,syncs", "--seconds", "6"]
sys.argv += ["--output", {str(tmp_path)!r}]
gpu.main()
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and time.monotonic() - started < 60
    (path,) = tmp_path.glob("*.json")
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert parts["step"]["first"] == 1 and parts["step"]["ended"] == "stopped: no time left"
    assert parts["syncs"]["ended"] == gpu.NOT_REACHED and parts["facts"]["ended"] == "ok"
    assert json.loads(done.stdout.splitlines()[-1])["all_parts_ended"] is False
    assert f"]({path.name})" in (tmp_path / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- parts that fail


def results(folder: Path) -> Any:
    return gpu.Results(SimpleNamespace(output=str(folder), tiny=True, quick=False), "cpu")


def test_a_part_that_fails_keeps_what_it_found_and_the_others_go_on(
    setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(setting: Any, findings: Any) -> None:
        setting.bench = "what the part had made"
        findings.add(first=1, bad=float("nan"))
        raise ValueError("too wide\nin the middle")

    monkeypatch.setattr(steps, "step", breaks)
    found = results(tmp_path)
    gpu.run_parts(["step", "facts"], setting, found)
    parts = json.loads(found.path.read_text(encoding="utf-8"))["parts"]
    assert (parts["step"]["ended"], parts["step"]["first"], parts["step"]["bad"]) == ("failed", 1, "nan")
    assert parts["step"]["error"] == "ValueError: too wide" and setting.bench is None
    assert parts["facts"]["ended"] == "ok"
    found.finish()
    assert "| not step |" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_parts_without_time_are_named(setting: Any, tmp_path: Path) -> None:
    setting.stop, found = time.monotonic() - 1, results(tmp_path)
    gpu.run_parts(["step"], setting, found)
    assert json.loads(found.path.read_text(encoding="utf-8"))["parts"] == {"step": {"ended": gpu.NOT_REACHED}}


def test_figures_are_on_the_disk_as_they_come(tmp_path: Path) -> None:
    found, arms = results(tmp_path), {"packed": 1}
    found.parts["step"] = {"ended": "running"}
    findings = machine.Findings(found.parts["step"], found.lock, found.write)
    findings.add(arms=arms)
    arms["objective"] = 2  # not added yet
    assert json.loads(found.path.read_text(encoding="utf-8"))["parts"]["step"]["arms"] == {"packed": 1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cpu"], "only with --tiny"),
        (["--tiny"], "give --output FOLDER"),
        (["--parts", "stpe"], "stpe is none of facts"),
    ],
)
def test_wrong_options_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parse(words)
    assert said in capsys.readouterr().err


def test_time_and_parts_depend_on_quick() -> None:
    full, quick = gpu.parse([]), gpu.parse(["--quick"])
    assert (full.seconds, quick.seconds) == (300, 120)
    assert set(quick.parts) < set(full.parts) == set(gpu.PARTS) - {"deepspeed"}
    assert gpu.parse(["--parts", "deepspeed"]).parts == ["facts", "deepspeed"]


def test_a_small_job_is_of_real_photos_where_they_are(
    setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.tiny = False
    monkeypatch.setattr(small, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(small, "load_config", lambda path, overrides: (path.name, overrides))
    monkeypatch.setenv("BBU_SHARED", str(tmp_path))
    (name, _), about = small.small_job(setting, "out")
    assert name == "demo.yaml" and "are not here" in about["instead_because"]
    (tmp_path / small.PHOTOS).mkdir(parents=True)
    (name, overrides), about = small.small_job(setting, "out")
    assert name == "bccd.yaml" and f"data.source.path={tmp_path / small.PHOTOS}" in overrides
    assert about["config"] == table.PLAIN_CONFIG


def test_a_training_without_time_is_left_out(setting: Any, tmp_path: Path) -> None:
    setting.stop, found = time.monotonic() + 20, dict[str, Any]()
    small.train(setting, machine.Findings(found, threading.RLock(), lambda: None))
    assert "are too few" in found["skipped"]


def test_the_clock_reports_while_a_training_runs_and_ends_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(small, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    seen: list[int] = []
    clock, control = small.Clock(8, lambda clock: seen.append(len(clock.ends))), SimpleNamespace()
    while not hasattr(control, "should_training_stop"):
        clock.on_step_end(None, None, control)
    assert seen == [6] and len(clock.ends) == 10
    assert clock.steps_a_second(0.1) == 1.0 and small.Clock().steps_a_second(0.1) is None
