"""A frozen tower computes the same and stores nothing for a backward pass that never reaches it."""

from __future__ import annotations

import pytest
import torch

from bbu.losses.weighting import TERMS
from bbu.models.build import freeze
from bbu.models.wrapper import DetectionVLM
from bbu.training.objective import DetectionObjective
from tests.tiny import (
    FAMILIES,
    conversation,
    mixed_samples,
    pack,
    run_backbone,
    tiny_config,
    tiny_model,
    tiny_processor,
)


def saved_tensors(model: DetectionVLM) -> int:
    """Number of tensors that the backbone's forward saves for its backward pass."""
    kept: list[torch.Size] = []

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        run_backbone(model.backbone, [conversation(model.backbone, 1, 4, [(112, 84), (56, 56)])])
    return len(kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_tower_keeps_no_activations_however_deep_it_is(family: str) -> None:
    shallow, deep = (tiny_model(family, model={"scratch.vision_depth": depth}) for depth in (2, 5))
    assert saved_tensors(deep) > saved_tensors(shallow)
    for model in (shallow, deep):
        freeze(model, ["vision"])
        # what stands before the tower may want gradients; the tower must not answer
        model.backbone.register_forward_pre_hook(
            lambda _, inputs: (*inputs[:2], inputs[2].requires_grad_(), *inputs[3:])
        )
    assert saved_tensors(deep) == saved_tensors(shallow) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_tower_does_not_change_the_other_gradients(family: str) -> None:
    found = []
    for frozen in ([], ["vision"], ["vision", "merger"]):
        model = tiny_model(family)
        freeze(model, frozen)
        sums = DetectionObjective(model, tiny_config().loss)(**pack(model, mixed_samples(tiny_processor(family))))
        loss = torch.stack([sums[term].double() for term in TERMS]).sum()
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
        assert {model.group_of(name) for name in found[-1][1]} == {
            "vision",
            "merger",
            "llm",
            "detection",
            "adapter",
        } - {*frozen}
        assert all(gradient is not None for gradient in found[-1][1].values())
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-9, atol=1e-9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, found[0][1][name], rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}"
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_without_photos_leaves_a_frozen_tower_alone(family: str) -> None:
    model = tiny_model(family)
    freeze(model, ["vision"])
    run_backbone(model.backbone, [conversation(model.backbone, 1, 5)]).hidden_TD.sum().backward()
    touched = {model.group_of(name) for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"merger", "llm"}
