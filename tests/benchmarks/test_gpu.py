"""What the GPU measurement measures: its arms, figures and table, on a CPU."""

from __future__ import annotations

import importlib
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.layers import padded

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "benchmarks" / "README.md"
sys.path.append(str(PROJECT / "benchmarks"))  # whose scripts import one another
gpu, arms, machine, model, steps, syncs, table = (
    importlib.import_module(f"gpu{part}") for part in ("", "_arms", "_machine", "_model", "_steps", "_syncs", "_table")
)


def create(folder: Path) -> Any:
    return machine.Setting(torch.device("cpu"), True, False, time.monotonic() + 300, folder)


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    return create(tmp_path)


@pytest.fixture(scope="module")
def bench() -> Any:
    return model.Bench(create(Path()), real=False)


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
    bench.step(arms.stock_losses(bench, bench.samples(1)))
    assert all(parameter.grad is not None for parameter in bench.backbone.vlm.parameters())


def test_states_that_differ_are_noticed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, real = bench.samples(2), bench.packed_batch
    assert steps.states_agree(bench, samples)["packed_equals_padded"]

    def without_boundaries(samples: Any) -> Any:
        batch = real(samples)
        tokens = batch["input_ids"].shape[1]
        return batch | {"cu_seqlens": torch.tensor([0, tokens], dtype=torch.int32), "max_seqlen": tokens}

    monkeypatch.setattr(bench, "packed_batch", without_boundaries)
    assert not steps.states_agree(bench, samples)["packed_equals_padded"]


def gradients(bench: Any, name: str, count: int = 3) -> tuple[float, torch.Tensor]:
    """Loss and all backbone gradients of an arm's step."""
    losses = arms.ARMS[name].losses(bench, bench.samples(count))
    bench.optimizer.zero_grad(set_to_none=True)
    with arms.ARMS[name].around(bench):
        bench.accumulate(losses)
        loss = sum(float(loss().detach()) for loss in losses)
    grads = [parameter.grad.flatten().float() for parameter in bench.backbone.vlm.parameters()]
    return loss, torch.cat(grads)


@pytest.mark.parametrize("name", ["sorted", "unpadded", "packed", "narrow"])
def test_every_arm_takes_the_same_step(bench: Any, name: str) -> None:
    (loss, found), (expected, reference) = gradients(bench, name), gradients(bench, "padded")
    assert loss == pytest.approx(expected, rel=1e-4)
    assert float((found - reference).norm() / reference.norm()) < 0.02  # bfloat16


def test_stock_micro_batches_are_sorted_and_padded_to_their_own_longest(bench: Any) -> None:
    samples = bench.samples(4)
    lengths = sorted(len(sample.input_ids) for sample in samples)
    for at_once, widths in ((None, [lengths[3]]), (2, [lengths[1], lengths[3]]), (1, lengths)):
        batches = [loss.args[1] for loss in arms.stock_losses(bench, samples[::-1], at_once)]
        assert [batch["input_ids"].shape[1] for batch in batches] == widths
        assert ["attention_mask" in batch for batch in batches] == [at_once != 1] * len(batches)


def test_what_an_arm_switches_on_is_off_afterwards(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padded, "DEVICES", ("cuda", "cpu"))
    tower, blocks = bench.stock.model.visual.config, bench.backbone.blocks("llm")
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    bench.use("recomputed")
    with arms.UNPADDED(bench):
        assert tower._attn_implementation == arms.TOWER_ATTENTION and not torch.backends.cuda.cudnn_sdp_enabled()
    with arms.narrow(bench):
        assert padded.DEVICES == ()
    with arms.compiled(bench):
        assert all(block._compiled_call_impl is not None for block in blocks)
        assert not any(block.gradient_checkpointing for block in blocks), "the graphs recompute"
    assert tower._attn_implementation == "sdpa" and torch.backends.cuda.cudnn_sdp_enabled() == cudnn
    assert padded.DEVICES == ("cuda", "cpu")
    assert all(block._compiled_call_impl is None and block.gradient_checkpointing for block in blocks)
    bench.use("kept")


def compare(bench: Any, samples: Any, names: list[str], changed: Any = ()) -> tuple[bool, dict[str, Any]]:
    found: dict[str, Any] = {}
    chosen = {name: arms.ARMS[name] for name in names} | dict(changed)
    enough = steps.compare(bench, samples, chosen, found.update)
    return enough, steps.with_ratios({"kept": found})["kept"]


def arm_that_raises(error: Exception) -> Any:
    def fail(bench: Any, samples: Any) -> Any:
        raise error

    return arms.Arm(fail)


def test_an_arm_that_fails_or_does_not_fit_is_left_out(bench: Any) -> None:
    samples, full = bench.samples(1), arm_that_raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    broken = {"padded": full, "narrow": arm_that_raises(ValueError("wrong"))}
    enough, found = compare(bench, samples, ["packed", "objective", "padded", "narrow"], broken)
    assert enough and found["arms"]["padded"] is None and found["arms"]["packed"]["seconds"] > 0
    assert found["arms"]["narrow"] == {"error": "ValueError: wrong"}
    assert table.failed_arms({"kept": found}) == ["narrow (kept)"]
    assert "speedup_vs_padded" not in found and "detection_share" in found
    enough, found = compare(bench, samples, ["packed", "objective"], {"objective": full})
    assert not enough and "seconds" not in found["arms"]["packed"]


