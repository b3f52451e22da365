"""AdamW on bfloat16 weights is torch's AdamW on their float32 masters, to the bit; states are kept as they are."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW

from bbu.config import TrainingConfig
from bbu.errors import ConfigError
from bbu.training import optimizers
from bbu.training.optimizers import MasterAdamW, build_optimizer, join, take_apart

SHAPES = [(7, 33), (129,), (64, 64), (1,)]
OPTIONS: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    """The same values in every dtype: those of bfloat16."""
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(shape).bfloat16().to(dtype)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    torch.manual_seed(100 + step)
    return [torch.randn(shape).bfloat16() for shape in SHAPES]


def masters(optimizer: MasterAdamW, own: list[nn.Parameter]) -> list[torch.Tensor]:
    return [
        join(weight.data.view(-1), optimizer.state[weight]["remainder"].view(-1)).view(weight.shape) for weight in own
    ]


def run(optimizer: Any, own: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for weight, gradient in zip(own, gradients(step), strict=True):
            weight.grad = gradient.to(weight.dtype)
        optimizer.step()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True), min_size=1))
def test_a_master_is_its_rounded_weight_and_the_remainder(values: list[float]) -> None:
    numbers = torch.tensor(values, dtype=torch.float32)
    numbers = numbers[numbers.abs() < 3.38e38]  # above, bfloat16 rounds to infinity
    rounded, remainder = take_apart(numbers)
    assert torch.equal(join(rounded, remainder).view(torch.int32), numbers.view(torch.int32))
    error, other = (rounded.float() - numbers).abs(), (numbers.bfloat16().float() - numbers).abs()
    assert torch.equal(error, other), "not the nearest bfloat16"


@pytest.mark.parametrize("at_once", [2**25, 50], ids=["at once", "in slices"])
def test_steps_equal_those_of_torch_on_float32_masters(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "AT_ONCE", at_once)
    ours, theirs = weights(torch.bfloat16), weights(torch.float32)
    mine = MasterAdamW(ours, **OPTIONS)
    run(mine, ours, range(20))
    run(AdamW(theirs, fused=True, **OPTIONS), theirs, range(20))
    for ours_one, theirs_one, master in zip(ours, theirs, masters(mine, ours), strict=True):
        torch.testing.assert_close(master, theirs_one.data, rtol=1e-6, atol=1e-8)
        assert torch.equal(ours_one.data, master.bfloat16())


def test_small_steps_are_not_rounded_away() -> None:
    """One step is a hundredth of the distance to the next bfloat16."""
    weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], lr=4e-5, weight_decay=0.0)
    for _ in range(200):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.tolist() == pytest.approx([1 - 200 * 4e-5] * 8, abs=2**-8)
    assert (weight < 1).all()


def test_float32_weights_beside_them_take_the_same_step_as_with_torch() -> None:
    ours, theirs = weights(torch.float32), weights(torch.float32)
    run(MasterAdamW(ours, **OPTIONS), ours, range(5))
    run(AdamW(theirs, fused=True, **OPTIONS), theirs, range(5))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_step_that_is_left_out_changes_nothing() -> None:
    own = weights(torch.bfloat16)
    optimizer = MasterAdamW(own, **OPTIONS)
    run(optimizer, own, range(2))
    before = copy.deepcopy(([weight.data for weight in own], optimizer.state_dict()))
    optimizer.found_inf = torch.tensor(1.0)
    run(optimizer, own, range(2, 3))
    after = ([weight.data for weight in own], optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    optimizer.found_inf = torch.tensor(0.0)
    run(optimizer, own, range(2, 3))
    assert not torch.equal(own[0], before[0][0])


def test_loaded_states_keep_their_dtypes_and_the_run_goes_on_with_the_same_bits() -> None:
    own = weights(torch.bfloat16)
    optimizer = MasterAdamW(own, **OPTIONS)
    run(optimizer, own, range(3))
    others = [nn.Parameter(weight.data.clone()) for weight in own]
    other = MasterAdamW(others, **OPTIONS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.state[others[0]]["exp_avg"].dtype == torch.float32
    run(optimizer, own, range(3, 6))
    run(other, others, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))
    torch.testing.assert_close(other.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


def test_a_weight_without_a_gradient_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = weights(torch.bfloat16)[:2]
    optimizer = MasterAdamW([first, second], **OPTIONS)
    before = second.data.clone()
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert torch.equal(second, before) and second not in optimizer.state


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_8_bit_states_without_the_package_are_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"^training\.optimizer=adamw_8bit: needs the package bitsandbytes; pip"):
        build_optimizer([{"params": weights(torch.float32)}], TrainingConfig(optimizer="adamw_8bit"), [])


def test_8_bit_states_follow_torch_and_leave_out_a_step() -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start = torch.randn(128, 128)
    embedding = nn.Embedding(128, 128)
    large, looked_up = nn.Parameter(start.clone()), embedding.weight
    training = TrainingConfig(optimizer="adamw_8bit")
    optimizer: Any = build_optimizer([{"params": [large, looked_up], "lr": 1e-2}], training, [embedding])
    exact = nn.Parameter(start.clone())
    theirs = AdamW([exact], lr=1e-2, betas=(0.9, training.adam_beta2), fused=True)
    for _ in range(20):
        gradient = torch.randn(128, 128)
        large.grad, exact.grad, looked_up.grad = gradient.clone(), gradient.clone(), gradient.clone()
        optimizer.step()
        theirs.step()
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    assert optimizer.state[looked_up]["state1"].dtype == torch.float32
    moved, error = (exact - start).abs().mean(), (large - exact).abs().mean()
    assert error < 0.1 * moved
    before = large.data.clone()
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(large, before)
