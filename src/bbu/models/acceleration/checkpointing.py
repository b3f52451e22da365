"""Activation checkpointing: full, or selective recomputation of the cheap activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from bbu.families.base import Backbone
from bbu.layers.padded import MULTIPLE

# Fused attention, by operator names in torch and flash-attn. Attention from separate products (float64, short bfloat16
# rows on a CPU) is recomputed, because its scores are larger than its inputs.
ATTENTION = ("_scaled_dot_product_", "_varlen_attn", "_flash_attn_varlen_forward")
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
AFTER_ATTENTION = ("o_proj", "attn.proj")  # the product whose input attention's output is

Sizes = tuple[int, int]  # of a product: inner width, output width; in whole multiples of what MLPs are padded to
WHOLE: Sizes = (0, 0)  # stands for attention among the sizes


def checkpoint_activations(backbone: Backbone, how: str, budget: float | None = None) -> None:
    """Recompute activations of each block of tower and language model in the backward pass.

    Args:
        how: ``full`` keeps only a block's input; ``selective`` also what ``_policy`` saves, which costs little time.
        budget: share of these that a block may keep (``chosen_products``); None = all.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    newer = getattr(backbone.vlm, "activation_checkpointing_enable", None)
    if newer is not None:
        newer(activation_checkpointing_kwargs=options)
    else:  # older releases of transformers
        backbone.vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if how == "selective" and budget is not None:
        for part in ("vision", "llm"):
            for block in backbone.blocks(part):
                settings: Any = block
                contexts = partial(_contexts, chosen_products(block, budget))
                settings._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=contexts)


def chosen_products(block: nn.Module, budget: float) -> Counter[Sizes]:
    """What a block keeps within a share of the bytes that ``_policy`` would save: how many products of which sizes.

    An output of a product costs as many FLOP a byte to compute again as its input is wide, so the widest inputs come
    first, then the largest outputs; each that still fits is kept. Attention comes before all: what it costs grows with
    the length of the sample.
    """
    layers = {name: layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear)}
    sizes = [(layer.in_features, layer.out_features) for layer in layers.values()]
    costs = sorted((each for each in sizes if each[1] >= each[0]), reverse=True)
    attended = next((layer.in_features for name, layer in layers.items() if name.endswith(AFTER_ATTENTION)), 0)
    left = budget * (attended + sum(kept for _, kept in costs))
    chosen: Counter[Sizes] = Counter()
    for kind, kept in [(WHOLE, attended), *((_sizes(*each), each[1]) for each in costs)]:
        if kept <= left:
            chosen[kind] += 1
            left -= kept
    return chosen


def _sizes(inner: int, outer: int) -> Sizes:
    return -(-inner // MULTIPLE), -(-outer // MULTIPLE)


def _contexts(chosen: Counter[Sizes]) -> Any:
    """Contexts of one call of a block: the forward pass and the recomputation count the same products."""
    return create_selective_checkpoint_contexts(_within(chosen))


def _within(chosen: Counter[Sizes]) -> Callable[..., CheckpointPolicy]:
    """``_policy`` for so many products of each size, the first ones."""
    met: dict[bool, Counter[Sizes]] = {False: Counter(), True: Counter()}

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        decision = _policy(context, operator, *args, **kwargs)
        if decision is not CheckpointPolicy.MUST_SAVE:
            return decision
        sizes = _sizes(*args[-1].shape) if operator in PRODUCTS else WHOLE
        met[context.is_recompute][sizes] += 1
        kept = met[context.is_recompute][sizes] <= chosen[sizes]
        return decision if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


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
