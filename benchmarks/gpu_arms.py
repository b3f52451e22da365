"""The ways in which benchmarks/gpu.py runs a training step: arms of transformers' own class and of this project's.

All arms take the same samples, weights and optimizer. Transformers' class is run as its users run it, from what it does
by itself to the best that it gives with torch alone, so that it is no straw man:

- `padded`: one padded batch, SDPA, its own loss: what it does by itself;
- `sorted`: samples sorted by length, two at a time, each pair padded to its own longest, gradients accumulated;
- `unpadded`: one sample at a time, so nothing is padded and SDPA needs no mask and takes its FlashAttention kernel;
  without cuDNN's attention; windows of the tower in one call of torch's variable-length kernel instead of a loop;
- `unpadded_compiled`: `unpadded` with the blocks of tower and language model compiled, which fuses norms and rotations;
- `flash_attention_2`: `sorted` with that implementation of transformers, where the flash-attn package is installed.

This project's: `packed` (backbone and language loss), `objective` (with the whole detection branch), and `packed`

- `narrow`: without MLP widths padded to a multiple of 64;
- `compiled`: as model.compile=[llm, vision] does it, selective with half the activations; `compiled_narrow`: both;
- `flash_attn`: with the flash-attn package; `flash_3`: with FlashAttention 3 in torch's kernel. Where installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_model import Bench, Losses
from torch import nn
from transformers import AttentionInterface

from bbu.data.chat_processor import ChatProcessorOutput
from bbu.layers import padded
from bbu.layers.attention import varlen_attention
from bbu.models.acceleration.compiling import compile_parts

COMPILED = ("llm", "vision")
# model.gradient_checkpointing and model.activation_budget of compiled blocks; configs/bbu.yaml has those of selective
RECOMPUTING: dict[str, tuple[str, float | None]] = {
    "kept": ("none", None), "selective": ("selective", 0.5), "recomputed": ("full", None),
}  # fmt: skip
RECOMPILATIONS = 64  # of one code object: several arms share transformers' code
TOWER_ATTENTION = "torch_varlen_flash"  # the tower hands on its boundaries to names with "flash" in them
Samples = Sequence[ChatProcessorOutput]


@dataclass(frozen=True)
class Arm:
    """A way to run a step.

    Args:
        losses: the micro-batches of some samples.
        around: what is switched on while a step runs.
        package: what it needs beside torch and transformers.
        stock: whether it is transformers' own class.
        compiles: whether its blocks are compiled.
    """

    losses: Callable[[Bench, Samples], Losses]
    around: Callable[[Bench], AbstractContextManager[Any]] = lambda bench: nullcontext()
    package: str = ""
    stock: bool = False
    compiles: bool = False

    def lacks(self, bench: Bench) -> str | None:
        """Why it cannot run here."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        code = type(bench.stock.model.visual.blocks[0]).forward.__code__
        if self.stock and self.compiles and bench.recomputes and code.co_name == "forward_with_checkpointing":
            return "this transformers recomputes within the compiled block, which stays uncompiled then"
        return None


# ---------------------------------------------------------------- micro-batches


def stock_losses(bench: Bench, samples: Samples, at_once: int | None = None) -> Losses:
    """Transformers' own loss, of all samples together, or of so many at once, sorted by length.

    The losses sum to the mean over the supervised tokens of all samples, as its Trainer accumulates gradients.
    """
    ordered = list(samples) if at_once is None else sorted(samples, key=lambda sample: len(sample.input_ids))
    at_once = at_once or len(ordered)
    batches = [bench.padded_inputs(ordered[start : start + at_once]) for start in range(0, len(ordered), at_once)]
    supervised = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    for batch in batches:
        if len(batch["input_ids"]) == 1:
            del batch["attention_mask"]  # nothing is padded, so transformers need not look for it, which waits
    return [partial(_stock_loss, bench, batch, supervised) for batch in batches]


def _stock_loss(bench: Bench, batch: dict[str, Any], supervised: int) -> torch.Tensor:
    return bench.stock(**batch, num_items_in_batch=supervised).loss  # type: ignore[no-any-return]


def packed_losses(bench: Bench, samples: Samples) -> Losses:
    return [partial(bench.packed_loss, bench.packed_batch(samples))]


def objective_losses(bench: Bench, samples: Samples) -> Losses:
    return [partial(bench.whole_loss, bench.packed_batch(samples))]


# ---------------------------------------------------------------- what is switched on


@contextmanager
def narrow(bench: Bench) -> Iterator[None]:
    """MLP products of the model's own widths."""
    devices, padded.DEVICES = padded.DEVICES, ()
    try:
        yield
    finally:
        padded.DEVICES = devices


@contextmanager
def compiled(bench: Bench) -> Iterator[None]:
    """This project's blocks compiled, as model.compile does; recomputing is their graphs' own."""
    blocks: Any = [block for part in COMPILED for block in bench.backbone.blocks(part)]
    before = [block.gradient_checkpointing for block in blocks]
    checkpointing, budget = RECOMPUTING[bench.mode]

    def compile_blocks() -> None:
        compile_parts(bench.objective.model, COMPILED, _inductor(bench), checkpointing=checkpointing, budget=budget)

    try:
        with _compiled_calls(bench, f"ours, {bench.mode}", blocks, compile_blocks):
            for block in blocks:
                block.gradient_checkpointing = False
            yield
    finally:
        for block, checkpointed in zip(blocks, before, strict=True):
            block.gradient_checkpointing = checkpointed


