"""Weights and gradients that are NaN or infinite, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from bbu.errors import NotFiniteError

SHOWN_NAMES = 5


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the tensors with a NaN or an infinity. Waits for the device at each."""
    return [name for name, tensor in tensors if tensor.is_floating_point() and not bool(tensor.isfinite().all())]


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Check the weights of a model; waits for the device once.

    Raises:
        NotFiniteError: one is not finite; the message names it.
    """
    norm = torch.nn.utils.get_total_norm([weight for weight in weights.values() if weight.is_floating_point()])
    spoilt = [] if bool(norm.isfinite()) else not_finite(weights.items())
    if spoilt:
        raise NotFiniteError(f"{weights_text(spoilt)}; nothing was written. Continue from the last checkpoint")


def weights_text(names: Sequence[str]) -> str:
    """These weights are not finite, in words."""
    return f"the weights are not finite: {shown_names(names)}"


def shown_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
