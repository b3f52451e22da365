"""Where and how exactly a run computes."""

from __future__ import annotations

import torch

from bbu.errors import ConfigError


def compute_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16 (weights stay float32).

    ``auto`` says yes where the hardware multiplies bfloat16 itself: Ampere and later, and CPUs with
    AVX512-BF16 or AMX, on which it is two to four times as fast.

    Raises:
        ConfigError: bf16 asked for on a GPU that lacks it.
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
