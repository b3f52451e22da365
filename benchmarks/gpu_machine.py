"""The machine that benchmarks/gpu.py measures on: its facts, its clock and its memory."""

from __future__ import annotations

import copy
import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from bbu.errors import ConfigError
from bbu.layers.attention import ATTENTION_BACKENDS, choose_attention_backend

# Dense bfloat16 FLOP/s of the vendor's datasheets, by the name that the driver gives. Others: no MFU.
PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM
    "NVIDIA H200": 989e12,  # SXM
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}
SMI_FACTS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "memory.total")
Result = TypeVar("Result")


class Findings:
    """What a part found so far; every figure is on the disk once it is added.

    Args:
        figures: what is found, which the owner writes.
        lock: held while figures change, and by whoever writes them.
        write: writes all parts.
    """

    def __init__(self, figures: dict[str, Any], lock: Any, write: Callable[[], None]) -> None:
        self.figures, self.lock, self.write = figures, lock, write

    def add(self, **figures: Any) -> None:
        """Later values of a key replace earlier ones."""
        with self.lock:
            self.figures |= copy.deepcopy(figures)  # the part may go on filling what it added
            self.write()


@dataclass
class Setting:
    """Where parts run.

    Args:
        tiny: sizes of a test.
        quick: less of everything.
        stop: time.monotonic() at which everything will be stopped.
        folder: for files of its own.
        bench: the model of Qwen2.5-VL-3B's sizes once a part has made it (gpu_model.shared_bench).
    """

    device: torch.device
    tiny: bool
    quick: bool
    stop: float
    folder: Path
    bench: Any = None

    @classmethod
    def create(cls, device: str, tiny: bool, quick: bool, stop: float, folder: Path) -> Setting:
        """
        Raises:
            SystemExit: there is no such device.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("gpu.py: this torch sees no CUDA device; --tiny --device cpu tries the parts without one")
        return cls(torch.device(device), tiny, quick, stop, folder)

    def free(self) -> None:
        """Give the memory back, also what a part that failed has left."""
        self.bench = None
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    @property
    def gpu(self) -> str:
        """The driver's name of the GPU, or cpu."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu"

    @property
    def left(self) -> float:
        """Seconds until everything is stopped."""
        return self.stop - time.monotonic()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def peak_flops(self) -> float | None:
        """Dense bfloat16 FLOP/s, or None where the datasheet is not in PEAK_FLOPS."""
        return PEAK_FLOPS.get(self.gpu)

    def memory_of(self, work: Callable[[], Any]) -> tuple[int, int] | None:
        """Most bytes that tensors took while something ran: in all, and above what there was before; None on a CPU."""
        if not self.on_gpu:
            work()
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        peak = torch.cuda.max_memory_allocated(self.device)
        return peak, peak - before

    def backends(self) -> list[str]:
        """Attention backends that compute in bfloat16 here."""
        return [name for name in ATTENTION_BACKENDS if _runs(name, self.device)]


def _runs(backend: str, device: torch.device) -> bool:
    try:
        return choose_attention_backend(backend, device, torch.bfloat16) == backend
    except ConfigError:
        return False


def in_words(error: BaseException) -> str:
    """Kind and first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:500]


def unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """What the work gives, or None where it does not fit into the device's memory, which is then emptied."""
    try:
        return work()
    except RuntimeError as error:  # torch.OutOfMemoryError is one; cuBLAS and cuDNN say it in words
        if not any(words in str(error) for words in ("out of memory", "ALLOC_FAILED")):
            raise
        error.__traceback__ = None  # its frames hold the activations
    gc.collect()
    torch.cuda.empty_cache()
    return None


# ---------------------------------------------------------------- facts


def facts(setting: Setting, findings: Findings) -> None:
    """What the figures were taken on; the machine is named by its GPU alone."""
    on_gpu = setting.on_gpu
    findings.add(
        gpu=setting.gpu,
        peak_bf16_flops=setting.peak_flops(),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        transformers=transformers.__version__,
        backends=setting.backends(),
    )
    findings.add(**_smi_facts() if on_gpu else {})
    size = 512 if setting.tiny else 8192
    findings.add(matmul_flops=_matmul_flops(setting, size), copy_bytes=_copy_bytes(setting, size))


def _smi_facts() -> dict[str, str]:
    """Driver and clocks as nvidia-smi says them, before any work."""
    query = ["nvidia-smi", f"--query-gpu={','.join(SMI_FACTS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia_smi": f"{type(error).__name__}: {error}"}
    values = answer.splitlines()[0].split(",")
    return {name: value.strip() for name, value in zip(SMI_FACTS, values, strict=True)}


def _matmul_flops(setting: Setting, size: int) -> float:
    """FLOP/s of a square bfloat16 product of random numbers: what is within reach, where a datasheet is not."""
    a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _median_seconds(setting, lambda: a @ b)


def _copy_bytes(setting: Setting, size: int) -> float:
    """Bytes a second of a copy on the device, read and written."""
    source = torch.randn(size, size * 4, device=setting.device)
    into = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(setting, lambda: into.copy_(source))


def _median_seconds(setting: Setting, work: Callable[[], Any], repeats: int = 10) -> float:
    seconds = []
    for _ in range(repeats + 2):  # two to warm up
        setting.wait()
        started = time.perf_counter()
        work()
        setting.wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])