def test_an_arm_that_fails_in_a_timed_step_keeps_what_it_had(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(losses: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    bench.step(arms.packed_losses(bench, bench.samples(1)))  # so that the warm-up is none
    monkeypatch.setattr(bench, "step", fails)
    found = compare(bench, bench.samples(1), ["packed"])[1]["arms"]["packed"]
    assert found == {"peak_bytes": None, "activation_bytes": None, "error": "out of memory in a timed step"}


def test_a_slow_arm_is_timed_once_and_the_others_in_three_rounds(
    bench: Any, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "setting", setting)
    setting.tiny = False
    monkeypatch.setattr(steps, "SLOW", 0.0)
    assert len(compare(bench, bench.samples(1), ["packed"])[1]["arms"]["packed"]["all_seconds"]) == 1
    monkeypatch.setattr(steps, "SLOW", 60.0)
    assert len(compare(bench, bench.samples(1), ["packed"])[1]["arms"]["packed"]["all_seconds"]) == 3


def test_a_step_that_compiles_is_not_counted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([0, 1, 1, 1])
    monkeypatch.setattr(steps, "compiled_graphs", lambda: next(counts))
    taken: list[int] = []
    monkeypatch.setattr(bench, "step", lambda losses: taken.append(1))
    steps._timed(bench, {"samples": 1, "tokens": 1, "model_flops": 1.0}, arms.ARMS["packed"], [], {})
    assert len(taken) == 2


def test_ratios_are_of_the_best_way_to_run_transformers_on_the_same_samples() -> None:
    def timed(seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "activation_bytes": seconds * 10}

    ours = {"packed": timed(1), "objective": timed(2), "compiled": timed(0.5)}
    stock = {"padded": timed(6), "sorted": None, "unpadded": timed(3), "unpadded_compiled": timed(2)}
    found = steps.with_ratios(
        {"selective": {"samples": 4, "arms": ours}, "recomputed": {"samples": 4, "arms": stock},
         "kept": {"samples": 2, "arms": ours}}
    )  # fmt: skip
    assert found["selective"] | {"arms": {}} == {
        "samples": 4, "arms": {}, "speedup_vs_padded": 6, "activation_ratio": 1 / 6, "best_stock": "unpadded",
        "speedup_vs_best_stock": 3, "best_stock_compiled": "unpadded_compiled", "compiled_speedup_vs_best_stock": 4,
        "detection_share": 0.5,
    }  # fmt: skip
    assert "speedup_vs_padded" not in found["kept"]


def test_samples_are_the_same_in_every_run(bench: Any) -> None:
    one, other = (model.draw_samples(model.chat_processor((4, 16)), 3, (4, 16), 4) for _ in range(2))
    assert all(torch.equal(a.pixel_values, b.pixel_values) for a, b in zip(one, other, strict=True))


def test_memory_is_the_peak_while_something_runs_and_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": 30, "peak": 90}  # the peak of something before

    def work() -> None:
        held["peak"] = max(held["peak"], held["now"] + 25)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    assert machine.Setting(torch.device("cuda"), True, False, 0.0, Path()).memory_of(work) == (55, 25)


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
    found = {
        "date": "2026-01-02",
        "tiny": False,
        "quick": False,
        "parts": {"facts": {"gpu": "NVIDIA H200", "ended": "ok"}, **parts},
    }
    return found | {"headline": table.headline(found["parts"])}


def mode(rate: float, **figures: Any) -> dict[str, Any]:
    arm = {"tokens_a_second": rate, "mfu": rate / 100, "samples_a_second": rate / 10}
    return {"arms": {"padded": None, "packed": arm, "objective": arm}, **figures}


def test_the_headline_is_of_the_fastest_way_and_of_one_that_padded_fits_into() -> None:
    kept, recomputed = mode(50, detection_share=0.05), mode(40, detection_share=0.04, speedup_vs_padded=2.5)
    found = table.headline({"step": {"ended": "ok", "kept": kept, "recomputed": recomputed}})
    assert (found["mfu"], found["detection_share"], found["speedup_vs_padded"]) == (0.5, 0.05, 2.5)
    assert found["no_bleed"] is None and found["syncs_outside_matcher"] is None


def test_aims_stand_beside_what_was_measured() -> None:
    arm = {"mfu": 0.35, "tokens_a_second": 1.0}
    step = {"selective": {"arms": {"packed": arm, "compiled": {"mfu": 0.42}}, "detection_share": 0.08}}
    train = {"config": table.PLAIN_CONFIG, "steps_a_second": 31.0}
    found = table.aims(table.headline({"step": step, "train": train}))
    assert found["mfu_selective"] == {"aim": ">= 0.4", "measured": 0.42, "met": True}
    assert found["detection_share"]["met"] is False and found["bccd_steps_a_second"]["met"] is True
    assert found["mfu_selective_flash_3"] == {"aim": ">= 0.45", "measured": None, "met": None}
    assert len(table.with_aims(found).splitlines()) == len(table.AIMS)


def test_rows_follow_the_header_and_the_first_takes_the_template_s_place() -> None:
    page = re.sub(r"^\| \[.*\n", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)  # without measured rows
    columns = next(line for line in page.splitlines() if line.startswith("| date |")).count("|") - 1
    if table.EMPTY_ROW not in page:
        page = page.rstrip("\n") + f"\n{table.EMPTY_ROW}" + " |" * (columns - 1) + "\n"
    first = table.row(measured(step={"ended": "ok", "kept": mode(50)}), "a.json")
    second = table.row(measured(step={"ended": "failed"}), "b.json")
    header = next(line for line in page.splitlines() if line.startswith("| date |"))
    assert header.count("|") == first.count("|") == second.count("|")
    assert "| 0.500 / – / – |" in first and second.endswith("| not step |")
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
    assert gpu.gpu_kind(name) == short
