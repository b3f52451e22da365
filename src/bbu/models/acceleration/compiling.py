"""torch.compile for the blocks that take most of a step. Shapes differ from pack to pack, so they are dynamic.

Modules are compiled in place, so parameter names, checkpoints and LoRA weights do not change.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import torch
from torch import nn

from bbu.errors import ConfigError
from bbu.layers import attention
from bbu.models.wrapper import DetectionVLM

RECOMPILATIONS = 8  # of one code object; beyond that it runs uncompiled


def compile_parts(model: DetectionVLM, parts: Sequence[str], backend: str = "inductor") -> None:
    """Compile the blocks of some parts of the model on first use.

    Args:
        parts: any of ``COMPILED_PARTS`` of the configuration.
        backend: name of a torch.compile backend.

    Raises:
        ConfigError: there is no C++ compiler, which torch.compile needs on any device.
    """
    if not parts:
        return
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        raise ConfigError(
            "model.compile: needs a C++ compiler (g++ or clang++) and finds none; install one, or set model.compile=[]"
        )
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    _keep_attention_whole()
    for part in parts:
        for block in _blocks(model, part):
            block.compile(dynamic=True, backend=backend)


def compiled_graphs() -> int:
    """Number of graphs compiled so far, recompilations included."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _blocks(model: DetectionVLM, part: str) -> Sequence[nn.Module]:
    if part == "decoder":
        return list(model.detection_head.layers)
    if part == "captions":
        return list(model.caption_decoder.layers)
    return model.backbone.blocks(part)


def _keep_attention_whole() -> None:
    """Exclude attention backends from tracing: they loop over sequences, so every pack would recompile."""
    for name, backend in attention.ATTENTION_BACKENDS.items():
        if not getattr(backend, "_torchdynamo_disable", False):
            attention.ATTENTION_BACKENDS[name] = torch.compiler.disable(backend)
