"""Training steps of Qwen2.5-VL-3B's real sizes: packed against padded, memory, and the largest pack.

Called by benchmarks/gpu.py; the arms are described in gpu_model.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_machine import Findings, Setting, unless_out_of_memory
from gpu_model import MODES, Bench, training_flops
from harness import interleaved_seconds

from bbu.data.chat_processor import ChatProcessorOutput

REPEATS = 5  # timed rounds of all arms, fewer where time is short
SAME = 0.1  # most relative error between packed and padded states; bfloat16 through 36 layers gives 0.014 on a CPU
MOST_SAMPLES = 512  # in a pack: larger ones are not looked for
ARMS = ("padded", "packed", "objective")


def step(setting: Setting, findings: Findings) -> None:
    """All three arms on as many samples as fit, with and without gradient checkpointing."""
    bench = Bench(setting, real=not setting.tiny)
    findings.add(parameters=bench.parameters, backend=bench.backbone.attention_backend)
    findings.add(**states_agree(bench, bench.samples(2)))
    for mode in reversed(MODES):
        bench.use(mode)
        needed = ARMS[1:] if mode == "kept" else ARMS  # padded rarely fits there
        for count in (2,) if setting.tiny else (8, 6, 4, 3, 2, 1):
            figures = compare(bench, bench.samples(count), ARMS, needed)
            findings.add(**{mode: figures})
            if all(figures["arms"][arm] for arm in needed):
                break


def published(setting: Setting, findings: Findings) -> None:
    """Four samples padded against the same four packed: memory a sample and speed."""
    bench = Bench(setting, real=not setting.tiny)
    samples = bench.samples(4)
    for mode in reversed(MODES):
        bench.use(mode)
        figures = compare(bench, samples, ARMS[:2], ())
        for arm in filter(None, figures["arms"].values()):
            if arm["peak_bytes"] is not None:
                arm["peak_bytes_a_sample"] = arm["peak_bytes"] / 4
                arm["activation_bytes_a_sample"] = arm["activation_bytes"] / 4
        findings.add(**{mode: figures})


def states_agree(bench: Bench, samples: Sequence[ChatProcessorOutput]) -> dict[str, Any]:
    """Last hidden states of the same tokens, packed and padded: ‖a − b‖ / ‖b‖, before anything is timed."""
    with torch.no_grad():
        ours = bench.packed_states(bench.packed_batch(samples)).float()
        inputs = bench.padded_inputs(samples)
        del inputs["labels"]
        theirs = bench.stock.model(**inputs).last_hidden_state[inputs["attention_mask"].bool()].float()
        error = float((ours - theirs).norm() / theirs.norm())
    return {"packed_against_padded": error, "packed_equals_padded": error < SAME}


def compare(
    bench: Bench, samples: Sequence[ChatProcessorOutput], names: Sequence[str], needed: Sequence[str]
) -> dict[str, Any]:
    """Seconds, rates and memory of the arms that fit, None for those that do not; of none where a needed one does not.

    Memory is of a forward and backward pass beside weights, gradients and optimizer state; `activation_bytes` is what
    comes on top of these.
    """
    figures: dict[str, Any] = {**_work(bench, samples), "arms": dict.fromkeys(names)}
    losses = {name: bench.loss(name, samples) for name in names}
    memory, started = {}, time.monotonic()
    for name in names:
        if (found := bench.first_step(losses[name])) is not None:
            memory[name] = found
        elif name in needed:
            return figures
    round_seconds = (time.monotonic() - started) / 2  # each arm went forward and backward twice
    arms, rounds = {name: bench.timed_step(losses[name]) for name in memory}, _rounds(bench, round_seconds)
    seconds = unless_out_of_memory(lambda: interleaved_seconds(arms, rounds, warm_up=False))
    for name, taken in (seconds or {}).items():
        figures["arms"][name] = _arm(bench, figures, taken, memory[name])
    return figures | _ratios(figures["arms"])


def _work(bench: Bench, samples: Sequence[ChatProcessorOutput]) -> dict[str, Any]:
    """What the samples are, in numbers."""
    return {
        "samples": len(samples),
        "tokens": sum(len(sample.input_ids) for sample in samples),
        "longest": max(len(sample.input_ids) for sample in samples),
        "photos": sum(len(sample.image_grid_thw) for sample in samples),
        "patches": sum(int(sample.image_grid_thw.prod(-1).sum()) for sample in samples),
        "model_flops": training_flops(samples, bench.cost),
    }


def _rounds(bench: Bench, round_seconds: float) -> int:
    """How often all arms are timed; the other modes need time as well."""
    most = 1 if bench.setting.tiny else REPEATS
    return max(1, min(most, int(0.3 * bench.setting.left / round_seconds)))


def _arm(bench: Bench, figures: dict[str, Any], seconds: list[float], memory: tuple[int, int] | bool) -> dict[str, Any]:
    middle, peak_flops = statistics.median(seconds), bench.setting.peak_flops()
    peak, activations = memory if isinstance(memory, tuple) else (None, None)
    return {
        "seconds": middle,
        "all_seconds": seconds,
        "samples_a_second": figures["samples"] / middle,
        "tokens_a_second": figures["tokens"] / middle,
        "mfu": mfu(figures["model_flops"], middle, peak_flops),
        "peak_bytes": peak,
        "activation_bytes": activations,
    }


def mfu(flops: float, seconds: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311); None where the peak is not known."""
    return None if peak is None else flops / seconds / peak


