"""torch.compile for the blocks that take most of a step. Shapes differ from pack to pack, so they are dynamic.

Modules are compiled in place, so parameter names, checkpoints and LoRA weights do not change. A block is one graph:
attention is an operator in it, so what a block keeps for the backward pass is the compiler's to choose.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch._functorch import config as partitioner
from torch.fx.experimental import _config as symbols
from torch.utils.flop_counter import flop_registry, register_flop_formula

from bbu.config.schema import DETECTION_PARTS
from bbu.errors import ConfigError
from bbu.layers import attention
from bbu.models.wrapper import DetectionVLM

RECOMPILATIONS = 8  # of one code object; beyond that it runs uncompiled
fallbacks: list[str] = []  # why parts run uncompiled

CompilerBackend = Callable[[torch.fx.GraphModule, list[Any]], Callable[..., Any]]


def compile_parts(
    model: DetectionVLM,
    parts: Sequence[str],
    backend: str = "inductor",
    *,
    checkpointing: str = "none",
    budget: float | None = None,
) -> None:
    """Compile the blocks of some parts of the model on first use.

    Args:
        parts: any of ``COMPILED_PARTS`` of the configuration.
        backend: name of a torch.compile backend.
        checkpointing: ``model.gradient_checkpointing``. A block of the backbone recomputes within its graph of the
            backward pass: ``full`` keeps the block's inputs, the others what is expensive.
        budget: ``model.activation_budget``, of ``selective``.

    Raises:
        ConfigError: there is no C++ compiler, which torch.compile needs on any device; or blocks with dropout are to
            be computed again, for which torch's partitioner would draw anew.
    """
    if not parts:
        return
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        raise ConfigError(
            "model.compile: needs a C++ compiler (g++ or clang++) and finds none; install one, or set model.compile=[]"
        )
    _few_graphs()
    for part in parts:
        whole = part in DETECTION_PARTS
        kept = 1.0 if whole else 0.0 if checkpointing == "full" else budget or 1.0
        if kept < 1 and _drops(_blocks(model, part)):
            raise ConfigError(
                f"model.compile: blocks of {part} that are computed again would draw their dropout again; set "
                "model.lora.dropout=0, or model.gradient_checkpointing=selective without a budget"
            )
        compiler = _compiler(backend, kept)  # one for all blocks, which share graphs only then
        for block in _blocks(model, part):
            _compile(block, compiler)


def _compile(block: nn.Module, compiler: CompilerBackend) -> None:
    """As ``block.compile``, but evaluation runs uncompiled: its shapes and caches need graphs of their own."""
    plain: Callable[..., Any] = block._call_impl
    compiled = torch.compile(plain, dynamic=True, backend=compiler)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (compiled if block.training else plain)(*args, **kwargs)

    settings: Any = block
    settings.gradient_checkpointing = False  # the graphs recompute
    settings._compiled_call_impl = call  # where Module.compile has it


def _drops(blocks: Sequence[nn.Module]) -> bool:
    return any(isinstance(part, nn.Dropout) and part.p > 0 for block in blocks for part in block.modules())


def run_uncompiled(model: DetectionVLM, parts: Sequence[str], error: Exception) -> None:
    """Run the blocks as they are from here on, and say so."""
    _report(error)
    for part in parts:
        for block in _blocks(model, part):
            settings: Any = block
            settings._compiled_call_impl = None


def first_parameters(model: DetectionVLM, parts: Sequence[str]) -> list[nn.Parameter]:
    """A parameter that learns of each part's first block; a gradient of it passes through all blocks of the part."""
    learning = ([p for p in _blocks(model, part)[0].parameters() if p.requires_grad] for part in parts)
    return [parameters[0] for parameters in learning if parameters]


def summary(parts: Sequence[str]) -> str:
    """What was compiled and what was not, in a line."""
    failed = f"; {len(fallbacks)} ran uncompiled, the first one: {fallbacks[0]}" if fallbacks else ""
    return f"compiled: {compiled_graphs()} graphs of {', '.join(parts)}{failed}"


def forget_graphs() -> None:
    """Before another model is compiled in this process: graphs of the one before count against RECOMPILATIONS."""
    torch._dynamo.reset()


def compiled_graphs() -> int:
    """Number of graphs compiled so far, recompilations included."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _blocks(model: DetectionVLM, part: str) -> Sequence[nn.Module]:
    if part == "decoder":
        return list(model.detection_head.layers)
    if part == "captions":
        return list(model.caption_decoder.layers)
    return model.backbone.blocks(part)


def _few_graphs() -> None:
    """Settings with which a kind of block has one graph or two, whatever the pack."""
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = RECOMPILATIONS
    dynamo.specialize_float = True  # an eps is a constant, not a tensor of one number
    symbols.use_duck_shape = False  # two sizes that are equal in the first pack are not in the next  # type: ignore[attr-defined]
    if not getattr(attention.ATTENTION_BACKENDS["flash_attn"], "_torchdynamo_disable", False):
        backend = attention.ATTENTION_BACKENDS["flash_attn"]  # a package whose operators have not been traced
        attention.ATTENTION_BACKENDS["flash_attn"] = torch.compiler.disable(backend)
    for operator in _attention_operators():
        if operator not in flop_registry:
            register_flop_formula(operator)(_attention_flops)


def _attention_operators() -> list[Any]:
    """Operators of attention that torch may not know the cost of."""
    if attention.TORCH_VARLEN is None:
        return [torch.ops.bbu.sdpa]
    return [torch.ops.bbu.sdpa, torch.ops.torch_attn._varlen_attn]


def _attention_flops(query: Sequence[int], key: Any, value: Any, cu_q: Any, cu_k: Any, *rest: Any, **_: Any) -> int:
    """At most: as if each segment were the longest."""
    return 4 * query[0] * query[1] * query[2] * int(rest[1])


def _compiler(name: str, budget: float) -> CompilerBackend:
    """A torch.compile backend that keeps a share of the activations, and leaves a graph uncompiled if it fails."""
    inner = torch._dynamo.lookup_backend(name)

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        try:
            with partitioner.patch(activation_memory_budget=budget):
                return inner(graph, inputs)  # type: ignore[no-any-return]
        except Exception as error:
            _report(error)
            return graph.forward

    return compile_graph


def _report(error: Exception) -> None:
    from torch._inductor.codecache import cache_dir

    line = next(iter(str(error).strip().splitlines()), "")
    fallbacks.append(f"{type(error).__name__}: {line}")
    print(
        f"model.compile: runs uncompiled ({fallbacks[-1]}); the results are the same, the steps slower; if a run was "
        f"killed while it compiled, delete {cache_dir()}",
        flush=True,
    )
