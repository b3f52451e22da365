"""Cross-entropy without the logits: equal to the plain one in value and gradient, and small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bbu.losses import language_loss
from bbu.losses.language_loss import answer_loss_sum, linear_cross_entropy_sum, span_rows

ROWS, WIDTH, VOCABULARY = 23, 6, 50
HAS_CHUNKED = hasattr(torch.nn, "LinearCrossEntropyOptions")


def own_chunks(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return language_loss._recomputed_chunks(states, weight, targets, 4)


CHUNKED: dict[str, Callable[..., torch.Tensor]] = {"chosen": linear_cross_entropy_sum, "own": own_chunks}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows at a time."""
    monkeypatch.setattr(language_loss, "CHUNK_ELEMENTS", 4 * VOCABULARY)


def example(rows: int = ROWS, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    return states, weight, torch.randint(0, VOCABULARY, (rows,), generator=generator)


@pytest.mark.parametrize("way", CHUNKED)
@pytest.mark.parametrize("rows", [1, 4, 5, 8, 23])
@pytest.mark.usefixtures("small_chunks")
def test_chunks_equal_the_plain_loss_in_value_and_gradient(way: str, rows: int) -> None:
    states, weight, targets = example(rows)
    ours = CHUNKED[way](states, weight, targets)
    plain = F.cross_entropy(states @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(ours.double(), plain, rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(plain * 0.37, (states, weight))
    for one, other in zip(torch.autograd.grad(ours * 0.37, (states, weight)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not HAS_CHUNKED, reason="this torch has no chunked linear_cross_entropy")
@pytest.mark.usefixtures("small_chunks")
def test_torchs_own_chunks_are_taken_where_they_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = F.linear_cross_entropy
    monkeypatch.setattr(F, "linear_cross_entropy", lambda *a, **k: (seen.append(k["options"]), real(*a, **k))[1])
    linear_cross_entropy_sum(*example())
    assert [options.batch_chunk_size for options in seen] == [4]


@pytest.mark.usefixtures("small_chunks")
def test_older_torch_goes_through_recomputed_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    calls: list[int] = []
    real = language_loss._plain
    monkeypatch.setattr(language_loss, "_plain", lambda *inputs: (calls.append(len(inputs[0])), real(*inputs))[1])
    states, weight, targets = example()
    linear_cross_entropy_sum(states, weight, targets).backward()
    assert max(calls) == 4
    assert sum(calls) == 2 * ROWS, "each chunk is computed once more in the backward pass"


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned, and how much was allocated in rows × vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.most = max(self.most, leaf.numel())
        return result


@pytest.mark.parametrize("way", CHUNKED)
@pytest.mark.usefixtures("small_chunks")
def test_logits_of_all_rows_never_exist(way: str) -> None:
    rows = 200
    states, weight, targets = example(rows)
    with LargestTensor() as watch:
        CHUNKED[way](states, weight, targets).backward()
    assert watch.most <= max(rows * WIDTH, VOCABULARY * WIDTH) < rows * VOCABULARY
    with LargestTensor() as watch:
        F.cross_entropy(states @ weight.T, targets, reduction="sum").backward()
    assert watch.most == rows * VOCABULARY, "the watch does not see what it must see"


@pytest.mark.parametrize("rows", [0, 3])
def test_no_rows_lose_nothing_and_keep_the_graph(rows: int) -> None:
    states, weight, targets = example(rows)
    total = linear_cross_entropy_sum(states, weight, targets)
    gradients = torch.autograd.grad(total, (states, weight))
    assert (total.item() == 0) == (rows == 0)
    assert all(bool(gradient.abs().sum() == 0) == (rows == 0) for gradient in gradients)


@pytest.mark.parametrize("elements", [4 * VOCABULARY, 2**24])
def test_sixteen_bit_states_are_summed_in_float32(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_loss, "CHUNK_ELEMENTS", elements)
    states, weight, targets = example(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy_sum(states, weight, targets)
    expected = F.cross_entropy(states @ weight.T, targets, reduction="sum")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
    found.backward()
    assert states.grad is not None and states.grad.isfinite().all()


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