def _ratios(arms: dict[str, dict[str, Any] | None]) -> dict[str, float]:
    """What packing brings, and the detection branch's share of a step, where their arms ran."""
    padded, packed, objective = arms.get("padded"), arms.get("packed"), arms.get("objective")
    found = {}
    if padded and packed:
        found["speedup_vs_padded"] = padded["seconds"] / packed["seconds"]
        if padded["activation_bytes"]:
            found["activation_ratio"] = packed["activation_bytes"] / padded["activation_bytes"]
    if packed and objective:
        found["detection_share"] = 1 - packed["seconds"] / objective["seconds"]
    return found


# ---------------------------------------------------------------- the largest pack


def largest_pack(setting: Setting, findings: Findings) -> None:
    """The most samples, and so tokens, that the whole objective trains on at once: doubled, then bisected."""
    bench = Bench(setting, real=not setting.tiny)
    kinds = bench.samples(4)
    for place, mode in enumerate(MODES):
        bench.use(mode)
        bench.optimizer.zero_grad(set_to_none=True)
        budget = setting.left / (len(MODES) - place)
        stop = time.monotonic() + budget

        def fits(count: int) -> bool:
            samples = [kinds[number % len(kinds)] for number in range(count)]
            return bench.first_step(bench.loss("objective", samples)) is not None

        def report(fitting: int, failing: int | None, mode: str = mode) -> None:
            lengths = [len(sample.input_ids) for sample in kinds]
            tokens = [sum(lengths[n % len(kinds)] for n in range(count or 0)) for count in (fitting, failing)]
            found = {"samples": fitting, "tokens": tokens[0], "too_many_samples": failing}
            findings.add(**{mode: found | {"too_many_tokens": tokens[1] if failing else None}})

        search_largest(fits, report, most=4 if setting.tiny else MOST_SAMPLES, stop=stop)


def search_largest(
    fits: Callable[[int], bool], report: Callable[[int, int | None], None], *, most: int, stop: float
) -> tuple[int, int | None]:
    """The largest count that fits and the smallest that does not (None: none was seen), as far as time allows.

    Args:
        report: called with both after every try.
        stop: time.monotonic() after which no try is begun that may take as long as the last.
    """
    fitting, failing, took = 0, None, 0.0
    count = 1
    while count <= most and (failing is None or failing - fitting > 1) and time.monotonic() + 2 * took < stop:
        started = time.monotonic()
        if fits(count):
            fitting = count
        else:
            failing = count
        took = time.monotonic() - started
        report(fitting, failing)
        count = fitting * 2 if failing is None else (fitting + failing) // 2
    return fitting, failing
