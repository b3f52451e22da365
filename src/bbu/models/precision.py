"""Device and numeric precision of a run."""

from __future__ import annotations

import torch
from torch import nn

from bbu.errors import ConfigError


def compute_device() -> torch.device:
    """CUDA if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16 (weights stay float32).

    ``auto`` uses it where the hardware multiplies bfloat16 natively: GPUs from Ampere on, and CPUs with AVX512-BF16 or
    AMX, where it is two to four times as fast.

    Raises:
        ConfigError: bf16 is requested on a GPU without it.
    """
    if precision == "fp32":
        return False
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not native:
            raise ConfigError("training.precision: this GPU has no bfloat16; use fp32")
        return native
    if precision == "bf16":
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def hold_in_bf16(backbone: nn.Module, *, frozen_only: bool) -> None:
    """Hold weights of a backbone in bfloat16, which products that run in bfloat16 would cast them to in every step.

    LoRA's weights stay float32: they are few, and learn in small steps.

    Args:
        frozen_only: only those that do not learn, and only if all of them are bfloat16 numbers already, as in published
            models: nothing is rounded.
    """
    named = [(n, p) for n, p in backbone.named_parameters() if p.is_floating_point() and ".lora_" not in n]
    held = [parameter for _, parameter in named if not (frozen_only and parameter.requires_grad)]
    if frozen_only and not all(torch.equal(p.data.bfloat16().to(p.dtype), p.data) for p in held):
        return
    for parameter in held:
        parameter.data = parameter.data.bfloat16()
