"""What is computed again in the backward pass: everything of a block, or what is cheap. Equal gradients:
tests/training/test_every_parameter_learns.py."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bbu.config import LoraConfig
from bbu.models.acceleration.checkpointing import WHOLE, chosen_products
from bbu.models.build import build_model
from tests.tiny import FAMILIES, conversation, run_backbone, tiny_config, tiny_tokenizer

PRODUCTS = ("aten::mm", "aten::addmm")


class Count(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def calls_of_a_step(family: str, how: str) -> Counter[str]:
    """Operators of the backbone's forward and backward pass, in float32."""
    config = tiny_config(model={"family": family, "gradient_checkpointing": how})
    model = build_model(config, tiny_tokenizer(family), device=torch.device("cpu"), dtype=torch.float32).train()
    sample = conversation(model.backbone, 1, 6, [(112, 84)])
    with Count() as count:
        run_backbone(model.backbone, [sample]).hidden_TD.square().sum().backward()
    return count.calls


@pytest.mark.parametrize("family", FAMILIES)
def test_selective_repeats_neither_attention_nor_products_but_the_small_ones(family: str) -> None:
    none, selective, full = (calls_of_a_step(family, how) for how in ("none", "selective", "full"))
    attention = [name for name in none if "scaled_dot_product" in name and "backward" not in name]
    assert attention
    blocks = 4  # two of the tower, two of the language model
    for name in attention:
        assert selective[name] == none[name] and full[name] == none[name] + blocks
    products = [sum(calls[name] for name in PRODUCTS) for calls in (none, selective, full)]
    keys_and_values = 2 * 2  # of two text layers, half as wide as the queries
    assert products[1] == products[0] + keys_and_values
    assert products[2] >= products[0] + 3 * blocks
    norms = [calls["aten::rsqrt"] for calls in (none, selective, full)]
    assert norms[1] == norms[2] == norms[0] + 2 * blocks, "norms are cheap and not kept"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["selective", "full"])
def test_dropout_in_low_rank_weights_is_drawn_once(family: str, how: str) -> None:
    found = []
    for setting in ("none", how):
        config = tiny_config(model={"family": family, "gradient_checkpointing": setting})
        config.model.lora = LoraConfig(["llm", "vision"], rank=4, dropout=0.5)
        model = (
            build_model(config, tiny_tokenizer(family), device=torch.device("cpu"), dtype=torch.float32)
            .double()
            .train()
        )
        torch.nn.init.normal_(next(p for name, p in model.named_parameters() if "lora_B" in name))
        torch.manual_seed(3)
        run_backbone(model.backbone, [conversation(model.backbone, 1, 6, [(112, 84)])]).hidden_TD.sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any("lora_A" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}")


def tensors_in_use() -> dict[int, int]:
    """Address → bytes of what Python holds; tensors that are kept for a recomputation are among them."""
    found = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}


def kept_of_a_step(family: str, budget: float | None) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that the forward pass leaves behind, and the gradients, in float64."""
    settings = {"family": family, "gradient_checkpointing": "selective", "activation_budget": budget}
    config = tiny_config(model=settings)
    model = build_model(config, tiny_tokenizer(family), device=torch.device("cpu"), dtype=torch.float32)
    model = model.double().train()
    sample = conversation(model.backbone, 1, 6, [(112, 84)])
    gc.collect()
    before = tensors_in_use()
    hidden_TD = run_backbone(model.backbone, [sample]).hidden_TD
    kept = sum(size for address, size in tensors_in_use().items() if address not in before)
    hidden_TD.square().sum().backward()
    return kept, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_keeps_less_and_changes_no_gradient(family: str) -> None:
    kept, gradients = zip(*(kept_of_a_step(family, budget) for budget in (None, 1.0, 0.6, 0.3, 0.01)), strict=True)
    assert kept[0] == pytest.approx(kept[1], rel=0.01) and kept[1] > kept[2] > kept[3] > kept[4], kept
    for found in gradients[1:]:
        assert found.keys() == gradients[0].keys()
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, gradients[0][name], rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}"
            )


def test_a_budget_takes_the_widest_inputs_first_and_what_still_fits() -> None:
    """The sizes of Qwen2.5-VL-3B's text layers: attention 2,048 wide, products to 2,048 twice, to 11,008 twice."""
    layers = {"q_proj": (2048, 2048), "k_proj": (2048, 256), "v_proj": (2048, 256), "o_proj": (2048, 2048)}
    layers |= {"gate_proj": (2048, 11008), "up_proj": (2048, 11008), "down_proj": (11008, 2048)}
    with torch.device("meta"):
        block = torch.nn.ModuleDict({name: torch.nn.Linear(*sizes) for name, sizes in layers.items()})
    attention, square, wide = WHOLE, (32, 32), (32, 172)
    assert chosen_products(block, 1.0) == {attention: 1, square: 2, wide: 2}
    assert chosen_products(block, 0.5) == {attention: 1, wide: 1}
    assert chosen_products(block, 0.25) == {attention: 1, square: 2}
    assert chosen_products(block, 0.01) == {}
