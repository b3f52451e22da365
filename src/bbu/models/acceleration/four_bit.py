"""QLoRA (Dettmers et al. 2023, arXiv:2305.14314): the layers that LoRA adapts are held in 4 bits, by bitsandbytes.

NormalFloat4 with its scales quantised once more, as published; products run in bfloat16 or float32. Nothing else is
quantised, and LoRA's own weights stay float32.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
from torch import nn

from bbu.errors import ConfigError

PACKAGE = "bitsandbytes"


def bitsandbytes(key: str) -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed; the message names ``key``, the setting that needs it.
    """
    try:
        return importlib.import_module(PACKAGE)
    except ImportError:
        raise ConfigError(f"{key}: needs the package {PACKAGE}; pip install {PACKAGE}, or set another value") from None


def hold_in_four_bits(vlm: nn.Module, targets: str, device: torch.device, dtype: torch.dtype) -> None:
    """Replace linear layers by bitsandbytes' own, before LoRA is added to them.

    Args:
        targets: regular expression of their names in ``vlm``.
        device: where they are quantised and stay.
        dtype: of their products.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    library: Any = bitsandbytes("model.weights=4bit")
    found = [(n, m) for n, m in vlm.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(targets, n)]
    for name, layer in found:
        held = library.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
        held.weight = library.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        if layer.bias is not None:
            held.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(vlm.get_submodule(parent), child, held.to(device))
    # transformers' mark, by which peft finds its class for these layers
    vlm.is_loaded_in_4bit = True  # type: ignore[assignment]
