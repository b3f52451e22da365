"""Activations computed again in the backward pass instead of kept: all of a block's, or the cheap ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from bbu.families.base import Backbone

# Fused attention, by the names that torch and the flash-attn package give their operators. Attention from single
# products (float64, short bfloat16 rows on a CPU) is computed again: its scores are larger than what they come from.
ATTENTION = ("_scaled_dot_product_", "_varlen_attn", "_flash_attn_varlen_forward")
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def checkpoint_activations(backbone: Backbone, how: str) -> None:
    """Recompute in the backward pass what each block of tower and language model computed.

    Args:
        how: ``full`` keeps a block's input alone; ``selective`` also what ``_policy`` says, which costs little time.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    newer = getattr(backbone.vlm, "activation_checkpointing_enable", None)
    if newer is not None:
        newer(activation_checkpointing_kwargs=options)
    else:  # its name in older releases of transformers
        backbone.vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what attention and products with weights give; norms, activations and rotations are cheap.

    Products that come out narrower than they went in are not kept. A block's last one is among them, and what nothing
    in the block comes after is not computed again; the others, keys and values of grouped heads, are small.
    """
    if operator in PRODUCTS:
        left, right = args[-2:]
        return CheckpointPolicy.MUST_SAVE if right.shape[1] >= left.shape[1] else CheckpointPolicy.PREFER_RECOMPUTE
    if any(name in operator.name() for name in ATTENTION):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
