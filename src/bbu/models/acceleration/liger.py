"""Liger kernels (Hsu et al. 2024, arXiv:2410.10989) for norms and gated MLPs of the backbone, if installed.

The optional package liger-kernel needs CUDA and Triton. Its rotary kernel expects an interface that transformers has
dropped. Its losses are not needed, because ours do not build the full logits either.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import torch

from bbu.errors import ConfigError
from bbu.families.base import Backbone

OFF = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def use_liger(backbone: Backbone, requested: str, device: torch.device) -> bool:
    """Patch this instance with the kernels; parameters and their names stay.

    Args:
        requested: ``none``; ``auto``: if they can run; ``always``: an error if they cannot.

    Returns:
        Whether they are in use.

    Raises:
        ConfigError: requested with ``always``, but they cannot run.
    """
    if requested == "none":
        return False
    function, why = _function(backbone.family, device)
    if function is None:
        if requested == "always":
            raise ConfigError(f"model.liger: cannot be used here: {why}; set model.liger=none or auto")
        return False
    inner = backbone.vlm.base_model  # the outer class lacks the attributes that the function reads
    names = vars(sys.modules[type(inner).__module__])
    before = dict(names)
    function(model=inner, rms_norm=True, swiglu=True, **OFF)
    names.update(before)  # undo its patches of the module, which affect models built later
    return True


def _function(family: str, device: torch.device) -> tuple[Any, str]:
    """The package's patch function for a family, or None and the reason."""
    if device.type != "cuda":
        return None, f"it needs CUDA, this run has {device.type}"
    if importlib.util.find_spec("liger_kernel") is None:
        return None, "liger-kernel is not installed"
    name = f"apply_liger_kernel_to_{family}"
    function = getattr(importlib.import_module("liger_kernel.transformers"), name, None)
    return function, f"this liger-kernel has no {name}"
