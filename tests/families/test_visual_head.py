"""Soft choices in chunks: the numbers and gradients of the plain computation, in the memory of one chunk."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bbu.families.ovis2_5 import visual_head
from bbu.families.ovis2_5.visual_head import Words, chosen_words, soft_embeddings

WORDS, WIDTH, TEXT, EPS = 96, 12, 10, 1e-5


def example(rows: int, dtype: torch.dtype = torch.float64, words: int = WORDS) -> tuple[torch.Tensor, ...]:
    """Joined states; weight, scale and shift of the choice; table with four further rows. All with gradients."""
    generator = torch.Generator().manual_seed(rows)
    shapes = [(rows, WIDTH), (words, WIDTH), (words,), (words,), (words + 4, TEXT)]
    return tuple(torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)


def plain(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    joined, weight, scale, shift, table = inputs
    normed = F.layer_norm(joined @ weight.T, (len(weight),), scale, shift, EPS)
    return normed.softmax(-1) @ table[: len(weight)]


def chunked(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    joined, weight, scale, shift, table = inputs
    return soft_embeddings(joined, Words(weight, scale, shift, EPS), table)


@pytest.fixture(params=[1, 7 * WORDS, 2**24], ids=["a row", "seven rows", "all rows"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(visual_head, "CHUNK_NUMBERS", request.param)
    return int(request.param)


@pytest.mark.parametrize("rows", [23, 1, 0])
def test_values_and_gradients_are_those_of_the_plain_computation(chunk: int, rows: int) -> None:
    inputs = example(rows)
    ours, theirs = chunked(inputs), plain(inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    push = torch.randn(ours.shape, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, push), torch.autograd.grad(theirs, inputs, push), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("learns", [[0], [1], [2, 3], [4], [0, 4]])
def test_only_gradients_that_are_wanted_are_computed(chunk: int, learns: list[int]) -> None:
    inputs = tuple(x.detach().requires_grad_(number in learns) for number, x in enumerate(example(23)))
    chunked(inputs).square().sum().backward()
    wanted = torch.autograd.grad(plain(inputs).square().sum(), [inputs[number] for number in learns])
    assert [number for number, x in enumerate(inputs) if x.grad is not None] == learns
    for number, expected in zip(learns, wanted, strict=True):
        torch.testing.assert_close(inputs[number].grad, expected, rtol=1e-9, atol=1e-9)


def test_words_and_entropies_are_those_of_the_plain_computation(chunk: int) -> None:
    joined, weight, scale, shift, _ = example(23)
    chosen, entropy = chosen_words(joined, Words(weight, scale, shift, EPS))
    shares = F.layer_norm(joined @ weight.T, (WORDS,), scale, shift, EPS).softmax(-1)
    assert torch.equal(chosen, shares.argmax(-1))
    torch.testing.assert_close(entropy, -(shares * shares.log()).sum(-1), rtol=1e-9, atol=1e-9)
    assert not entropy.requires_grad


def test_sixteen_bit_products_leave_norm_and_softmax_exact(chunk: int) -> None:
    inputs = example(40, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked(inputs)
    theirs = plain(inputs)
    assert ours.dtype == torch.bfloat16
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
    push = torch.randn(theirs.shape)
    found = torch.autograd.grad(ours, inputs, push.bfloat16())
    for one, other in zip(found, torch.autograd.grad(theirs, inputs, push), strict=True):
        assert one.dtype == torch.float32 and (one - other).norm() < 0.03 * other.norm()


class Held(TorchDispatchMode):
    """Bytes of the tensors that were made under it and are still alive, and the most of them at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, Iterable) and not isinstance(out, torch.Tensor) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def kept_and_most(rows: int, function: Any) -> tuple[int, int]:
    """Bytes kept for the backward pass that are no parameters or input, and the most held in both passes."""
    inputs = example(rows, torch.float32, words=2000)
    own = {x.untyped_storage()._cdata for x in inputs}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return x

    with Held() as held:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            total = function(inputs).sum()
        total.backward()
    return sum(kept.values()), held.most


def test_memory_does_not_grow_with_the_vocabulary_times_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visual_head, "CHUNK_NUMBERS", 16 * 2000)
    chunk, probabilities = 16 * 2000 * 4, 400 * 2000 * 4  # bytes
    (kept_few, few), (kept_many, many) = (kept_and_most(rows, chunked) for rows in (40, 400))
    print("bytes held", few, many, "chunk", chunk)
    kept_plain, plainly = kept_and_most(400, plain)
    assert kept_few == kept_many == 0, "inputs alone are kept"
    assert kept_plain > 2 * probabilities and plainly > 3 * probabilities, "the watch misses the probabilities"
    rows = 360 * 4 * (3 * TEXT + 3 * WIDTH)  # of the further rows: results and gradients, a few numbers each
    assert many - few <= rows
    assert many < 12 * chunk + rows + 2 * 4 * 2000 * (WIDTH + TEXT + 10), (many, chunk)
