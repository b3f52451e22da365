"""Training steps of Qwen2.5-VL-3B's real sizes: every arm of gpu_arms.py, memory, and the largest pack.

Called by benchmarks/gpu.py.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from gpu_arms import ARMS, STOCK, Arm
from gpu_machine import Findings, Setting, in_words, unless_out_of_memory
from gpu_model import MODES, Bench, Losses, shared_bench, training_flops

from bbu.data.chat_processor import ChatProcessorOutput
from bbu.models.acceleration.compiling import compiled_graphs

ROUNDS = 3  # timed steps of each arm, in turns
SLOW = 3.0  # seconds; an arm that takes longer is timed once
RETRIES = 3  # of a step that compiled something
SAME = 0.1  # most relative error between packed and padded states; bfloat16 through 36 layers gives 0.014 on a CPU
MOST_SAMPLES = 512  # in a pack: larger ones are not looked for
NEEDED = ("packed", "objective")  # the samples are so many that these fit
# Transformers' class recomputes all activations in both modes, so its arms are run in one.
PLAN: dict[str, tuple[str, ...]] = {
    "selective": ("packed", "objective", "compiled", "narrow", "compiled_narrow", "flash_attn", "flash_3"),
    "recomputed": ("packed", "objective", *STOCK),
    "kept": ("packed", "objective", "compiled", "compiled_narrow"),
}
LONG = {"compiled_narrow", "unpadded_compiled"}  # to compile; not for two minutes
QUICK = {"selective": (*NEEDED, *(name for name in ARMS if name not in LONG | {*NEEDED}))}


def step(setting: Setting, findings: Findings) -> None:
    """The arms, with and without gradient checkpointing, on as many of 4 samples as fit; 2 if quick or tiny."""
    bench = shared_bench(setting)
    findings.add(parameters=bench.parameters, backend=bench.backbone.attention_backend)
    findings.add(**states_agree(bench, bench.samples(2)))
    modes: dict[str, dict[str, Any]] = {}
    for mode, names in (QUICK if setting.quick else PLAN).items():
        bench.use(mode)
        arms = {name: ARMS[name] for name in names}

        def report(figures: dict[str, Any], mode: str = mode) -> None:
            modes[mode] = figures
            findings.add(**with_ratios(modes))

        for count in (2, 1) if setting.quick or setting.tiny else (4, 2, 1):
            if compare(bench, bench.samples(count), arms, report):
                break
    findings.add(graphs=compiled_graphs())


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
    bench: Bench,
    samples: Sequence[ChatProcessorOutput],
    arms: Mapping[str, Arm],
    report: Callable[[dict[str, Any]], None],
) -> bool:
    """Seconds, rates and memory of the arms that run: None for one that does not fit, else why it did not run.

    Memory is of a forward and backward pass beside weights, gradients and optimizer state; `activation_bytes` is what
    comes on top of these. That pass also warms up and compiles.

    Args:
        report: called with all figures whenever there are more.

    Returns:
        Whether the arms of NEEDED fit; where not, nothing is timed.
    """
    figures: dict[str, Any] = {**_work(bench, samples), "arms": {}}
    ready: dict[str, Losses] = {}
    for name, arm in arms.items():
        losses, found = warm_up(bench, samples, arm)
        figures["arms"][name] = found
        report(figures)
        if losses is not None:
            ready[name] = losses
        elif name in NEEDED and found is None:
            return False
    gc.collect()
    for number in range(1 if bench.setting.tiny or bench.setting.quick else ROUNDS):
        for name, losses in list(ready.items()):
            so_far = figures["arms"][name]
            if number and so_far["seconds"] > SLOW:
                continue
            so_far |= unless_it_fails(partial(_timed, bench, figures, arms[name], losses, so_far))
            if "error" in so_far:
                del ready[name]
            report(figures)
    return True


def warm_up(bench: Bench, samples: Sequence[ChatProcessorOutput], arm: Arm) -> tuple[Losses | None, Any]:
    """The batches of an arm that runs (else None), and what is known of it: its memory, or why it does not run."""
    if why := arm.lacks(bench):
        return None, {"skipped": why}

    def first() -> tuple[Losses, tuple[int, int] | None]:
        losses = arm.losses(bench, samples)
        with arm.around(bench):
            return losses, bench.memory_of(losses)

    try:
        found = unless_out_of_memory(first)
    except Exception as error:  # whatever it is: the other arms go on
        return None, {"error": in_words(error)}
    if found is None:
        bench.optimizer.zero_grad(set_to_none=True)
        return None, None
    losses, memory = found
    peak, activations = memory or (None, None)
    return losses, {"peak_bytes": peak, "activation_bytes": activations}


def unless_it_fails(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work gives, or its error: the other arms go on."""
    try:
        return unless_out_of_memory(work) or {"error": "out of memory in a timed step"}
    except Exception as error:
        return {"error": in_words(error)}


