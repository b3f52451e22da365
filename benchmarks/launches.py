"""Operators of a training step: on a GPU each is a kernel to launch, and small models wait for launches.

    python benchmarks/launches.py [--samples 2] [--quick]

Counted on the CPU by torch's dispatcher, for the demo's model (configs/demo.yaml) and for a model as deep as
Qwen2.5-VL-3B (36 text layers, 32 tower blocks, 6 decoder layers), narrow because width changes no count. It is the
second step with the same photos, so that constants are made. Forward and backward pass are counted, in float32; the
optimizer (one fused kernel a step for each group), the clipping of gradients, autocast's casts and copies to the device
are not. Views and allocations are left out. Attention and RMS norms count as one operator forward and one back, and
samples, photos and captions are batched, as on a GPU. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import unittest.mock
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from harness import last_line
from torch.utils._python_dispatch import TorchDispatchMode

from bbu.config import Config, load_config
from bbu.data.collators import PackedDataCollator
from bbu.data.photo import Photo
from bbu.layers import attention, lean_layers
from bbu.losses import matcher
from bbu.losses.detection_loss import PendingSums
from bbu.models import pyramid
from bbu.models.build import build_model, build_processor
from bbu.records import FewShotSample, ObjectRow, Row
from bbu.training import objective as objective_module
from bbu.training.objective import DetectionObjective

PROJECT = Path(__file__).resolve().parents[1]
NO_KERNEL = (  # what only allocates, is a view that the schema does not tell, or reckons with dtypes
    "::detach", "::empty", "::empty_strided", "::empty_like", "::new_empty_strided", "::_unsafe_view",
    "::promote_types",
)  # fmt: skip
PARTS = 12  # objects of a photo
DEEP = [
    "model.scratch={vision_width: 48, vision_depth: 32, vision_heads: 3, vision_full_attention: [7, 15, 23, 31], "
    "text_width: 48, text_depth: 36, text_heads: 4, text_kv_heads: 2, vocab_size: 800}",
    "model.detection.layers=6",
    "model.detection.width=48",
    "model.detection.heads=6",
]


class Operators(TorchDispatchMode):
    """Counts operators by name, and by the part of the step that called for them; views and allocations are left out.

    An operator of the backward pass belongs to the part that its forward operator belongs to.
    """

    fused = 0  # above 0 within what a GPU does in one kernel
    part = "rest"
    owners: ClassVar[dict[int, str]] = {}  # part of each operator of the forward pass, by autograd's numbers

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        node = torch._C._current_autograd_node()
        if node is None:
            Operators.owners[torch._C._autograd._get_sequence_nr() - 1] = Operators.part
        if not Operators.fused and is_kernel(func):
            self.found[func._schema.name.removeprefix("aten::")] += 1
            part = Operators.part if node is None else Operators.owners.get(node._sequence_nr(), "rest")
            self.parts[part] += 1
        return func(*args, **(kwargs or {}))


def is_kernel(func: Any) -> bool:
    """Whether an operator computes or copies something."""
    returned = func._schema.returns
    views = bool(returned) and all(one.alias_info and not one.alias_info.is_write for one in returned)
    return not views and not func._schema.name.endswith(NO_KERNEL)


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


def batch_on_cpus() -> None:
    """Batch samples, photos and captions as a GPU does."""
    matcher.SAMPLES_AT_ONCE = {}
    pyramid.CANVAS = objective_module.FEW_SHAPES = ("cpu",)


def step_of(config: Config, samples: int) -> tuple[Operators, Operators]:
    """Operators of the forward and of the backward pass of one step."""
    row = Row(("0.png",), photo(0).objects, 320, 240)
    processor = build_processor(config, [FewShotSample(row)], ".")
    model = build_model(config, processor.tokenizer, device=torch.device("cpu"), dtype=torch.float32)
    objective = DetectionObjective(model, config.loss).train()
    made = [processor.process_photos([], photo(number), with_answer=True) for number in range(samples)]
    batch = PackedDataCollator(model.backbone.position_function())(made)
    torch.stack([*objective(**batch).values()]).sum().backward()
    objective.zero_grad()
    forward, backward = Operators(), Operators()
    with ExitStack() as stack:
        for owner, name, part in (
            (model.backbone, "forward", "backbone"),
            (model.local_pyramid, "forward", "pyramid"),
            (model.detection_head, "forward", "head"),
            (model, "describe_states", "captions"),
            (objective_module, "begin_sums", "losses"),
            (PendingSums, "finish", "losses"),
            (objective_module, "answer_loss_sum", "losses"),
            (objective_module, "linear_cross_entropy_sum", "losses"),
        ):
            stack.enter_context(owned(owner, name, part))
        with forward:
            loss = torch.stack([*objective(**batch).values()]).sum()
        with backward:
            loss.backward()
    return forward, backward


@contextmanager
def owned(owner: Any, name: str, part: str) -> Iterator[None]:
    """Within it, the operators of a function belong to a part of the step."""
    function = getattr(owner, name)

    def called(*arguments: Any, **options: Any) -> Any:
        Operators.part, before = part, Operators.part
        try:
            return function(*arguments, **options)
        finally:
            Operators.part = before

    with unittest.mock.patch.object(owner, name, called):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the demo's model alone")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    fuse()
    batch_on_cpus()
    for name, overrides in {"demo": [], "deep": DEEP}.items():
        if name == "deep" and arguments.quick:
            continue
        config = load_config(PROJECT / "configs" / "demo.yaml", overrides)
        forward, backward = step_of(config, arguments.samples)
        both = forward.found + backward.found
        print(f"\n{name}: {both.total()} operators a step, {forward.found.total()} of them forward")
        parts = (forward.parts + backward.parts).most_common()
        print("  " + ", ".join(f"{part} {forward.parts[part]} + {backward.parts[part]}" for part, _ in parts))
        print("  most: " + ", ".join(f"{operator} {count}" for operator, count in both.most_common(12)))
        prefix = "" if name == "demo" else f"{name}_"
        figures[f"{prefix}operators_a_step"] = both.total()
        figures |= {f"{prefix}{part}": count for part, count in parts}
    last_line("launches", samples=arguments.samples, **figures)


if __name__ == "__main__":
    main()
