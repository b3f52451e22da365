"""LoRA (Hu et al. 2022, arXiv:2106.09685) through peft, on the language model and the vision tower.

What a run with LoRA learns in the backbone is kept in peft's own files, beside the tokenizer:

    adapter_config.json           LoRA's settings, and the base model: its path
    adapter_model.safetensors     LoRA weights, and whole the weights of parts without LoRA that learned (the merger)

``peft.PeftModel.from_pretrained(base, folder)`` reads them too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from torch import nn

from bbu.config import LoraConfig
from bbu.errors import CheckpointError
from bbu.families.base import Backbone
from bbu.models.wrapper import DetectionVLM

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names
_ADAPTER = "default"
_PREFIX = "base_model.model."  # of the names in peft's files
_COMPARED = 64  # first numbers of a tensor by which base models are told apart


def add_lora(model: DetectionVLM, config: LoraConfig, base: str = "") -> None:
    """Add LoRA weights to the linear layers of the chosen parts and freeze these parts' own weights.

    The new weights belong to the learning-rate group of the module they adapt.

    Args:
        base: folder or hub name of the weights that are adapted; empty: random ones.
    """
    backbone = model.backbone
    before = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=lora_targets(backbone, config.parts),
        base_model_name_or_path=str(Path(base).resolve()) if base and Path(base).is_dir() else base,
    )
    inject_adapter_in_model(peft_config, backbone.vlm, adapter_name=_ADAPTER)
    for name, parameter in backbone.named_parameters():  # peft froze everything; unfreeze parts without LoRA
        original = name.replace(".base_layer.", ".")
        adapted = backbone.group_of(name.removeprefix("vlm.")) in config.parts
        parameter.requires_grad_("lora_" in name or (original in before and not adapted))


def lora_targets(backbone: Backbone, parts: Iterable[str]) -> str:
    """Regular expression of the names in ``backbone.vlm`` of the linear layers that LoRA adapts in these parts."""
    return "|".join(f"(?:{backbone.lora_targets[part]})" for part in parts)


def has_lora(model: DetectionVLM) -> bool:
    """Whether any layer has LoRA weights."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


# ---------------------------------------------------------------- adapters on disk


def save_adapter(folder: Path, model: DetectionVLM, state: Mapping[str, torch.Tensor]) -> None:
    """Write the backbone weights that learn, in peft's files.

    Args:
        state: ``backbone.vlm``'s state dict, with names as in ``model.backbone.vlm.state_dict()``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = _learned_names(model)
    save_file({peft_name: state[name].contiguous() for name, peft_name in names.items()}, folder / ADAPTER_FILE)
    _peft_config(model).save_pretrained(str(folder))


def load_adapter(model: DetectionVLM, folder: Path) -> None:
    """Load exactly the backbone weights that learn into a model with LoRA.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not one of these.
    """
    source, own = folder / ADAPTER_FILE, model.backbone.vlm.state_dict()
    learned, names = load_file(source), _learned_names(model)
    expected = {peft_name: own[name].shape for name, peft_name in names.items()}
    faults = [f"{name} is missing" for name in expected if name not in learned]
    faults += [f"{name} does not learn here" for name in learned if name not in expected]
    faults += [
        f"{name} has shape {tuple(learned[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in learned and learned[name].shape != shape
    ]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{source}: does not fit the model: {faults[0]}{more}; restore model.lora and model.freeze"
        )
    model.backbone.vlm.load_state_dict({name: learned[peft] for name, peft in names.items()}, strict=False)


def _learned_names(model: DetectionVLM) -> dict[str, str]:
    """Weights that learn, LoRA's and those of parts without LoRA: name in ``backbone.vlm`` → name in peft's files."""
    learned = [name for name, parameter in model.backbone.vlm.named_parameters() if parameter.requires_grad]
    return {name: f"{_PREFIX}{name.replace(f'.{_ADAPTER}.', '.')}" for name in learned}


def _peft_config(model: DetectionVLM) -> PeftLoraConfig:
    config: PeftLoraConfig = model.backbone.vlm.peft_config[_ADAPTER]
    return config


def base_of(folder: Path) -> str:
    """The base model that the adapters of a folder belong to; empty: random weights, which are nowhere."""
    return PeftLoraConfig.from_pretrained(str(folder)).base_model_name_or_path or ""


def base_hash(vlm: Any, learned: Iterable[str] = ()) -> str:
    """Hash of the weights that LoRA neither adapts nor replaces (norms, embeddings), which tell base models apart.

    The same for float32 and bfloat16 weights.

    Args:
        vlm: with LoRA; or without, and then
        learned: names of its adapters' weights in peft's files.
    """
    names = [name.removeprefix(_PREFIX) for name in learned]
    adapted = tuple(f"{name.split('.lora_')[0]}." for name in names if ".lora_" in name)
    digest = hashlib.sha256()
    for name, parameter in vlm.named_parameters():
        others = parameter.requires_grad if not names else name in names or name.startswith(adapted)
        if others or ".base_layer." in name:
            continue
        digest.update(f"{name} {parameter.detach().flatten()[:_COMPARED].bfloat16().tolist()}\n".encode())
    return digest.hexdigest()


def merge_adapter(vlm: Any, folder: Path, expected_hash: str) -> None:
    """Merge the adapters of a folder into their base model, in place.

    Raises:
        CheckpointError: they belong to another base model.
    """
    learned = load_file(folder / ADAPTER_FILE)
    if base_hash(vlm, learned) != expected_hash:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG}: base_model_name_or_path {base_of(folder)} is not the model that these "
            "adapters were trained on; name the folder that holds it"
        )
    adapted = re.compile(str(PeftLoraConfig.from_pretrained(str(folder)).target_modules))
    layers = [name for name, module in vlm.named_modules() if isinstance(module, nn.Linear) and adapted.fullmatch(name)]
    for name in (f"{_PREFIX}{layer}.lora_{letter}.weight" for layer in layers for letter in "AB"):
        if name not in learned:  # which peft would leave at its start, with a warning
            raise CheckpointError(f"{folder / ADAPTER_FILE}: does not fit {base_of(folder)}: {name} is missing")
    PeftModel.from_pretrained(vlm, str(folder)).merge_and_unload()


def merged_state(model: DetectionVLM, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Backbone state with LoRA weights merged, under the stock parameter names and in the base weights' dtype.

    Weights that are held in 4 bits are taken as they were used, in bfloat16.

    Args:
        state: ``backbone.vlm``'s state dict, with names as in ``model.backbone.vlm.state_dict()``.
    """
    merged = {}
    layers = {name: module for name, module in model.backbone.vlm.named_modules() if isinstance(module, LoraLayer)}
    for name, value in state.items():
        if ".lora_" in name or ".base_layer.weight." in name:  # the latter: scales of 4-bit weights
            continue
        if name.endswith(".base_layer.weight"):
            layer: Any = layers[name.removesuffix(".base_layer.weight")]
            if not value.is_floating_point():
                value = dequantize_module_weight(layer.get_base_layer()).bfloat16()
            delta = layer.get_delta_weight(_ADAPTER)
            value = (value.float() + delta.to(value.device).float()).to(value.dtype)
        merged[name.replace(".base_layer.", ".")] = value
    return merged