@contextmanager
def compiled_stock(bench: Bench) -> Iterator[None]:
    """Transformers' blocks compiled the same way."""
    blocks = [*bench.stock.model.language_model.layers, *bench.stock.model.visual.blocks]

    def compile_blocks() -> None:
        for block in blocks:
            block.compile(dynamic=True, backend=_inductor(bench))

    with _compiled_calls(bench, "stock", blocks, compile_blocks):
        yield


@contextmanager
def _compiled_calls(
    bench: Bench, key: str, blocks: Sequence[nn.Module], compile_blocks: Callable[[], None]
) -> Iterator[None]:
    """The blocks call their compiled selves meanwhile. They are compiled once."""
    if key not in bench.compiled:
        compile_blocks()
        bench.compiled[key] = [block._compiled_call_impl for block in blocks]
    calls = bench.compiled[key]
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    try:
        for block, call in zip(blocks, calls, strict=True):
            block._compiled_call_impl = call
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def _inductor(bench: Bench) -> str:
    """On a CPU traces are tried and run as they are: compiling would take longer than everything else."""
    return "inductor" if bench.setting.on_gpu else "eager"


@contextmanager
def without_cudnn(bench: Bench) -> Iterator[None]:
    """SDPA without cuDNN's kernels, also where activations are recomputed in the backward pass."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def stock_attention(bench: Bench, name: str) -> Iterator[None]:
    """Transformers' class with another of its attention implementations."""
    bench.stock.set_attn_implementation(name)
    try:
        yield
    finally:
        bench.stock.set_attn_implementation("sdpa")


@contextmanager
def tower_in_one_call(bench: Bench) -> Iterator[None]:
    """Transformers' tower attends within all its windows in one call, as it does with flash-attn."""

    @torch.compiler.disable  # as this project's own attention
    def attend(module: nn.Module, query: Any, key: Any, value: Any, **options: Any) -> tuple[Any, None]:
        names = {"cu_seqlens_q": "cu_seq_lens_q", "cu_seqlens_k": "cu_seq_lens_k"}
        names |= {"max_seqlen_q": "max_length_q", "max_seqlen_k": "max_length_k"}
        given: dict[str, Any] = {ours: options[theirs] for ours, theirs in names.items()}
        given |= {name: int(given[name]) for name in ("max_seqlen_q", "max_seqlen_k")}
        heads = (x[0].transpose(0, 1) for x in (query, key, value))
        backend = bench.backbone.attention_backend
        return varlen_attention(*heads, **given, causal=False, backend=backend, scale=options["scaling"])[None], None

    AttentionInterface.register(TOWER_ATTENTION, attend)
    config = bench.stock.model.visual.config
    before, config._attn_implementation = config._attn_implementation, TOWER_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def backend(bench: Bench, name: str) -> Iterator[None]:
    """This project's backbone with another attention backend."""
    before = bench.backbone.attention_backend
    bench.backbone.use_attention_backend(name)
    try:
        yield
    finally:
        bench.backbone.use_attention_backend(before)


@contextmanager
def flash_3(bench: Bench) -> Iterator[None]:
    """FlashAttention 3 behind torch's own variable-length kernel."""
    from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl

    activate_flash_attention_impl("FA3")
    try:
        with backend(bench, "torch_varlen"):
            yield
    finally:
        restore_flash_attention_impl()


def together(
    *contexts: Callable[[Bench], AbstractContextManager[Any]],
) -> Callable[[Bench], AbstractContextManager[Any]]:
    """All of them, the first one outermost."""

    @contextmanager
    def around(bench: Bench) -> Iterator[None]:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context(bench))
            yield

    return around


UNPADDED = together(without_cudnn, tower_in_one_call)
ARMS = {
    "padded": Arm(stock_losses, stock=True),
    "sorted": Arm(partial(stock_losses, at_once=2), stock=True),
    "unpadded": Arm(partial(stock_losses, at_once=1), UNPADDED, stock=True),
    "unpadded_compiled": Arm(
        partial(stock_losses, at_once=1), together(UNPADDED, compiled_stock), stock=True, compiles=True
    ),
    "flash_attention_2": Arm(
        partial(stock_losses, at_once=2), partial(stock_attention, name="flash_attention_2"), "flash_attn", stock=True
    ),
    "packed": Arm(packed_losses),
    "narrow": Arm(packed_losses, narrow),
    "objective": Arm(objective_losses),
    "compiled": Arm(packed_losses, compiled, compiles=True),
    "compiled_narrow": Arm(packed_losses, together(narrow, compiled), compiles=True),
    "flash_attn": Arm(packed_losses, partial(backend, name="flash_attn"), "flash_attn"),
    "flash_3": Arm(packed_losses, flash_3, "flash_attn_interface"),
}
STOCK = tuple(name for name, arm in ARMS.items() if arm.stock)
