"""The backbone's RMS norm: torch's own, ours (bbu.layers.lean_layers) and transformers' written-out one.

    python benchmarks/norms.py [--device cpu] [--rows 8192] [--width 1280] [--repeats 20] [--quick]

Time of forward and backward, and bytes kept for the backward pass, in float32 and bfloat16 with weights of the same
type. Values are compared with float64 first. The last line is one JSON object; its ratios are torch's to ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from harness import last_line

from bbu.layers.lean_layers import lean_rms_norm, torchs_rms_norm

EPS = 1e-6

Norm = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def written_out(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    exact = x.to(torch.float32)
    return weight * (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


NORMS: dict[str, Norm] = {
    "transformers": written_out,
    "ours": lambda x, weight: lean_rms_norm(x, weight, EPS),
    "torch": lambda x, weight: torchs_rms_norm(x, weight, EPS),
}


def kept_bytes(norm: Norm, x: torch.Tensor, weight: torch.Tensor) -> int:
    """Bytes of distinct tensors that a forward pass keeps, besides its weight."""
    kept: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() > weight.numel():
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        norm(x, weight)
    return sum(kept.values())


def seconds(norm: Norm, x: torch.Tensor, weight: torch.Tensor, slope: torch.Tensor, repeats: int) -> float:
    """Median of forward and backward."""
    took = []
    for number in range(repeats + 1):
        if x.is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        x.grad = weight.grad = None
        norm(x, weight).backward(slope)
        if x.is_cuda:
            torch.cuda.synchronize()
        if number:  # the first one loads kernels
            took.append(time.perf_counter() - started)
    return statistics.median(took)


def check(dtype: torch.dtype, device: str, width: int) -> None:
    """All arms are as exact as their type allows."""
    x, weight = torch.randn(64, width, device=device), torch.rand(width, device=device)
    exact = written_out(x.double(), weight.double())
    for norm in NORMS.values():
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(norm(x.to(dtype), weight.to(dtype)).double(), exact, rtol=tolerance, atol=tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="128 rows, twice")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, repeats = (128, 2) if arguments.quick else (arguments.rows, arguments.repeats)
    print(f"{rows} x {arguments.width} on {arguments.device}, torch {torch.__version__}")
    ratios: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        check(dtype, arguments.device, arguments.width)
        x = torch.randn(rows, arguments.width, device=arguments.device, dtype=dtype, requires_grad=True)
        weight = torch.rand(arguments.width, device=arguments.device, dtype=dtype, requires_grad=True)
        slope = torch.randn_like(x)
        found = {}
        for name, norm in NORMS.items():
            found[name] = seconds(norm, x, weight, slope, repeats), kept_bytes(norm, x, weight)
            label = str(dtype).removeprefix("torch.")
            print(f"{label:<9} {name:<13} {found[name][0] * 1e3:8.3f} ms   {found[name][1] / 2**20:8.1f} MiB kept")
        short = "float32" if dtype == torch.float32 else "bfloat16"
        ratios[f"{short}_time_ratio"] = found["torch"][0] / found["ours"][0]
        ratios[f"{short}_memory_ratio"] = found["torch"][1] / found["ours"][1]
    last_line("norms", **ratios)


if __name__ == "__main__":
    main()
