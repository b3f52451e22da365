"""Every parameter takes part in every step; otherwise data-parallel ranks would deadlock."""

from __future__ import annotations

import pytest
import torch

from bbu.losses.weighting import TERMS
from bbu.models.build import build_model
from bbu.training.objective import DetectionObjective
from tests.tiny import (
    FAMILIES,
    build_tiny,
    conversation,
    conversation_samples,
    mixed_samples,
    pack,
    run_backbone,
    tiny_config,
    tiny_processor,
    tiny_sample,
    tiny_tokenizer,
)


def without_gradient(objective: DetectionObjective) -> list[str]:
    return [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [[], ["llm", "vision"]], ids=["whole", "lora"])
@pytest.mark.parametrize("parts", [3, 0], ids=["boxes", "no boxes"])
def test_every_parameter_has_a_gradient(family: str, lora: list[str], parts: int) -> None:
    config = tiny_config(model={"family": family, "lora.parts": lora})
    objective = DetectionObjective(build_tiny(config), config.loss)
    batch = pack(objective.model, [tiny_sample(tiny_processor(family), 1, parts=parts)])
    sums = objective(**batch)
    torch.stack([sums[term].double() for term in TERMS]).sum().backward()
    assert without_gradient(objective) == []
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    if not parts:
        assert all(float(sums[term].detach()) == 0 for term in ("bbox_l1", "bbox_giou", "caption"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [[], ["llm", "vision"]], ids=["whole", "lora"])
@pytest.mark.parametrize("talks", [[0], [1, 2]], ids=["text alone", "photos"])
def test_every_parameter_has_a_gradient_in_a_step_without_detection(
    family: str, lora: list[str], talks: list[int]
) -> None:
    config = tiny_config(model={"family": family, "lora.parts": lora})
    objective = DetectionObjective(build_tiny(config), config.loss)
    samples = conversation_samples(tiny_processor(family))
    sums = objective(**pack(objective.model, [samples[number] for number in talks]))
    assert [term for term in TERMS if float(sums[term].detach())] == ["replay_lm"]
    torch.stack([sums[term].double() for term in TERMS]).sum().backward()
    assert without_gradient(objective) == []
    moved = {
        objective.model.group_of(name.removeprefix("model.")) for name, p in objective.named_parameters() if moves(p)
    }
    assert moved == ({"llm"} if talks == [0] else {"llm", "merger", "vision"})


def moves(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().max() > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_moves_every_parameter(family: str) -> None:
    """A gradient of zero is not enough: such a parameter would never learn."""
    config = tiny_config(model={"family": family})
    objective = DetectionObjective(build_tiny(config), config.loss)
    sums = objective(**pack(objective.model, mixed_samples(tiny_processor(family))))
    torch.stack([sums[term].double() for term in TERMS]).sum().backward()
    still = {name for name, p in objective.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    # key biases shift all scores of a softmax alike; learned queries step in for photos of few tokens alone
    allowed = {name for name in still if "learned_" in name or name.endswith(("cross_key.bias", "k_proj.bias"))}
    assert still == allowed


@pytest.mark.parametrize("family", FAMILIES)
def test_learned_queries_and_their_boxes_learn_from_a_photo_of_few_tokens(family: str) -> None:
    """They fill up where a photo has fewer tokens than there are queries."""
    config = tiny_config(model={"family": family, "detection.queries": 100})
    objective = DetectionObjective(build_tiny(config), config.loss)
    sample = tiny_sample(tiny_processor(family), 1, parts=3)
    batch = pack(objective.model, [sample])
    sums = objective(**batch)
    torch.stack([sums[term].double() for term in TERMS]).sum().backward()
    head = objective.model.detection_head
    filled = 100 - objective.captioned(batch, 0)[0].image_token_counts[0]
    assert 0 < filled < 100
    for learned in (head.learned_queries, head.learned_boxes):
        moved = learned.grad.abs().amax(-1) > 0  # type: ignore[union-attr]
        assert moved.tolist() == [False] * (100 - filled) + [True] * filled


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_takes_part_in_a_step_without_photos(family: str) -> None:
    backbone = build_tiny(tiny_config(model={"family": family})).backbone
    run_backbone(backbone, [conversation(backbone, 1, 5)]).hidden_TD.sum().backward()
    tower = [p for name, p in backbone.vlm.named_parameters() if backbone.group_of(name) in ("vision", "merger")]
    assert tower and all(p.grad is not None and p.grad.abs().max() == 0 for p in tower)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradients(family: str) -> None:
    found = []
    for recompute in ("none", "selective", "full"):
        config = tiny_config(model={"family": family, "gradient_checkpointing": recompute})
        model = (
            build_model(config, tiny_tokenizer(family), device=torch.device("cpu"), dtype=torch.float32)
            .double()
            .train()
        )
        sums = DetectionObjective(model, config.loss)(**pack(model, [tiny_sample(tiny_processor(family), 2, parts=3)]))
        torch.stack([sums[term].double() for term in TERMS]).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for gradients in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(
                gradients[name], gradient, rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}"
            )
