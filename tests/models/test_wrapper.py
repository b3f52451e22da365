"""Without detection the model is its backbone, and nothing else learns or computes."""

from __future__ import annotations

import pytest
import torch

from bbu.config import LearningRates
from bbu.families.base import Backbone
from bbu.training.param_groups import assign_groups, optimizer_groups
from tests.tiny import FAMILIES, mixed_samples, pack, run_model, tiny_model, tiny_processor


@pytest.mark.parametrize("family", FAMILIES)
def test_without_detection_no_parameter_lies_outside_the_backbone(family: str) -> None:
    model, whole = tiny_model(family, **{"model": {"detection": None}}), tiny_model(family)
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for name, _ in whole.named_parameters() if name.startswith("backbone.")}
    assert [name for name, _ in model.named_children()] == ["backbone"] and isinstance(model.backbone, Backbone)
    groups = {group for group, members in assign_groups(model).items() if members}
    assert groups == {"vision", "merger", "llm"}
    assert {group["group"] for group in optimizer_groups(model, LearningRates(), 0.01)} == groups


@pytest.mark.parametrize("family", FAMILIES)
def test_without_detection_the_hidden_states_are_the_same_and_nothing_is_detected(family: str) -> None:
    whole = tiny_model(family)
    model = tiny_model(family, **{"model": {"detection": None}})
    model.backbone.load_state_dict(whole.backbone.state_dict())
    with torch.no_grad():
        expected = run_model(whole, pack(whole, mixed_samples(tiny_processor(family)))).hidden_TD
        found = run_model(model, pack(model, mixed_samples(tiny_processor(family, detection=False))))
    assert torch.equal(found.hidden_TD, expected)
    assert len(found.layers) == len(found.denoising_layers) == 0 and found.proposal_counts == []
    assert found.memory.image_token_counts == []
