"""Rows at marked places: values, gradients and errors of masked_scatter."""

from __future__ import annotations

import pytest
import torch

from bbu.layers.placing import place

IS_PLACE = torch.tensor([[False, True, True, False, True], [True, False, False, False, False]])


def placed(function: str, dtype: torch.dtype, spare: int) -> list[torch.Tensor]:
    """The result and the gradients of both inputs."""
    torch.manual_seed(0)
    into = torch.randn(2, 5, 3, dtype=dtype).requires_grad_()
    rows = torch.randn(4 + spare, 3, dtype=dtype).requires_grad_()
    result = place(into, IS_PLACE, rows) if function == "place" else into.masked_scatter(IS_PLACE[..., None], rows)
    return [result, *torch.autograd.grad(result, (into, rows), torch.randn(2, 5, 3, dtype=dtype))]


@pytest.mark.parametrize("spare", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_masked_scatter(dtype: torch.dtype, spare: int) -> None:
    for ours, theirs in zip(placed("place", dtype, spare), placed("masked_scatter", dtype, spare), strict=True):
        assert torch.equal(ours, theirs)


def test_fewer_rows_than_places_are_an_error() -> None:
    with pytest.raises(IndexError):
        place(torch.zeros(2, 5, 3), IS_PLACE, torch.zeros(3, 3))


def test_no_place_leaves_everything() -> None:
    into = torch.rand(2, 5, 3)
    assert torch.equal(place(into, torch.zeros(2, 5, dtype=torch.bool), torch.zeros(0, 3)), into)
