"""On GPUs captions are padded to a few shapes; losses and gradients are those of the captions alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bbu.data.chat_processor import ChatProcessor
from bbu.layers import attention
from bbu.training import objective as module
from bbu.training.objective import DetectionObjective, few_shapes
from tests.tiny import DEFAULT, noise_photo, pack, tiny_config, tiny_model, tiny_processor

Outcome = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


@pytest.fixture
def processor() -> ChatProcessor:
    return tiny_processor(DEFAULT)


def step(processor: ChatProcessor, parts: int, seed: int) -> Outcome:
    """Loss terms and gradients of one step on two photos."""
    model = tiny_model(DEFAULT)
    model.zero_grad()
    objective = DetectionObjective(model, tiny_config(loss={"caption_groups": 1}).loss)
    photos = [noise_photo(seed, parts=parts), noise_photo(seed + 1, 84, 112, parts=1)]
    batch = pack(model, [processor.process_photos([], photo, with_answer=True) for photo in photos])
    losses = objective(**batch)
    torch.stack([*losses.values()]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {term: loss.detach() for term, loss in losses.items()}, gradients


def test_losses_and_gradients_are_those_without_padding(
    processor: ChatProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, gradients = step(processor, 3, seed=1)
    monkeypatch.setattr(module, "FEW_SHAPES", ("cpu",))
    padded_losses, padded = step(processor, 3, seed=1)
    assert padded_losses["caption"] > 0 and gradients.keys() == padded.keys()
    for term, loss in losses.items():
        torch.testing.assert_close(padded_losses[term], loss, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(padded[name], gradient, rtol=1e-9, atol=1e-10)


def shapes_of_ten_steps(processor: ChatProcessor, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Any]]:
    """Distinct shapes of query and key that reach dense attention in the caption decoder, by mask."""
    seen: defaultdict[str, set[Any]] = defaultdict(set)
    real: Callable[..., torch.Tensor] = nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        seen["self" if options.get("is_causal") else "region"].add((tuple(query.shape), tuple(key.shape)))
        return real(query, key, value, **options)

    with monkeypatch.context() as context:
        context.setattr(attention.F, "scaled_dot_product_attention", watched)
        context.setattr(attention, "_sdpa_backend", attention._sdpa_backend)
        context.setitem(attention.ATTENTION_BACKENDS, "sdpa", unwatched(real, context))
        for number in range(10):
            step(processor, 1 + number % 5, seed=10 * number)
    return seen


def unwatched(real: Callable[..., torch.Tensor], context: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """The variable-length backend, which is not of captions, past the watch."""
    backend = attention._sdpa_backend

    def attend(*arguments: Any) -> torch.Tensor:
        watch = attention.F.scaled_dot_product_attention
        attention.F.scaled_dot_product_attention = real
        try:
            return backend(*arguments)
        finally:
            attention.F.scaled_dot_product_attention = watch

    return attend


def test_ten_steps_reach_attention_with_a_handful_of_shapes(
    processor: ChatProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shapes_of_ten_steps(processor, monkeypatch)
    assert len(plain["region"]) > 3, "captions differ in number from step to step"
    monkeypatch.setattr(module, "FEW_SHAPES", ("cpu",))
    padded = shapes_of_ten_steps(processor, monkeypatch)
    assert 1 <= len(padded["self"]) <= 2 and 1 <= len(padded["region"]) <= 2


@pytest.mark.parametrize(
    ("lengths", "most", "shape"),
    [([3], 24, (32, 8)), ([8] * 32, 24, (32, 8)), ([9] * 33, 24, (64, 16)), ([22], 22, (32, 22)), ([20], 48, (32, 24))],
)
def test_shapes_are_powers_of_two_and_multiples_that_hold_the_captions(
    lengths: list[int], most: int, shape: tuple[int, int]
) -> None:
    assert few_shapes([(range(length), 1.0) for length in lengths], most) == shape
