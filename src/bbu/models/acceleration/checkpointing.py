"""Activation checkpointing: full, or selective recomputation of the cheap activations."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from bbu.families.base import Backbone

# Fused attention, by operator names in torch and flash-attn. Attention from separate products (float64, short bfloat16
# rows on a CPU) is recomputed, because its scores are larger than its inputs.
ATTENTION = ("_scaled_dot_product_", "_varlen_attn", "_flash_attn_varlen_forward")
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def checkpoint_activations(backbone: Backbone, how: str) -> None:
    """Recompute activations of each block of tower and language model in the backward pass.

    Args:
        how: ``full`` keeps only a block's input; ``selective`` also what ``_policy`` saves, which costs little time.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    newer = getattr(backbone.vlm, "activation_checkpointing_enable", None)
    if newer is not None:
        newer(activation_checkpointing_kwargs=options)
    else:  # older releases of transformers
        backbone.vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Save the outputs of attention and of weight products; norms, activations and rotary embeddings are cheap.

    Products with an output narrower than their input are not saved: a block's last one is never recomputed, because
    nothing in the block depends on it, and the others (keys and values of grouped heads) are small.
    """
    if operator in PRODUCTS:
        left, right = args[-2:]
        return CheckpointPolicy.MUST_SAVE if right.shape[1] >= left.shape[1] else CheckpointPolicy.PREFER_RECOMPUTE
    if any(name in operator.name() for name in ATTENTION):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
