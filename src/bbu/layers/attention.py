"""Variable-length attention: one interface, several backends, exact for packed samples on each.

A pack holds several samples end to end. ``cu_seqlens`` (int32, segments + 1) marks their boundaries; a query attends
only to keys of its own segment. Boundaries are always passed explicitly: libraries that infer them from position ids
have let samples see each other (docs/critical_fixes.md).

Shapes: E width of an attention head, H attention heads, Kv key/value heads, T packed tokens.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bbu.errors import ConfigError

CPU_SCORES = 2**20  # most scores that a CPU holds at once; they stay in its cache
# Without cuDNN's, which torch prefers on recent GPUs and which plans for 60 to 80 ms at every new shape; ours change.
GPU_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Boundaries(NamedTuple):
    """Segments of queries and of keys, as ``varlen_attention`` takes them and in the order of the kernels."""

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int


AttentionBackend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Boundaries, bool, float], torch.Tensor]


def varlen_attention(
    query_THE: torch.Tensor,
    key_TKvE: torch.Tensor,
    value_TKvE: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    backend: str,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention within segments → (T, H, E). A query whose segment has no keys gets zeros.

    Args:
        query_THE, key_TKvE, value_TKvE: queries and keys may differ in T; H is a multiple of Kv.
        cu_seqlens_q, cu_seqlens_k: (segments + 1,) int32 boundaries; equal when ``causal``.
        max_seqlen_q, max_seqlen_k: longest segment, as Python ints so that no layer waits for the device.
        backend: a key of ATTENTION_BACKENDS.
        scale: factor on the scores; 1/√E when None.
    """
    device = query_THE.device.type
    if torch.is_autocast_enabled(device):  # rotary embeddings return float32
        dtype = torch.get_autocast_dtype(device)
        query_THE, key_TKvE, value_TKvE = query_THE.to(dtype), key_TKvE.to(dtype), value_TKvE.to(dtype)
    boundaries = Boundaries(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    scale = scale if scale is not None else query_THE.shape[-1] ** -0.5
    if backend == "sdpa" and torch.compiler.is_compiling():
        return _sdpa_operator(query_THE, key_TKvE, value_TKvE, *boundaries, causal, scale)
    return ATTENTION_BACKENDS[backend](query_THE, key_TKvE, value_TKvE, boundaries, causal, scale)


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """Dense attention, (…, L, E) → (…, L, E): torch's kernel, except for short bfloat16 sequences on a CPU.

    There, two bfloat16 matrix products around a softmax take less than half the time of torch's kernel as long as the
    scores fit the processor's cache (936 patches, 3 heads of 64: 10 against 25 ms forward and backward). The softmax
    accumulates in float32; casting the scores to float32 and back would take 26 ms.
    """
    dtype = query.dtype
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    scores = query.shape[-2] * key.shape[-2]
    if query.device.type == "cuda":
        with sdpa_kernel(GPU_KERNELS):
            return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
    if torch.compiler.is_compiling() or dtype != torch.bfloat16 or scores > CPU_SCORES:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
    scale = scale if scale is not None else query.shape[-1] ** -0.5
    at_once = max(1, CPU_SCORES // (scores * math.prod(query.shape[1:-2]) or 1))
    rows = zip(*(x.to(dtype).split(at_once) for x in (query * scale, key, value)), strict=True)
    with torch.autocast("cpu", enabled=False):  # would cast the scores to float32 and back
        chunks = [_attend(*some, causal=causal) for some in rows]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Attention as plain matrix products; queries are already scaled."""
    scores = query @ key.transpose(-1, -2)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ value


def _repeat_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Grouped-query attention for backends without it: repeat each key/value head for its H / Kv query heads."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)


def _sdpa_backend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, boundaries: Boundaries, causal: bool, scale: float
) -> torch.Tensor:
    """torch's scaled_dot_product_attention, one batched call for all segments of one shape.

    Runs everywhere, in float64 too. Nearly all vision windows have one size, so a tower layer takes a handful of calls
    instead of one per window.
    """
    key, value = _repeat_heads(query, key, value)
    segments = (pairwise(cu_seqlens.tolist()) for cu_seqlens in boundaries[:2])
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for (start_q, stop_q), (start_k, stop_k) in zip(*segments, strict=True):
        if stop_q > start_q:
            groups[stop_q - start_q, stop_k - start_k].append((start_q, start_k))
    parts, order = [], []
    for (length_q, length_k), starts in groups.items():
        starts_q, starts_k = torch.tensor(starts, device=query.device).T[..., None]
        rows_q = starts_q + torch.arange(length_q, device=query.device)
        rows_k = starts_k + torch.arange(length_k, device=query.device)
        if length_k == 0:
            attended = torch.zeros_like(_pick(query, rows_q))
        else:
            q, k, v = (_pick(x, rows).transpose(1, 2) for x, rows in ((query, rows_q), (key, rows_k), (value, rows_k)))
            attended = dense_attention(q, k, v, causal=causal, scale=scale).transpose(1, 2)
        parts.append(attended.reshape(-1, *query.shape[1:]))
        order.append(rows_q.reshape(-1))
    if not parts:
        return torch.zeros_like(query)
    if len(parts) == 1 and parts[0].shape == query.shape:
        return parts[0]
    return torch.zeros_like(query).index_copy(0, torch.cat(order), torch.cat(parts).to(query.dtype))


@torch.library.custom_op("bbu::sdpa", mutates_args=())
def _sdpa_operator(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """``_sdpa_backend`` as one operator, for compiled blocks: traced, its loop would be compiled anew for each pack."""
    boundaries = Boundaries(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return _sdpa_backend(query, key, value, boundaries, causal, scale).contiguous()


@torch.library.custom_op("bbu::sdpa_backward", mutates_args=())
def _sdpa_backward_operator(
    slope: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes the attention again, so that nothing but its inputs is kept; autograd does not record here, vjp does."""
    boundaries = Boundaries(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return _sdpa_backend(query, key, value, boundaries, causal, scale)

    recorded: Any = torch.func.vjp(attend, query, key, value)
    of_query, of_key, of_value = (each.contiguous() for each in recorded[1](slope))
    return of_query, of_key, of_value


@_sdpa_operator.register_fake
def _(query: torch.Tensor, *rest: Any) -> torch.Tensor:
    return query.new_empty(query.shape)


@_sdpa_backward_operator.register_fake
def _(slope: torch.Tensor, *heads_and_rest: Any) -> tuple[torch.Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in heads_and_rest[:3])


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _sdpa_slopes(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*_sdpa_backward_operator(slope, *ctx.saved_tensors, *ctx.rest), *[None] * 6)


_sdpa_operator.register_autograd(_sdpa_slopes, setup_context=_keep_inputs)


def _pick(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``x[rows]`` by index_select, whose backward pass is several times as fast on a CPU."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _torch_varlen() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """torch.nn.attention.varlen.varlen_attn and its parameter names, or None where torch lacks it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


TORCH_VARLEN = _torch_varlen()  # looked up once, here: in a block the look-up would be traced


def _torch_varlen_backend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, boundaries: Boundaries, causal: bool, scale: float
) -> torch.Tensor:
    """The FlashAttention kernels inside torch (CUDA, 16-bit). The signature differs between releases.

    Newer releases would take cuDNN's first.
    """
    if TORCH_VARLEN is None:
        raise ConfigError("attention backend torch_varlen: this torch has no torch.nn.attention.varlen; use sdpa")
    function, names = TORCH_VARLEN
    options: dict[str, Any] = {}
    if "enable_gqa" in names:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = _repeat_heads(query, key, value)
    if "window_size" in names:  # newer releases; (-1, 0) is causal: no keys to the right
        options["window_size"] = (-1, 0) if causal else (-1, -1)
    else:
        options["is_causal"] = causal
    if "scale" in names:
        options["scale"] = scale
    elif scale != query.shape[-1] ** -0.5:
        query = query * (scale * query.shape[-1] ** 0.5)
    with sdpa_kernel(GPU_KERNELS):
        return function(query, key, value, *boundaries, **options)  # type: ignore[no-any-return]


def _flash_attn_backend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, boundaries: Boundaries, causal: bool, scale: float
) -> torch.Tensor:
    """The optional flash-attn package (Dao 2023, arXiv:2307.08691)."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(query, key, value, *boundaries, causal=causal, softmax_scale=scale)  # type: ignore[no-any-return]


ATTENTION_BACKENDS: dict[str, AttentionBackend] = {
    "sdpa": _sdpa_backend,
    "torch_varlen": _torch_varlen_backend,
    "flash_attn": _flash_attn_backend,
}


def choose_attention_backend(requested: str, device: torch.device, dtype: torch.dtype) -> str:
    """The requested backend, or with ``auto`` the fastest that runs here.

    Raises:
        ConfigError: an unknown backend, or one that cannot run on this device and dtype.
    """
    sixteen_bit_cuda = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    has_package = importlib.util.find_spec("flash_attn") is not None
    runs = {
        "flash_attn": sixteen_bit_cuda and has_package,
        "torch_varlen": sixteen_bit_cuda and TORCH_VARLEN is not None,
        "sdpa": True,
    }
    if requested == "auto":
        return next(name for name, possible in runs.items() if possible)
    if requested not in runs:
        raise ConfigError(f"model.attention: {requested!r} is not a backend; choose auto, {', '.join(runs)}")
    if not runs[requested]:
        why = f"it needs CUDA and a 16-bit dtype, this run has {device.type} and {dtype}"
        if requested == "flash_attn" and not has_package:
            why = "flash-attn is not installed"
        raise ConfigError(f"model.attention: {requested} cannot run here: {why}; use auto or sdpa")
    return requested


# ---------------------------------------------------------------- transformers' text layers

TEXT_BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")  # transformers' names


def implementation_name(backend: str) -> str:
    """The name of a backend in transformers, which rejects custom names that contain "flash"."""
    return {"sdpa": "bbu_sdpa", "torch_varlen": "bbu_varlen", "flash_attn": "bbu_dao"}[backend]


def _make_text_attention(backend: str) -> Callable[..., tuple[torch.Tensor, None]]:
    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """(1, H, T, E) in transformers' layout → (1, T, H, E); without boundaries, transformers' own SDPA."""
        given = [kwargs.pop(name, None) for name in TEXT_BOUNDARIES]
        if any(value is None for value in given):
            with sdpa_kernel(GPU_KERNELS):
                return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        heads = (x[0].transpose(0, 1) for x in (query, key, value))
        options = Boundaries(*given)._asdict()
        return varlen_attention(*heads, **options, causal=True, backend=backend, scale=scaling)[None], None

    return attend


for _backend in ATTENTION_BACKENDS:
    AttentionInterface.register(implementation_name(_backend), _make_text_attention(_backend))
    AttentionMaskInterface.register(implementation_name(_backend), sdpa_mask)
