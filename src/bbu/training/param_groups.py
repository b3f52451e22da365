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
    """Groups for AdamW: weight decay applies to the matrices of layers.

    It does not to vectors (norms, biases), nor to what is looked up or starts a state: embeddings, learned queries and
    boxes, positions. A row of these rarely has a gradient, and would decay in between.
    """
    looked_up = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    result: list[dict[str, Any]] = []
    for group, parameters in assign_groups(model).items():
        decays = {
            name: parameter.ndim > 1 and name.endswith(".weight") and id(parameter) not in looked_up
            for name, parameter in parameters.items()
        }
        decayed = [parameter for name, parameter in parameters.items() if decays[name]]
        kept = [parameter for name, parameter in parameters.items() if not decays[name]]
        for members, decay in ((decayed, weight_decay), (kept, 0.0)):
            if members:
                result.append({"params": members, "lr": getattr(rates, group), "weight_decay": decay, "group": group})
    return result
