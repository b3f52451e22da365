"""LoRA (Hu et al. 2022, arXiv:2106.09685) through peft, on the language model and the vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from bbu.config import LoraConfig
from bbu.errors import CheckpointError
from bbu.models.wrapper import DetectionVLM

_ADAPTER = "default"


def add_lora(model: DetectionVLM, config: LoraConfig) -> None:
    """Add LoRA weights to the linear layers of the chosen parts and freeze these parts' own weights.

    The new weights belong to the learning-rate group of the module they adapt.
    """
    backbone = model.backbone
    targets = "|".join(f"(?:{backbone.lora_targets[part]})" for part in config.parts)
    before = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    peft_config = PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets
    )
    inject_adapter_in_model(peft_config, backbone.vlm, adapter_name=_ADAPTER)
    for name, parameter in backbone.named_parameters():  # peft froze everything; unfreeze parts without LoRA
        original = name.replace(".base_layer.", ".")
        adapted = backbone.group_of(name.removeprefix("vlm.")) in config.parts
        parameter.requires_grad_("lora_" in name or (original in before and not adapted))


def has_lora(model: DetectionVLM) -> bool:
    """Whether any layer has LoRA weights."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def learned_names(model: DetectionVLM) -> set[str]:
    """Names in ``backbone.vlm`` of the weights that learn, LoRA's and those of parts without LoRA."""
    return {name for name, parameter in model.backbone.vlm.named_parameters() if parameter.requires_grad}


def load_learned(model: DetectionVLM, learned: Mapping[str, torch.Tensor], source: Path) -> None:
    """Load exactly the backbone weights that learn.

    Raises:
        CheckpointError: a tensor of ``source`` is missing, has another shape, or is not one of these.
    """
    own = {n: p for n, p in model.backbone.vlm.named_parameters() if n in learned_names(model)}
    faults = [f"{name} is missing" for name in own if name not in learned]
    faults += [f"{name} does not learn here" for name in learned if name not in own]
    faults += [
        f"{name} has shape {tuple(learned[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in learned and learned[name].shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{source}: does not fit the model: {faults[0]}{more}; restore model.lora and model.freeze"
        )
    model.backbone.vlm.load_state_dict(learned, strict=False)


def merged_state(model: DetectionVLM, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Backbone state with LoRA weights merged, under the stock parameter names.

    Args:
        state: ``backbone.vlm``'s state dict, with names as in ``model.backbone.vlm.state_dict()``.
    """
    merged = {}
    layers = {name: module for name, module in model.backbone.vlm.named_modules() if isinstance(module, LoraLayer)}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = layers[name.removesuffix(".base_layer.weight")]
            delta = layer.get_delta_weight(_ADAPTER)  # type: ignore[attr-defined]
            value = (value.float() + delta.to(value.device).float()).to(value.dtype)
        merged[name.replace(".base_layer.", ".")] = value
    return merged