def _timed(
    bench: Bench, figures: Mapping[str, Any], arm: Arm, losses: Losses, before: Mapping[str, Any]
) -> dict[str, Any]:
    """The arm's figures with the seconds of one more step, which ends when the device has done it."""
    for _ in range(RETRIES):
        graphs = compiled_graphs()
        with arm.around(bench), no_garbage_collection():
            bench.setting.wait()
            started = time.perf_counter()
            bench.step(losses)
            bench.setting.wait()
            took = time.perf_counter() - started
        if compiled_graphs() == graphs:  # else it compiled
            break
    seconds = [*before.get("all_seconds", ()), took]
    middle = statistics.median(seconds)
    return {
        "seconds": middle,
        "all_seconds": seconds,
        "samples_a_second": figures["samples"] / middle,
        "tokens_a_second": figures["tokens"] / middle,
        "mfu": mfu(figures["model_flops"], middle, bench.setting.peak_flops()),
    }


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector waits, as timeit has it: after compiling it takes a second, in whichever step it comes."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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


def mfu(flops: float, seconds: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311); None where the peak is not known."""
    return None if peak is None else flops / seconds / peak


def with_ratios(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The modes, each with what packing brings against transformers' class on the same samples, and detection's share.

    Compiled blocks are compared with compiled blocks too; the best way to run transformers' class counts.
    """
    stock: dict[int, dict[str, Any]] = {}
    for figures in modes.values():
        stock.setdefault(figures["samples"], {}).update(timed_arms(figures, STOCK))
    return {name: {**figures, **_ratios(figures, stock[figures["samples"]])} for name, figures in modes.items()}


def timed_arms(figures: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Those arms that were timed."""
    return {name: arm for name in names if (arm := figures["arms"].get(name)) and "seconds" in arm}


def _ratios(figures: Mapping[str, Any], stock: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ours, found = timed_arms(figures, ("packed", "objective", "compiled")), dict[str, Any]()
    packed, objective, compiled = (ours.get(name) for name in ("packed", "objective", "compiled"))
    if packed and (padded := stock.get("padded")):
        found["speedup_vs_padded"] = padded["seconds"] / packed["seconds"]
        if padded["activation_bytes"]:
            found["activation_ratio"] = packed["activation_bytes"] / padded["activation_bytes"]
    best = {name: arm["seconds"] for name, arm in stock.items()}
    uncompiled = {name: seconds for name, seconds in best.items() if "compiled" not in name}
    if packed and uncompiled:
        found["best_stock"] = min(uncompiled, key=uncompiled.__getitem__)
        found["speedup_vs_best_stock"] = min(uncompiled.values()) / packed["seconds"]
    if compiled and best:
        found["best_stock_compiled"] = min(best, key=best.__getitem__)
        found["compiled_speedup_vs_best_stock"] = min(best.values()) / compiled["seconds"]
    if packed and objective:
        found["detection_share"] = 1 - packed["seconds"] / objective["seconds"]
    return found


# ---------------------------------------------------------------- the largest pack


def largest_pack(setting: Setting, findings: Findings) -> None:
    """The most samples, and so tokens, that the whole objective trains on at once: doubled, then bisected."""
    bench = shared_bench(setting)
    kinds = bench.samples(4)
    for place, mode in enumerate(MODES):
        bench.use(mode)
        bench.optimizer.zero_grad(set_to_none=True)
        budget = setting.left / (len(MODES) - place)
        stop = time.monotonic() + budget

        def fits(count: int) -> bool:
            samples = [kinds[number % len(kinds)] for number in range(count)]
            return bench.fits(ARMS["objective"].losses(bench, samples))

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
