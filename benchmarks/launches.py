"""Operators of a training step: on a GPU each is a kernel to launch, and small models wait for launches.

    python benchmarks/launches.py [--samples 2] [--quick]

Counted on the CPU by torch's dispatcher, for the demo's model (configs/demo.yaml) and for a model as deep as
Qwen2.5-VL-3B (36 text layers, 32 tower blocks, 6 decoder layers), narrow because width changes no count. Views are left
out. Attention and RMS norms count as one operator forward and one back, as on a GPU. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import last_line
from torch.utils._python_dispatch import TorchDispatchMode

from bbu.config import Config, load_config
from bbu.data.collators import PackedDataCollator
from bbu.data.photo import Photo
from bbu.layers import attention, lean_layers
from bbu.models.build import build_model, build_processor
from bbu.records import FewShotSample, ObjectRow, Row
from bbu.training.objective import DetectionObjective

PROJECT = Path(__file__).resolve().parents[1]
PARTS = 12  # objects of a photo
DEEP = [
    "model.scratch={vision_width: 48, vision_depth: 32, vision_heads: 3, vision_full_attention: [7, 15, 23, 31], "
    "text_width: 48, text_depth: 36, text_heads: 4, text_kv_heads: 2, vocab_size: 800}",
    "model.detection.layers=6",
    "model.detection.width=48",
    "model.detection.heads=6",
]


class Operators(TorchDispatchMode):
    """Counts operators by name; those that only view a tensor start no kernel."""

    fused = 0  # above 0 within what a GPU does in one kernel

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Operators.fused:
            return func(*args, **(kwargs or {}))
        returned = func._schema.returns
        views = bool(returned) and all(one.alias_info and not one.alias_info.is_write for one in returned)
        if not views and not func._schema.name.endswith(("::detach", "::empty", "::empty_strided", "::empty_like")):
            self.found[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


class Fused(torch.autograd.Function):
    """A function of tensors that counts as one operator forward, and one back."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        Operators.fused += 1
        with torch.enable_grad():
            ctx.inputs = [x.detach().requires_grad_() for x in inputs]
            ctx.output = function(*ctx.inputs)
        Operators.fused -= 1
        return ctx.output.detach() * 1  # type: ignore[no-any-return]  # the one operator

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        Operators.fused += 1
        found = torch.autograd.grad(ctx.output, ctx.inputs, slopes[0])
        Operators.fused -= 1
        return (None, found[0] * 1, *found[1:])  # the one operator


def fuse() -> None:
    """Attention and norms as one operator."""
    attend, norm = attention.ATTENTION_BACKENDS["sdpa"], lean_layers.rms_norm

    def one_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
        return Fused.apply(lambda *heads: attend(*heads, *rest), query, key, value)  # type: ignore[no-any-return]

    def one_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return Fused.apply(lambda *inputs: norm(*inputs, eps), x, weight)  # type: ignore[no-any-return]

    attention.ATTENTION_BACKENDS["sdpa"] = one_attention
    lean_layers.rms_norm = one_norm


def photo(number: int) -> Photo:
    """A grey photo with objects of a few descriptions."""
    from PIL import Image

    boxes = [(20 * (n % 4) + 10, 30 * (n // 4) + 10, 20 * (n % 4) + 28, 30 * (n // 4) + 35) for n in range(PARTS)]
    objects = tuple(ObjectRow(f"part/{'tight' if n % 2 else 'loose'}", "bbox_2d", box) for n, box in enumerate(boxes))
    return Photo(Image.new("RGB", (320 - 40 * (number % 2), 240), (90, 90, 90)), f"{number}.png", objects)


def step_of(config: Config, samples: int) -> tuple[Operators, Operators, dict[str, int]]:
    """Operators of the forward and the backward pass of one step, and of the forward's large parts."""
    row = Row(("0.png",), photo(0).objects, 320, 240)
    processor = build_processor(config, [FewShotSample(row)], ".")
    model = build_model(config, processor.tokenizer, device=torch.device("cpu"), dtype=torch.float32)
    objective = DetectionObjective(model, config.loss).train()
    made = [processor.process_photos([], photo(number), with_answer=True) for number in range(samples)]
    batch = PackedDataCollator(model.backbone.position_function())(made)
    forward, backward = Operators(), Operators()
    parts: dict[str, int] = {}
    watch(model, forward, parts)
    with forward:
        loss = torch.stack([*objective(**batch).values()]).sum()
    with backward:
        loss.backward()
    return forward, backward, parts


def watch(model: torch.nn.Module, operators: Operators, parts: dict[str, int]) -> None:
    """Count the operators within the model's large modules."""
    for name in ("backbone", "detection_head", "caption_decoder", "local_pyramid"):

        def enter(module: Any, inputs: Any, *, name: str = name) -> None:
            parts[name] = parts.get(name, 0) - operators.found.total()

        def leave(module: Any, inputs: Any, output: Any, *, name: str = name) -> None:
            parts[name] += operators.found.total()

        module = model.get_submodule(name)
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the demo's model alone")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    fuse()
    for name, overrides in {"demo": [], "deep": DEEP}.items():
        if name == "deep" and arguments.quick:
            continue
        config = load_config(PROJECT / "configs" / "demo.yaml", overrides)
        forward, backward, parts = step_of(config, arguments.samples)
        both = forward.found + backward.found
        print(f"\n{name}: {both.total()} operators a step, {forward.found.total()} of them forward")
        rest = forward.found.total() - sum(parts.values())
        print("  forward: " + ", ".join(f"{part} {count}" for part, count in {**parts, "rest": rest}.items()))
        print("  most: " + ", ".join(f"{operator} {count}" for operator, count in both.most_common(12)))
        prefix = "" if name == "demo" else f"{name}_"
        figures[f"{prefix}operators_a_step"] = both.total()
        figures |= {f"{prefix}forward_{part}": count for part, count in parts.items()}
    last_line("launches", samples=arguments.samples, **figures)


if __name__ == "__main__":
    main()
