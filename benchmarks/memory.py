"""What a training step of the backbone holds and costs: recomputed activations, a frozen tower, kept features.

    python benchmarks/memory.py [--quick]

A language model and a tower, each 512 wide and 8 blocks deep, float32, on a CPU. Peak: resident memory at its highest
less that before the step, each arm in a process of its own, with freed memory given back at once. Time: CPU seconds of
one thread at a quarter of the tokens, the arms taking turns. Gradients of the arms are compared before.

Shapes: D feature width, S image tokens, T packed tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of child processes: glibc keeps freed memory otherwise

from harness import in_own_process, interleaved_medians, last_line, peak_bytes, resident_bytes

RECOMPUTED, TOWER = ("none", "selective", "full"), ("learns", "frozen", "kept")
TOKENS, SAMPLE = 4096, 256  # of a pack and of a sample: text tokens, or patches of a photo
SPECIAL = ("<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def make_step(arm: str, tokens: int, width: int, depth: int, folder: str) -> Callable[[], Any]:
    """Forward and backward of an arm, ready to run; returns the gradients of what learns."""
    import torch

    from bbu.families.feature_cache import FeatureCache
    from bbu.families.qwen2_5_vl.backbone import Qwen25VL
    from bbu.families.qwen2_5_vl.codec import Qwen25VLSizes
    from bbu.models.acceleration.checkpointing import checkpoint_activations

    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = arm in RECOMPUTED
    big, small = (width, depth), (64, 1)
    (text_width, text_depth), (vision_width, vision_depth) = (big, small) if text else (small, big)
    sizes = Qwen25VLSizes(
        vision_width=vision_width, vision_depth=vision_depth, vision_heads=vision_width // 64,
        vision_full_attention=[vision_depth - 1], text_width=text_width, text_depth=text_depth,
        text_heads=text_width // 64, text_kv_heads=max(1, text_width // 128),
    )  # fmt: skip
    backbone = Qwen25VL.from_scratch(sizes, 400, {name: number for number, name in enumerate(SPECIAL)}).train()
    if arm in ("selective", "full"):
        checkpoint_activations(backbone, arm)
    if arm in ("frozen", "kept"):
        for name, parameter in backbone.vlm.named_parameters():
            parameter.requires_grad_(backbone.group_of(name) != "vision")
    if arm == "kept":
        backbone.feature_cache = FeatureCache(folder)
    samples = tokens // SAMPLE
    length = SAMPLE if text else SAMPLE // 4  # image tokens of a photo
    ids = torch.randint(6, 400, (1, samples * length)) if text else torch.full((1, samples * length), 2)
    side = round(SAMPLE**0.5)
    pixels = None if text else torch.randn(tokens, 1176)
    grids = None if text else [(1, side, side)] * samples
    positions = torch.arange(length).repeat(samples).expand(3, 1, -1)
    boundaries = (torch.arange(samples + 1) * length).to(torch.int32)
    keys = [str(number) for number in range(samples)]

    def step() -> dict[str, Any]:
        backbone.zero_grad()
        seen = backbone(ids, positions, pixels, grids, boundaries, length, image_keys=keys)
        (
            seen.hidden_TD.square().mean() + sum(level.tokens_SD.square().mean() for level in seen.vision_levels)
        ).backward()
        return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}

    return step


def step_bytes(arm: str, tokens: int, width: int, depth: int, folder: str) -> int:
    """For a process of its own: most memory of a step beyond what was there before it."""
    make_step(arm, SAMPLE, width, depth, f"{folder}/warm")()  # libraries load their parts at first use
    step = make_step(arm, tokens, width, depth, folder)
    if arm == "kept":
        step()  # files are there from now on
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_bytes()
    step()
    return peak_bytes() - before


def check_equal(steps: dict[str, Callable[[], Any]]) -> None:
    """What learns in several arms must get the same gradients in each."""
    import torch

    found = [step() for step in steps.values()]
    for gradients in found[1:]:
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, found[0][name], rtol=1e-3, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}"
            )


def measure(
    arms: tuple[str, ...], tokens: int, width: int, depth: int, repeats: int, *, together: bool = False
) -> dict[str, tuple[float, float]]:
    """(peak bytes, CPU seconds) of each arm; ``together``: peaks in one process, to be quick."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {arm: make_step(arm, tokens // 4, width, depth, folder) for arm in arms}
        check_equal(steps)
        seconds = interleaved_medians(steps, repeats, clock=time.process_time)
        sizes = [str(number) for number in (tokens, width, depth)]
        peaks: dict[str, int] = {}
        for group in [arms] if together else [(arm,) for arm in arms]:
            peaks |= in_own_process(__file__, ["--arms", ",".join(group), *sizes, f"{folder}/{group[0]}"])
    return {arm: (peaks[arm], seconds[arm]) for arm in arms}


def show(title: str, found: dict[str, tuple[float, float]]) -> None:
    (first_bytes, first_seconds), *_ = found.values()
    print(f"\n{title:34}{'peak MB':>10}{'share':>8}{'seconds':>10}{'share':>8}")
    for arm, (size, seconds) in found.items():
        shares = f"{size / first_bytes:8.2f}", f"{seconds / first_seconds:8.2f}"
        print(f"  {arm:32}{size / 1e6:10.0f}{shares[0]}{seconds:10.2f}{shares[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="tiny, in seconds: only to see that it runs")
    parser.add_argument("--arms", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arms:
        arms, tokens, width, depth, folder = options.arms
        sizes = int(tokens), int(width), int(depth)
        print(json.dumps({arm: step_bytes(arm, *sizes, folder) for arm in arms.split(",")}))
        return
    run = partial(measure, tokens=TOKENS, width=512, depth=8, repeats=3)
    if options.quick:
        run = partial(measure, tokens=2048, width=64, depth=2, repeats=1, together=True)
    recomputed, tower = run(RECOMPUTED), run(TOWER)
    show("model.gradient_checkpointing", recomputed)
    show("tower", tower)
    ratios = {f"{arm}_peak_ratio": recomputed[arm][0] / recomputed["none"][0] for arm in RECOMPUTED[1:]}
    ratios |= {f"{arm}_time_ratio": recomputed[arm][1] / recomputed["none"][1] for arm in RECOMPUTED[1:]}
    ratios |= {f"{arm}_peak_ratio": tower[arm][0] / tower["learns"][0] for arm in TOWER[1:]}
    ratios |= {f"{arm}_time_ratio": tower[arm][1] / tower["learns"][1] for arm in TOWER[1:]}
    last_line("memory", **ratios)


if __name__ == "__main__":
    main()
