"""Parameter groups with their own learning rates: vision, merger, llm, detection, adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from bbu.config import GROUP_NAMES, LearningRates
from bbu.models.wrapper import DetectionVLM


def assign_groups(model: DetectionVLM) -> dict[str, dict[str, nn.Parameter]]:
    """Group → parameter name → trainable parameter; each is in exactly one group, a tied weight appears once.

    Raises:
        KeyError: parameters belong to no group; the message lists their names.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {group: {} for group in GROUP_NAMES}
    ungrouped = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        try:
            groups[model.group_of(name)][name] = parameter
        except KeyError:
            ungrouped.append(name)
    if ungrouped:
        raise KeyError(f"parameters without a learning-rate group: {', '.join(ungrouped)}")
    return groups


def optimizer_groups(model: DetectionVLM, rates: LearningRates, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: weight decay applies to matrices, not to vectors (norms, biases)."""
    result: list[dict[str, Any]] = []
    for group, parameters in assign_groups(model).items():
        matrices = [p for p in parameters.values() if p.ndim > 1]
        vectors = [p for p in parameters.values() if p.ndim <= 1]
        for members, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if members:
                result.append({"params": members, "lr": getattr(rates, group), "weight_decay": decay, "group": group})
    return result
