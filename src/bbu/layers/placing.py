"""Rows put at the places that a mask marks, in operations that a GPU can queue."""

from __future__ import annotations

import torch


def place(into: torch.Tensor, is_place: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``into`` with the rows at the marked places, in order: ``into.masked_scatter(is_place[..., None], rows)``.

    Values and gradients are the same bits. The backward pass of masked_scatter is a masked_select, the size of whose
    result a GPU has to tell the host first. Here each place gathers its row by a number, and no row is gathered twice.

    Args:
        into: (…, D).
        is_place: (…) bool.
        rows: at least as many rows (…, D) as places; more are left over.

    Raises:
        IndexError: there are fewer rows than places. A GPU fails an assertion instead.
    """
    both = torch.cat((into.flatten(0, -2), rows))
    here = is_place.flatten()
    own = torch.arange(len(here), device=into.device)
    chosen = torch.where(here, here.cumsum(0) + (len(here) - 1), own)
    return both.index_select(0, chosen).view_as(into)
