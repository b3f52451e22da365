"""Five learning rates: every trainable parameter in exactly one group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bbu.config import GROUP_NAMES, LearningRates
from bbu.training.param_groups import assign_groups, optimizer_groups
from tests.tiny import FAMILIES, build_tiny, mixed_samples, tiny_config, tiny_processor, tiny_trainer

RATES = LearningRates(vision=1e-5, merger=2e-5, llm=3e-5, detection=4e-5, adapter=5e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_exactly_one_group(family: str) -> None:
    model = build_tiny(tiny_config(model={"family": family}))
    groups = assign_groups(model)
    assert tuple(groups) == GROUP_NAMES
    assert all(groups.values()), "a group is empty"
    members = [id(parameter) for group in groups.values() for parameter in group.values()]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_are_in_their_documented_groups(family: str) -> None:
    model = build_tiny(tiny_config(model={"family": family}))
    groups = assign_groups(model)
    owner = {id(parameter): group for group, members in groups.items() for parameter in members.values()}
    assert {owner[id(p)] for p in model.detection_head.parameters()} == {"detection"}
    assert {owner[id(p)] for p in model.caption_decoder.parameters()} == {"detection"}
    for part in (model.vision_adapters, model.language_adapter, model.level_adapter):
        assert {owner[id(p)] for p in part.parameters()} == {"adapter"}
    assert owner[id(model.backbone.token_embedding.weight)] == "llm"
    assert owner[id(model.backbone.lm_head_weight)] == "llm"
    assert set(model.backbone.group_prefixes.values()) == {"vision", "merger", "llm"}


def test_qwens_tower_and_projector_are_told_apart() -> None:
    model = build_tiny(tiny_config())
    owner = {id(p): group for group, members in assign_groups(model).items() for p in members.values()}
    visual = model.backbone.vlm.model.visual
    assert {owner[id(p)] for p in visual.merger.parameters()} == {"merger"}
    for part in (visual.blocks, visual.patch_embed):
        assert {owner[id(p)] for p in part.parameters()} == {"vision"}
    assert {owner[id(p)] for p in model.backbone.vlm.model.language_model.parameters()} == {"llm"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_embedding_is_counted_once(family: str) -> None:
    model = build_tiny(tiny_config(model={"family": family}))
    assert model.backbone.lm_head_weight is model.backbone.token_embedding.weight
    held = [p for group in optimizer_groups(model, RATES, 0.1) for p in group["params"]]
    assert sum(p is model.backbone.lm_head_weight for p in held) == 1
    assert sum(p.numel() for p in held) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_decay_spares_vectors_and_what_is_looked_up(family: str) -> None:
    """A row of an embedding, a learned query or a position has few gradients, and would decay in between."""
    model = build_tiny(tiny_config(model={"family": family}))
    decayed = {id(p) for group in optimizer_groups(model, RATES, 0.1) if group["weight_decay"] for p in group["params"]}
    spared = {name for name, parameter in model.named_parameters() if id(parameter) not in decayed}
    matrices = {name for name, parameter in model.named_parameters() if name in spared and parameter.ndim > 1}
    own = {name for name in matrices if not name.startswith("backbone.")}
    assert own == {
        "level_adapter.weight", "detection_head.learned_queries", "detection_head.learned_boxes",
        "caption_decoder.position",
    }  # fmt: skip
    assert model.backbone.token_embedding.weight.ndim == 2 and id(model.backbone.token_embedding.weight) not in decayed
    assert all(parameter.ndim > 1 for parameter in model.parameters() if id(parameter) in decayed)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    tied = id(model.backbone.lm_head_weight)
    assert all(id(m.weight) in decayed for m in linear if id(m.weight) != tied)


def test_unknown_parameters_are_an_error_that_lists_their_names() -> None:
    model = build_tiny(tiny_config())
    model.forgotten = nn.Linear(2, 2)
    model.backbone.vlm.model.stray = nn.Parameter(torch.zeros(1))
    with pytest.raises(KeyError) as caught:
        assign_groups(model)
    for name in ("forgotten.weight", "forgotten.bias", "backbone.vlm.model.stray"):
        assert name in str(caught.value)
    for name in ("forgotten.weight", "backbone.vlm.model.stray"):
        with pytest.raises(KeyError, match="no learning-rate group"):
            model.group_of(name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("group", GROUP_NAMES)
def test_freezing_a_group_freezes_that_group_alone(family: str, group: str) -> None:
    before = assign_groups(build_tiny(tiny_config(model={"family": family})))
    model = build_tiny(tiny_config(model={"family": family, "freeze": [group]}))
    after = assign_groups(model)
    assert after[group] == {}
    for other in GROUP_NAMES:
        if other != group:
            assert after[other].keys() == before[other].keys()
    assert {p["group"] for p in optimizer_groups(model, RATES, 0.1)} == set(GROUP_NAMES) - {group}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", [["llm"], ["vision"], ["llm", "vision"]])
def test_lora_weights_belong_to_the_group_of_the_module_they_adapt(family: str, parts: list[str]) -> None:
    model = build_tiny(tiny_config(model={"family": family, "lora.parts": parts, "lora.rank": 2}))
    groups = assign_groups(model)
    for part in ("llm", "vision"):
        names = groups[part]
        if part in parts:
            assert names and all("lora_" in name for name in names), f"{part}: what is adapted must stand still"
        else:
            assert names and not any("lora_" in name for name in names)
    for whole in ("merger", "detection", "adapter"):
        assert groups[whole] and not any("lora_" in name for name in groups[whole])
    for name, _ in model.named_parameters():
        assert model.group_of(name) in GROUP_NAMES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainers_optimizer_has_the_configured_rates(family: str, tmp_path: Path) -> None:
    rates = {f"learning_rates.{group}": getattr(RATES, group) for group in GROUP_NAMES}
    config = tiny_config(model={"family": family}, training={"weight_decay": 0.25, **rates})
    processor = tiny_processor(family)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor)[:2], processor)
    optimizer = trainer.create_optimizer()
    model = trainer.unwrapped.model
    seen = set()
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(getattr(RATES, group["group"]))
        for parameter in group["params"]:
            assert id(parameter) not in seen
            seen.add(id(parameter))
            assert group["weight_decay"] in ((0.25, 0.0) if parameter.ndim > 1 else (0.0,)), "vectors must not decay"
    owner = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        assert {model.group_of(owner[id(p)]) for p in group["params"]} == {group["group"]}
    assert seen == {id(p) for p in model.parameters()}
