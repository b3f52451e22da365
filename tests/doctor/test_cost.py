"""Parameters counted without memory are those of the model that training builds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bbu.config import Config
from bbu.data.packing.planner import Lengths
from bbu.doctor.cost import PackSizes, memory_report, model_size, pack_sizes, steps_report
from bbu.doctor.report import size_text
from bbu.models.build import build_model
from bbu.records import ObjectRow, Row
from tests.tiny import DEFAULT, FAMILIES, tiny_config, tiny_processor, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"freeze": ["vision"]}, {"lora.parts": ["llm"], "lora.rank": 4}])
def test_weights_are_counted_as_they_are_built(family: str, changes: dict[str, Any]) -> None:
    config = tiny_config(model={"family": family, **changes})
    tokenizer = tiny_tokenizer(family)
    model = build_model(config, tokenizer, device=torch.device("cpu"), dtype=torch.float32)
    size = model_size(config, tokenizer)
    assert size is not None
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_model_that_is_not_here_has_no_size() -> None:
    config = tiny_config(model={"path": "nobody/nothing"})
    assert model_size(config, tiny_tokenizer()) is None


TOKENS, PATCHES = [400, 420, 600], [120, 160, 320]  # of three samples with two photos each


def longest(family: str = DEFAULT) -> Lengths:
    pixels = np.array(PATCHES) * tiny_processor(family).photo_plan.patch_size ** 2
    return Lengths(np.array(TOKENS), pixels, np.array([2, 2, 2]), np.zeros(3))


def memory(config: Config) -> dict[str, Any]:
    family = config.model.family
    size = model_size(config, tiny_tokenizer(family))
    assert size is not None
    packs = pack_sizes(config, longest(family))
    assert packs is not None
    return memory_report(config, size, packs, tiny_processor(config.model.family))


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_follows_the_stated_formula(family: str) -> None:
    config = tiny_config(model={"family": family})  # vision 2 x 32 wide, text 2 x 64 wide, batch of 2
    facts = memory(config)
    assert facts["weights_bytes"] == facts["gradients_bytes"] == 4 * facts["parameters"]
    assert facts["optimizer_bytes"] == 8 * facts["trainable"]
    patches, pack = 160 + 320, 420 + 600
    assert facts["activations_bytes"] == 2 * 34 * (patches * 32 * 2 + pack * 64 * 2)  # 2: float32
    assert facts["photos_bytes"] == patches * tiny_processor(family).photo_plan.patch_width * 4


def test_a_frozen_tower_keeps_nothing() -> None:
    config = tiny_config(model={"freeze": ["vision"]})
    assert memory(config)["activations_bytes"] == 2 * 34 * (420 + 600) * 64 * 2


def test_nothing_is_kept_before_the_first_weight_that_learns() -> None:
    assert memory(tiny_config(model={"freeze": ["vision", "merger", "llm"]}))["activations_bytes"] == 0
    assert memory(tiny_config(model={"freeze": ["vision", "llm"]}))["activations_bytes"] > 0


def test_planned_packs_are_those_of_the_planner() -> None:
    config = tiny_config()
    config.training.pack_tokens = 1050  # 420 + 600, then 400
    packs = pack_sizes(config, longest())
    assert packs == PackSizes(1.5, 710.0, 1020, int(longest().pixels[1:].sum()))
    rows = [Row((f"{n}.jpg",), (), 9, 9) for n in range(3)]
    report = steps_report(config, rows, packs)
    assert (report["samples_per_step"], report["steps_per_epoch"]) == (1.5, 2.0)
    assert steps_report(config, rows, None)["samples_per_step"] is None  # not known


def test_a_budget_of_photos_limits_planned_packs() -> None:
    config = tiny_config()
    config.training.pack_images = 2
    packs = pack_sizes(config, longest())
    assert packs is not None and (packs.samples, packs.most_tokens) == (1, 600)


def test_recomputation_and_loader_processes_change_it_as_they_should() -> None:
    plain, config = memory(tiny_config()), tiny_config()
    config.model.gradient_checkpointing, config.data.workers = "full", 3
    changed = memory(config)
    assert changed["activations_bytes"] < plain["activations_bytes"]
    assert changed["photos_bytes"] == 7 * plain["photos_bytes"]


def test_an_epoch_is_as_long_as_the_sampling_makes_it() -> None:
    rows = [
        Row((f"{n}.jpg",), (ObjectRow("rare" if n == 0 else "common", "bbox_2d", (0, 0, 9, 9)),), 9, 9)
        for n in range(40)
    ]
    config = tiny_config()
    assert steps_report(config, rows, None)["steps_per_epoch"] == 20
    config.data.sampling.method = "repeat_factor"
    assert steps_report(config, rows, None)["steps_per_epoch"] == 20.5  # the rare photo comes twice


def test_sizes_are_written_for_people() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 15.2e9)] == ["0 B", "999 B", "1 KB", "15.2 GB"]
