"""Every attention backend that runs here equals a plain masked softmax."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F

from bbu.errors import ConfigError
from bbu.layers import attention
from bbu.layers.attention import ATTENTION_BACKENDS, choose_attention_backend, varlen_attention
from tests.tiny import FAMILIES, backend_runs, conversation, run_backbone, tiny_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = {
    "one segment": ([7], [7]),
    "several": ([5, 1, 9, 5, 2], [5, 1, 9, 5, 2]),
    "cross": ([4, 4, 4], [11, 1, 6]),
    "cross of other lengths": ([1, 8, 3, 8], [6, 2, 3, 5]),
    "empty queries": ([3, 0, 4], [5, 2, 4]),
    "empty keys": ([3, 2, 4], [5, 0, 4]),
    "empty both": ([0, 3, 0], [0, 3, 0]),
    "nothing": ([0], [0]),
}
DTYPE = {name: torch.float64 if name == "sdpa" else torch.bfloat16 for name in ATTENTION_BACKENDS}
PARITY = [
    (backend, case, causal)
    for backend in ATTENTION_BACKENDS
    if backend_runs(backend, DEVICE, DTYPE[backend])
    for case, (lengths_q, lengths_k) in CASES.items()
    for causal in (False, True)
    if not causal or lengths_q == lengths_k
]


def cu_seqlens(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)


def plain_softmax(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, q: list[int], k: list[int], causal: bool, scale: float
) -> torch.Tensor:
    """Softmax over all pairs with a mask."""
    segment_q = torch.repeat_interleave(torch.arange(len(q)), torch.tensor(q))
    segment_k = torch.repeat_interleave(torch.arange(len(k)), torch.tensor(k))
    allowed = segment_q[:, None] == segment_k[None]
    if causal:
        allowed &= torch.arange(sum(q))[:, None] >= torch.arange(sum(k))[None]
    out = torch.zeros_like(query)
    for head in range(query.shape[1]):
        group = head // (query.shape[1] // key.shape[1])
        scores = query[:, head] @ key[:, group].T * scale
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)
        out[:, head] = weights @ value[:, group]
    return out


def test_every_backend_has_a_parity_test_where_it_runs() -> None:
    assert {backend for backend, *_ in PARITY} == {
        name for name in ATTENTION_BACKENDS if backend_runs(name, DEVICE, DTYPE[name])
    }


@pytest.mark.parametrize(("backend", "case", "causal"), PARITY)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_backend_equals_a_plain_masked_softmax(
    backend: str, case: str, causal: bool, kv_heads: int, scale: float | None
) -> None:
    lengths_q, lengths_k = CASES[case]
    dtype = DTYPE[backend]
    torch.manual_seed(0)
    width = 16
    query = torch.randn(sum(lengths_q), 4, width, dtype=torch.float64)
    key, value = (torch.randn(sum(lengths_k), kv_heads, width, dtype=torch.float64) for _ in range(2))
    inputs = [x.to(DEVICE, dtype).requires_grad_() for x in (query, key, value)]
    found = varlen_attention(
        *inputs,
        cu_seqlens_q=cu_seqlens(lengths_q),
        cu_seqlens_k=cu_seqlens(lengths_k),
        max_seqlen_q=max(lengths_q),
        max_seqlen_k=max(lengths_k),
        causal=causal,
        backend=backend,
        scale=scale,
    )
    plain = [x.detach().cpu().double().requires_grad_() for x in inputs]
    expected = plain_softmax(*plain, lengths_q, lengths_k, causal, scale if scale is not None else width**-0.5)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(found.detach().cpu().double(), expected.detach(), rtol=tolerance, atol=tolerance)
    if not expected.numel() or not found.requires_grad:
        return
    push = torch.randn(expected.shape, dtype=torch.float64)
    ours = torch.autograd.grad(found, inputs, push.to(DEVICE, dtype), allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, plain, push.to(dtype).double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("signature", ["new", "old"])
@pytest.mark.parametrize("causal", [False, True])
def test_torch_varlen_is_called_correctly_with_either_signature(
    signature: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between torch releases a window and grouped heads replaced the causal flag."""

    def run(query, key, value, cu_q, cu_k, causal, scale, grouped):  # type: ignore[no-untyped-def]
        if not grouped:
            assert query.shape[1] == key.shape[1], "key/value heads must be repeated"
        return plain_softmax(query, key, value, cu_q.diff().tolist(), cu_k.diff().tolist(), causal, scale)

    def new(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
        assert window_size in ((-1, -1), (-1, 0))
        return run(query, key, value, cu_seq_q, cu_seq_k, window_size == (-1, 0), scale, enable_gqa)

    def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):  # type: ignore[no-untyped-def]
        return run(query, key, value, cu_seq_q, cu_seq_k, is_causal, query.shape[-1] ** -0.5, False)

    function = {"new": new, "old": old}[signature]
    monkeypatch.setattr(attention, "TORCH_VARLEN", (function, frozenset(inspect.signature(function).parameters)))
    torch.manual_seed(1)
    lengths = [3, 1, 5]
    query, key, value = (torch.randn(9, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    cu = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    found = varlen_attention(
        query, key, value, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=5, max_seqlen_k=5, causal=causal,
        backend="torch_varlen", scale=0.2,
    )  # fmt: skip
    torch.testing.assert_close(found, plain_softmax(query, key, value, lengths, lengths, causal, 0.2))


def test_a_torch_without_varlen_attention_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TORCH_VARLEN", None)
    x = torch.zeros(2, 1, 8)
    cu = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(ConfigError, match=r"torch_varlen: this torch has no"):
        varlen_attention(
            x, x, x, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=2, max_seqlen_k=2, causal=True,
            backend="torch_varlen",
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["torch_varlen", "flash_attn"])
def test_a_backend_that_cannot_run_here_is_refused(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"{backend} cannot run here") as caught:
        choose_attention_backend(backend, torch.device("cpu"), torch.float32)
    assert "use auto or sdpa" in str(caught.value)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="'flsh' is not a backend"):
        choose_attention_backend("flsh", torch.device("cpu"), torch.float32)


def test_auto_chooses_a_backend_that_runs() -> None:
    assert choose_attention_backend("auto", torch.device("cpu"), torch.bfloat16) == "sdpa"
    assert choose_attention_backend("auto", torch.device("cuda"), torch.float32) == "sdpa"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_of_a_family_goes_through_the_backend(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for each layer of the tower and of the language model, with explicit boundaries."""
    backbone = tiny_model(family).backbone
    calls: list[int] = []
    real = ATTENTION_BACKENDS["sdpa"]
    monkeypatch.setitem(ATTENTION_BACKENDS, "sdpa", lambda *inputs: (calls.append(len(inputs[3][0])), real(*inputs))[1])
    parts = [conversation(backbone, 1, 4, [(112, 140)]), conversation(backbone, 2, 3)]
    run_backbone(backbone, parts)
    (tower, _), (language, _) = backbone.vision_depth_width, backbone.text_depth_width
    assert len(calls) == tower + language
    assert calls.count(len(parts) + 1) >= language


def test_matrix_products_follow_autocast() -> None:
    x = torch.randn(4, 2, 8)
    cu = torch.tensor([0, 4], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        found = varlen_attention(
            x, x.bfloat16(), x, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=4, max_seqlen_k=4, causal=True,
            backend="sdpa",
        )  # fmt: skip
    assert found.dtype == torch.bfloat16
    expected = F.scaled_dot_product_attention(*(x.bfloat16().transpose(0, 1)[None],) * 3, is_causal=True)
    torch.testing.assert_close(found, expected[0].transpose(0, 1), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("most_scores", [attention.CPU_SCORES, 0], ids=["products", "kernel"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("length_q", "length_k", "causal"), [(6, 6, True), (6, 6, False), (3, 9, False), (1, 5, False)]
)
def test_dense_attention_in_sixteen_bits_equals_a_plain_softmax(
    length_q: int, length_k: int, causal: bool, autocast: bool, most_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both implementations, forward and backward, within bfloat16 precision."""
    monkeypatch.setattr(attention, "CPU_SCORES", most_scores)
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    inputs = [torch.randn(2, 3, length, 8).to(dtype).requires_grad_() for length in (length_q, length_k, length_k)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attention.dense_attention(*inputs, causal=causal, scale=0.4)
    assert found.dtype == torch.bfloat16
    plain = [x.detach().double().requires_grad_() for x in inputs]
    scores = plain[0] @ plain[1].transpose(-1, -2) * 0.4
    if causal:
        scores = scores.masked_fill(torch.ones(length_q, length_k, dtype=torch.bool).triu(1), -torch.inf)
    expected = scores.softmax(-1) @ plain[2]
    torch.testing.assert_close(found.double(), expected, rtol=3e-2, atol=3e-2)
    push = torch.randn(expected.shape, dtype=torch.float64)
    ours = torch.autograd.grad(found, inputs, push.bfloat16())
    for one, other in zip(ours, torch.autograd.grad(expected, plain, push), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=6e-2, atol=6e-2)
