"""The GPU measurement tried on a CPU: every part runs, fails alone, finds what it looks for; docs stay as is."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "benchmarks" / "README.md"
sys.path.append(str(PROJECT / "benchmarks"))  # whose scripts import one another
gpu, machine, model, no_bleed, steps, syncs, table = (
    importlib.import_module(f"gpu{part}")
    for part in ("", "_machine", "_model", "_no_bleed", "_steps", "_syncs", "_table")
)
MODES = {"kept", "selective", "recomputed"}
TINY = ["--tiny", "--device", "cpu"]


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    return machine.Setting.create("cpu", True, time.monotonic() + 300, tmp_path)


@pytest.fixture(scope="module")
def bench() -> Any:
    return model.Bench(machine.Setting.create("cpu", True, time.monotonic() + 300, Path()), real=False)


# ---------------------------------------------------------------- parts


def run(name: str, setting: Any) -> dict[str, Any]:
    """What a part writes, read back from its file."""
    findings = machine.Findings(setting.folder / "part.json")
    part = gpu.PARTS[name]
    getattr(importlib.import_module(part.module), part.function)(setting, findings)
    return dict(json.loads(findings.path.read_text(encoding="utf-8")))


def test_the_facts_name_versions_and_rates(setting: Any) -> None:
    found = run("facts", setting)
    assert found["gpu"] == "cpu" and found["torch"] == torch.__version__ and "sdpa" in found["backends"]
    assert found["matmul_flops"] > 0 and found["copy_bytes"] > 0


def test_no_bleed_holds_in_bfloat16_and_its_checks_see_bleeding(setting: Any) -> None:
    found = run("no_bleed", setting)
    assert found["passed"] and found["parity"]["passed"] and found["parity"]["ran"] > 0
    sdpa = found["sdpa qwen2_5_vl"]
    assert sdpa["gradient_across_samples"] == 0 < sdpa["without_boundaries"]["gradient_across_samples"]
    assert sdpa["without_boundaries"]["error"]["lm_logits"] > 10 * sdpa["error_packed"]["lm_logits"]


def test_all_arms_take_steps_in_every_mode(setting: Any) -> None:
    found = run("step", setting)
    assert found["packed_equals_padded"]
    for mode in MODES:
        assert all(found[mode]["arms"][arm]["seconds"] > 0 for arm in ("padded", "packed", "objective"))
        assert found[mode]["speedup_vs_padded"] > 0 and found[mode]["detection_share"] < 1


def test_the_published_comparison_is_of_the_same_four_samples(setting: Any) -> None:
    found = run("published", setting)
    assert {found[mode]["samples"] for mode in MODES} == {4} and len({found[mode]["tokens"] for mode in MODES}) == 1


def test_the_step_without_a_gpu_waits_for_none(setting: Any) -> None:
    found = run("syncs", setting)
    assert {found[mode]["a_step"] for mode in MODES} == {0}


def test_the_largest_pack_is_searched_in_every_mode(setting: Any) -> None:
    found = run("largest_pack", setting)
    assert all(found[mode]["samples"] == 4 and found[mode]["tokens"] > 4 for mode in MODES)


def test_the_timeline_is_a_trace_of_one_step(setting: Any) -> None:
    found = run("timeline", setting)
    trace = setting.folder / found["trace"]
    trace_names = {event.name for event in _annotations(trace)}
    assert {"bbu/forward", "bbu/backward", "bbu/optimizer"} <= trace_names
    assert found["step_us"] > 0 and found["gaps"] == 0  # no kernels, no gaps between them


def _annotations(trace: Path) -> list[Any]:
    from bbu.monitoring.trace import read_events

    return read_events(trace)["user_annotation"]


# ---------------------------------------------------------------- the whole script


def wheel(path: Path, content: str) -> None:
    """A wheel that holds sitecustomize.py, which Python imports when it starts."""
    with zipfile.ZipFile(path / "probe-1.0-py3-none-any.whl", "w") as file:
        file.writestr("sitecustomize.py", content)
        file.writestr("probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
        file.writestr("probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("probe-1.0.dist-info/RECORD", "")


def test_the_script_writes_json_and_row_to_its_output_alone(tmp_path: Path) -> None:
    pytest.importorskip("pip")
    before = {path: path.read_bytes() for path in PAGE.parent.iterdir()}
    (wheels := tmp_path / "wheels").mkdir()
    wheel(wheels, f"open({str(tmp_path / 'used')!r}, 'w').close()")
    output = tmp_path / "out"
    done = subprocess.run(
        ["bash", str(PROJECT / "benchmarks" / "gpu.sh"), *TINY, "--parts", "facts", "--output", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "BBU_PYTHON": sys.executable, "BBU_WHEELS": str(wheels), "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    (written,) = output.glob("*.json")
    found = json.loads(written.read_text(encoding="utf-8"))
    assert {name: part["ended"] for name, part in found["parts"].items()} == {"facts": "ok"}
    assert json.loads(done.stdout.splitlines()[-1])["all_parts_ended"]
    page = (output / "README.md").read_text(encoding="utf-8")
    assert f"]({written.name}) (tiny) | cpu |" in page and table.EMPTY_ROW not in page
    assert {path: path.read_bytes() for path in PAGE.parent.iterdir()} == before
    assert (tmp_path / "used").exists(), "the wheels that were brought are not used"


def options(folder: Path) -> Any:
    return SimpleNamespace(device="cpu", output=str(folder), tiny=True)


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT / "src"))
    started = time.monotonic()
    assert gpu.measure("step", 0.5, options(tmp_path))["ended"] == "stopped after 0 s"
    assert time.monotonic() - started < 10


def test_a_part_whose_process_dies_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = gpu.measure("step", 60, options(tmp_path))
    assert found["ended"] == "failed" and "status 1" in found["error"]


def test_what_was_found_before_an_error_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(setting: Any, findings: Any) -> None:
        findings.add(first=1)
        raise ValueError("too wide\nin the middle")

    monkeypatch.setattr(steps, "step", breaks)
    result = tmp_path / "part.json"
    arguments = SimpleNamespace(
        result=str(result), device="cpu", tiny=True, stop=time.monotonic() + 9, output=str(tmp_path)
    )
    assert gpu.run_part("step", arguments) == 1
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["first"] == 1 and found["error"] == "ValueError: too wide"


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


def test_the_parts_fit_into_the_time_of_all() -> None:
    assert sum(part.seconds for part in gpu.PARTS.values()) + gpu.GRACE <= gpu.parse([]).seconds < 600


# ---------------------------------------------------------------- model and figures


def test_the_published_sizes_are_those_of_the_published_model() -> None:
    planner = importlib.import_module("planner")
    ids = dict.fromkeys(("<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"), 7)
    config = model.model_config(model.PUBLISHED, ids | dict.fromkeys(("<|vision_start|>", "<|vision_end|>"), 8))
    assert model.cost_of(config) == model.cost_of(planner.SIZES)
    with torch.device("meta"):
        vlm = model.Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in vlm.parameters()) == 7_509_245_952 // 2  # total_size of its weights


def test_arms_share_their_weights_and_gradients(bench: Any) -> None:
    ours = {id(parameter) for parameter in bench.backbone.vlm.parameters()}
    assert {id(parameter) for parameter in bench.stock.parameters()} == ours
    assert {parameter.dtype for parameter in bench.objective.parameters()} == {torch.bfloat16}
    bench.step(bench.loss("padded", bench.samples(1)))
    assert all(parameter.grad is not None for parameter in bench.backbone.vlm.parameters())


def test_states_that_differ_are_noticed(bench: Any) -> None:
    samples = bench.samples(2)
    assert steps.states_agree(bench, samples)["packed_equals_padded"]
    bench.backbone.vlm.set_attn_implementation({"text_config": "sdpa"})  # infers the samples' boundaries by itself
    try:
        assert not steps.states_agree(bench, samples)["packed_equals_padded"]
    finally:
        bench.backbone.use_attention_backend("sdpa")


def test_an_arm_that_does_not_fit_is_left_out(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    real = bench.loss
    monkeypatch.setattr(bench, "loss", lambda arm, samples: full if arm == "padded" else real(arm, samples))
    samples = bench.samples(1)
    found = steps.compare(bench, samples, steps.ARMS, ("packed", "objective"))
    assert found["arms"]["padded"] is None and found["arms"]["packed"]["seconds"] > 0
    assert "speedup_vs_padded" not in found and "detection_share" in found
    assert not any(steps.compare(bench, samples, steps.ARMS, steps.ARMS)["arms"].values())


def test_memory_is_the_peak_while_something_runs_and_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": 30, "peak": 90}  # the peak of something before

    def work() -> None:
        held["peak"] = max(held["peak"], held["now"] + 25)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    assert machine.Setting(torch.device("cuda"), True, 0.0, Path()).memory_of(work) == (55, 25)


def test_other_errors_are_no_lack_of_memory() -> None:
    def wrong() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        machine.unless_out_of_memory(wrong)


def test_mfu_counts_real_tokens_and_patches_three_times(bench: Any) -> None:
    samples, cost = bench.samples(3), bench.cost
    by_hand = sum(
        cost.token * len(s.input_ids) + cost.token_pair * len(s.input_ids) ** 2
        + sum(cost.patch * p + cost.patch_pair * p**2 for p in s.image_grid_thw.prod(-1).tolist())
        for s in samples
    )  # fmt: skip
    assert model.training_flops(samples, cost) == pytest.approx(3 * by_hand, rel=1e-12)
    assert steps.mfu(989e12, 2.0, machine.PEAK_FLOPS["NVIDIA H200"]) == 0.5
    assert steps.mfu(1e12, 2.0, None) is None


@settings(max_examples=40)
@given(largest=st.integers(0, 300), most=st.integers(1, 256))
def test_the_search_finds_the_largest_that_fits(largest: int, most: int) -> None:
    reported: list[tuple[int, int | None]] = []
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= largest

    found = steps.search_largest(fits, lambda *both: reported.append(both), most=most, stop=float("inf"))
    assert found == reported[-1] and max(tried) <= most
    fitting, failing = found
    if failing is None:
        assert fitting <= largest and 2 * fitting > most
    else:
        assert fitting == largest and failing == largest + 1


def test_a_search_out_of_time_says_what_it_knows() -> None:
    stop = time.monotonic() + 0.05
    fitting, failing = steps.search_largest(lambda n: not time.sleep(0.02), lambda *both: None, most=512, stop=stop)
    assert fitting >= 1 and failing is None and time.monotonic() < stop + 0.05


def test_waits_are_named_by_the_innermost_line_of_the_package() -> None:
    places = {}
    for name in ("losses/matcher.py", "models/memory.py"):
        code = compile(f"def f():\n    warn({syncs.MESSAGE!r})\n", str(PROJECT / "src/bbu" / name), "exec")
        exec(code, space := {"warn": warnings.warn})
        places[name] = space["f"]
    with syncs.watched_syncs(False) as found:
        places["losses/matcher.py"]()
        places["models/memory.py"]()
        places["models/memory.py"]()
        warnings.warn("something else", stacklevel=1)
    summary = syncs.summary(found, 1)
    assert (summary["a_step"], summary["outside_matcher_a_step"]) == (3, 2)
    assert [each["place"] for each in summary["places"]] == ["models/memory.py:2 f", "losses/matcher.py:2 f"]


# ---------------------------------------------------------------- the table


def measured(**parts: Any) -> dict[str, Any]:
    found = {"date": "2026-01-02", "tiny": False, "parts": {"facts": {"gpu": "NVIDIA H200", "ended": "ok"}, **parts}}
    return found | {"headline": table.headline(found["parts"])}


def mode(rate: float, **figures: Any) -> dict[str, Any]:
    arm = {"tokens_a_second": rate, "mfu": rate / 100, "samples_a_second": rate / 10}
    return {"arms": {"padded": None, "packed": arm, "objective": arm}, **figures}


def test_the_headline_is_of_the_fastest_way_and_of_one_that_padded_fits_into() -> None:
    kept, recomputed = mode(50, detection_share=0.05), mode(40, detection_share=0.04, speedup_vs_padded=2.5)
    found = table.headline({"step": {"ended": "ok", "kept": kept, "recomputed": recomputed}})
    assert (found["mfu"], found["detection_share"], found["speedup_vs_padded"]) == (0.5, 0.05, 2.5)
    assert found["no_bleed"] is None and found["syncs_outside_matcher"] is None


def test_rows_follow_the_header_and_the_first_takes_the_template_s_place() -> None:
    page = re.sub(r"^\| \[.*\n", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)  # without measured rows
    columns = next(line for line in page.splitlines() if line.startswith("| date |")).count("|") - 1
    if table.EMPTY_ROW not in page:
        page = page.rstrip("\n") + f"\n{table.EMPTY_ROW}" + " |" * (columns - 1) + "\n"
    first = table.row(measured(step={"ended": "ok", "kept": mode(50)}), "a.json")
    second = table.row(measured(step={"ended": "failed"}), "b.json")
    header = next(line for line in page.splitlines() if line.startswith("| date |"))
    assert header.count("|") == first.count("|") == second.count("|")
    assert "| 0.500 / – / – |" in first and second.endswith("| step |")
    once = table.with_row(page, first)
    assert table.NOT_MEASURED not in once and table.EMPTY_ROW not in once
    twice = table.with_row(once, second)
    assert [line for line in twice.splitlines() if line.startswith("| [")] == [first, second]
    assert table.with_row(twice, second) == twice, "the same file measured again"


def test_the_page_says_that_it_is_empty_as_long_as_it_is() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert (table.NOT_MEASURED in page) == (table.EMPTY_ROW in page) == (not list(PAGE.parent.glob("*.json")))


@pytest.mark.parametrize(
    ("name", "short"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("cpu", "cpu")],
)
def test_files_are_named_by_the_kind_of_gpu(name: str, short: str) -> None:
    assert gpu.gpu_kind({"parts": {"facts": {"gpu": name}}}) == short
