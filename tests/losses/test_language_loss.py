"""Chunked linear cross-entropy: value and gradients of the plain one, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bbu.losses import language_loss
from bbu.losses.language_loss import answer_loss_sum, linear_cross_entropy_sum, span_rows

ROWS, WIDTH, VOCABULARY = 23, 6, 50


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows at a time."""
    monkeypatch.setattr(language_loss, "CHUNK_ELEMENTS", 4 * VOCABULARY)


def example(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    return states, weight, torch.randint(0, VOCABULARY, (rows,), generator=generator)


def plain(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(states @ weight.T, targets, reduction="sum")


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 23])
@pytest.mark.usefixtures("small_chunks")
def test_chunks_equal_the_plain_loss_in_value_and_gradient(rows: int) -> None:
    states, weight, targets = example(rows)
    ours, expected = linear_cross_entropy_sum(states, weight, targets), plain(states, weight, targets)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(expected * 0.37, (states, weight))
    for one, other in zip(torch.autograd.grad(ours * 0.37, (states, weight)), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 5, 23])
@pytest.mark.usefixtures("small_chunks")
def test_each_row_counts_as_often_as_it_is_important(rows: int) -> None:
    """Once, twice, thrice or not at all: as if the row stood there so often. In a second backward pass too."""
    states, weight, targets = example(rows)
    often = torch.arange(rows) % 4
    repeated = plain(states.repeat_interleave(often, 0), weight, targets.repeat_interleave(often))
    ours = linear_cross_entropy_sum(states, weight, targets, often.double())
    torch.testing.assert_close(ours, repeated, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(repeated, (states, weight))
    for _ in range(2):
        for one, other in zip(torch.autograd.grad(ours, (states, weight), retain_graph=True), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_importance_of_one_changes_no_bit(dtype: torch.dtype) -> None:
    states, weight, targets = example(dtype=torch.float32)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = [
            linear_cross_entropy_sum(states, weight, targets, importance)
            for importance in (None, torch.ones(ROWS, dtype=torch.float64))
        ]
    assert torch.equal(*found)
    assert all(map(torch.equal, *(torch.autograd.grad(total, (states, weight)) for total in found)))


@pytest.mark.usefixtures("small_chunks")
def test_gradients_equal_finite_differences() -> None:
    states, weight, targets = example(7)
    assert torch.autograd.gradcheck(lambda s, w: linear_cross_entropy_sum(s, w, targets), (states, weight))


@pytest.mark.usefixtures("small_chunks")
def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    """The first backward pass scales its gradients in place and gives them away."""
    states, weight, targets = example()
    total = linear_cross_entropy_sum(states, weight, targets)
    first = [gradient.clone() for gradient in torch.autograd.grad(total * 2, (states, weight), retain_graph=True)]
    again = torch.autograd.grad(total * 3, (states, weight))
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one * 1.5, other, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused_instead_of_wrong() -> None:
    states, weight, targets = example()
    (gradient,) = torch.autograd.grad(linear_cross_entropy_sum(states, weight, targets) ** 2, states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.usefixtures("small_chunks")
def test_a_weight_that_is_also_the_embedding_gets_both_gradients() -> None:
    _, weight, targets = example()
    found, expected = (
        torch.autograd.grad(loss(weight[targets.roll(1)], weight, targets), weight)[0]
        for loss in (linear_cross_entropy_sum, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.usefixtures("small_chunks")
def test_frozen_inputs_get_no_gradient_and_cost_nothing(frozen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = example()
    (expected,) = torch.autograd.grad(plain(*inputs), inputs[1 - frozen])
    inputs[frozen].requires_grad_(False)
    if frozen == 1:
        monkeypatch.setattr(language_loss, "add_product", lambda *_: pytest.fail("a gradient that is not wanted"))
    linear_cross_entropy_sum(*inputs).backward()
    assert inputs[frozen].grad is None
    torch.testing.assert_close(inputs[1 - frozen].grad, expected, rtol=1e-12, atol=1e-12)


def test_no_gradient_is_computed_under_no_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_loss, "add_product", lambda *_: pytest.fail("a gradient that is not wanted"))
    with torch.no_grad():
        found = linear_cross_entropy_sum(*example())
    assert not found.requires_grad
    torch.testing.assert_close(found, plain(*example()).detach())


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.most = max(self.most, leaf.numel())
        return result


@pytest.mark.usefixtures("small_chunks")
def test_logits_of_all_rows_never_exist() -> None:
    rows = 200
    states, weight, targets = example(rows)
    with LargestTensor() as watch:
        linear_cross_entropy_sum(states, weight, targets).backward()
    assert watch.most <= max(rows * WIDTH, VOCABULARY * WIDTH) < rows * VOCABULARY
    with LargestTensor() as watch:
        plain(states, weight, targets).backward()
    assert watch.most == rows * VOCABULARY, "the watch misses the logits"


@pytest.mark.parametrize("rows", [0, 3])
def test_zero_rows_give_a_zero_loss_that_can_be_backpropagated(rows: int) -> None:
    states, weight, targets = example(rows)
    total = linear_cross_entropy_sum(states, weight, targets)
    gradients = torch.autograd.grad(total, (states, weight))
    assert (total.item() == 0) == (rows == 0)
    assert all(bool(gradient.abs().sum() == 0) == (rows == 0) for gradient in gradients)


@pytest.mark.parametrize("elements", [4 * VOCABULARY, 2**24])
def test_sixteen_bit_products_are_summed_in_float32(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast: value and gradients are as exact as bfloat16 products allow."""
    monkeypatch.setattr(language_loss, "CHUNK_ELEMENTS", elements)
    inputs = example(200, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy_sum(*inputs)
    expected = plain(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    exact = torch.autograd.grad(expected, inputs[:2])
    for ours, theirs in zip(torch.autograd.grad(found, inputs[:2]), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_autocasts_cache_keeps_no_weight_without_a_gradient() -> None:
    """A 16-bit copy made without gradients must not stay in autocast's cache, where the next use would find it."""
    states, weight, targets = example(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy_sum(states, weight, targets)
        (gradient,) = torch.autograd.grad(F.linear(states, weight).sum(), weight)
    assert gradient.abs().sum() > 0


def test_a_token_is_predicted_from_the_state_before_it() -> None:
    hidden, weight, _ = example(12)
    labels = torch.randint(0, VOCABULARY, (12,), generator=torch.Generator().manual_seed(9))
    spans = [(3, 5), (9, 12)]
    found = answer_loss_sum(hidden, labels, weight, spans)
    log_probs = (hidden @ weight.T).log_softmax(-1)
    expected = -sum(log_probs[t - 1, labels[t]] for t in (3, 4, 9, 10, 11))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found, hidden)
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [2, 3, 8, 9, 10]


def test_spans_are_half_open() -> None:
    assert span_rows([(2, 4), (7, 8)], torch.device("cpu")).tolist() == [2, 3, 7]
    assert span_rows([], torch.device("cpu")).tolist() == []
