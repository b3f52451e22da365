"""Compiled blocks give the same results under the same names, and packs of other shapes do not compile them anew."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bbu.config import COMPILED_PARTS, load_config
from bbu.data.collators import Batch
from bbu.errors import ConfigError
from bbu.layers import attention
from bbu.models.acceleration import compiling
from bbu.models.acceleration.checkpointing import checkpoint_activations
from bbu.models.acceleration.compiling import compile_parts, compiled_graphs
from bbu.models.wrapper import DetectionVLM
from bbu.training.objective import DetectionObjective
from tests import warm
from tests.tiny import (
    DEFAULT,
    PAIR,
    mixed_samples,
    pack,
    run_model,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_sample,
)

each_family = pytest.mark.parametrize("family", PAIR)
compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test compiled is of no use to others."""
    monkeypatch.setattr(attention, "ATTENTION_BACKENDS", dict(attention.ATTENTION_BACKENDS))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def step(model: DetectionVLM, batch: Batch) -> dict[str, torch.Tensor]:
    """Loss sums and gradients."""
    model.zero_grad()
    sums = DetectionObjective(model, tiny_config().loss)(**batch)
    torch.stack(list(sums.values())).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: value.detach() for name, value in sums.items()}, **gradients}


def check_equal(model: DetectionVLM, other: DetectionVLM, batch: Batch, within: float = 1e-9) -> None:
    expected = step(other, batch)
    for name, value in step(model, batch).items():
        torch.testing.assert_close(value, expected[name], rtol=within, atol=within, msg=lambda t, n=name: f"{n}: {t}")


def compile_and_compare(family: str) -> None:
    """One kind of block, in C++; a minute where all are. In float32: torch 2.11 takes float64 attention for it here."""
    plain, model = (tiny_model(family, torch.float32).train() for _ in range(2))
    compile_parts(model, ["captions"])
    check_equal(model, plain, pack(plain, mixed_samples(tiny_processor(family))[:3]), within=1e-4)
    assert compiled_graphs() == 1


@compiler
@each_family
def test_compiled_blocks_give_equal_losses_and_gradients(family: str, project: Path) -> None:
    """In a Python of its own: the compiler imports setuptools, which fails after others have used distutils."""
    done = warm.run(
        [sys.executable, "-c", f"from {__name__} import compile_and_compare; compile_and_compare({family!r})"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(project / "src"), str(project)]), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


ONE_BLOCK = {"scratch.vision_depth": 1, "scratch.text_depth": 1, "detection.layers": 1}
TRACED = "aot_eager_decomp_partition"  # traced and cut into forward and backward as for the compiler, run by torch


def pair_of(family: str, **more: Any) -> tuple[DetectionVLM, DetectionVLM]:
    """Two equal models in training mode, float64."""
    plain, model = (tiny_model(family, model={"family": family, **ONE_BLOCK, **more}).train() for _ in range(2))
    return plain, model


def packs_of(model: DetectionVLM, family: str, count: int) -> Iterator[Batch]:
    """Packs of 1 to 4 samples with 0 to 2 teachers and 1 to 4 parts, no two of one shape."""
    processor = tiny_processor(family)
    for number in range(count):
        seeds = range(5 * number, 5 * number + 1 + number % 4)
        yield pack(model, [tiny_sample(processor, seed, teachers=seed % 3, parts=1 + seed % 4) for seed in seeds])


@compiler
@each_family
def test_a_block_is_one_graph_that_serves_packs_of_all_shapes(family: str) -> None:
    plain, model = pair_of(family, **{"scratch.vision_depth": 2, "scratch.text_depth": 2, "detection.layers": 2})
    compile_parts(model, COMPILED_PARTS, backend="eager")
    found = []
    for batch in packs_of(model, family, 10):
        check_equal(model, plain, batch)
        found.append(compiled_graphs())
    assert not torch._dynamo.utils.counters["graph_break"]
    assert len(set(found[2:])) == 1, "the first packs have one sample and several; later ones compile nothing"
    assert len(COMPILED_PARTS) <= found[-1] <= 2 * len(COMPILED_PARTS), found
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state)


def stand_in_for_flash_attention() -> None:
    """Torch's operator of FlashAttention on a CPU: the plain function forward, and its gradient."""
    from torch.nn.attention import varlen

    def attend(query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, causal: bool, scale: float) -> torch.Tensor:
        repeats = query.shape[1] // key.shape[1]
        heads = [query, *(each.repeat_interleave(repeats, 1) for each in (key, value))]
        rows = zip(cu_q.tolist(), cu_q.tolist()[1:], cu_k.tolist(), cu_k.tolist()[1:], strict=False)
        found = [
            F.scaled_dot_product_attention(
                heads[0][a:b].transpose(0, 1),
                *(x[c:d].transpose(0, 1) for x in heads[1:]),
                is_causal=causal,
                scale=scale,
            ).transpose(0, 1)
            for a, b, c, d in rows
        ]
        return torch.cat(found).contiguous()

    @varlen._varlen_attn.register_kernel("cpu")
    def forward(query, key, value, cu_q, cu_k, max_q, max_k, causal=False, scale=None, window=None, *rest, **more):  # type: ignore[no-untyped-def]
        output = attend(query, key, value, cu_q, cu_k, causal or window == [-1, 0], scale)
        return (
            output,
            query.new_zeros(query.shape[1], len(query), dtype=torch.float32),
            query.new_zeros(2, dtype=torch.uint64),
        )

    @varlen._varlen_attn_backward.register_kernel("cpu")
    def backward(
        slope,
        query,
        key,
        value,
        out,
        lse,
        cu_q,
        cu_k,
        max_q,
        max_k,
        causal,
        rng,
        scale=None,
        window=None,
        *rest,
        **more,
    ):  # type: ignore[no-untyped-def]
        def run(*heads: torch.Tensor) -> torch.Tensor:
            return attend(*heads, cu_q, cu_k, causal or window == [-1, 0], scale)

        recorded: Any = torch.func.vjp(run, query, key, value)
        return tuple(each.contiguous() for each in recorded[1](slope))


@compiler
@each_family
def test_torchs_flash_attention_is_an_operator_in_the_graph(family: str) -> None:
    stand_in_for_flash_attention()
    plain, model = pair_of(family)
    model.backbone.use_attention_backend("torch_varlen")
    compile_parts(model, ["llm", "vision"], backend=TRACED, checkpointing="selective", budget=0.5)
    found = []
    for batch in packs_of(model, family, 8):
        check_equal(model, plain, batch)
        found.append(compiled_graphs())
    assert not torch._dynamo.utils.counters["graph_break"]
    assert found[-1] <= 3 and len(set(found[2:])) == 1, found


@compiler
@each_family
def test_evaluation_is_not_compiled(family: str) -> None:
    _, model = pair_of(family)
    compile_parts(model, COMPILED_PARTS, backend="eager")
    run_model(model.eval(), next(packs_of(model, family, 1)))
    assert compiled_graphs() == 0


def kept_by(model: DetectionVLM, batch: Batch) -> int:
    """Bytes that the graph of the backward pass holds, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = run_model(model, batch)
    del output
    return sum(size for address, size in kept.items() if address not in weights)


@compiler
@each_family
def test_each_kind_of_recomputation_keeps_less_and_gives_equal_gradients(family: str) -> None:
    kept = []
    for how, budget in (("none", None), ("selective", 0.6), ("selective", 0.2), ("full", None)):
        torch._dynamo.reset()
        plain, model = pair_of(family)
        checkpoint_activations(model.backbone, how) if how != "none" else None
        compile_parts(model, ["llm", "vision"], backend=TRACED, checkpointing=how, budget=budget)
        *_, batch = packs_of(model, family, 2)
        check_equal(model, plain, batch)
        kept.append(kept_by(model, batch))
    assert kept[0] > kept[1] > kept[2] > kept[3], kept


@compiler
def test_dropout_is_never_drawn_again() -> None:
    """Torch's partitioner would draw it anew where it computes a block again, and the gradients would be wrong."""
    model = {"lora.parts": ["llm"], "lora.rank": 4, "lora.dropout": 0.5, **ONE_BLOCK}
    dropping = tiny_model(DEFAULT, model=model)
    for recomputes in ({"checkpointing": "full"}, {"checkpointing": "selective", "budget": 0.5}):
        with pytest.raises(ConfigError, match=r"model\.compile: blocks of llm .* set model\.lora\.dropout=0"):
            compile_parts(dropping, ["llm"], backend=TRACED, **recomputes)
        compile_parts(dropping, ["vision"], backend=TRACED, **recomputes)
    compile_parts(dropping, ["llm"], backend=TRACED, checkpointing="selective")


@compiler
def test_a_block_whose_compilation_fails_runs_as_it_is_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise RuntimeError("no such kernel\nand more")

    torch._dynamo.register_backend(broken, name="broken")
    plain, model = pair_of(DEFAULT)
    compile_parts(model, ["llm"], backend="broken")
    check_equal(model, plain, next(packs_of(model, DEFAULT, 1)))
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "runs uncompiled (RuntimeError: no such kernel); the results are" in printed
    assert compiling.fallbacks.pop() == "RuntimeError: no such kernel"


def test_without_a_compiler_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compile_parts(tiny_model(DEFAULT), [])
    with pytest.raises(ConfigError, match=r"model\.compile: needs a C\+\+ compiler"):
        compile_parts(tiny_model(DEFAULT), ["decoder"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.compile=[head]"], "'head' is not one of decoder, captions, llm, vision"),
    ],
)
def test_what_cannot_be_compiled_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("seed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.compile") as caught:
        load_config(path, overrides)
    assert words in str(caught.value)


def test_compiled_blocks_may_recompute_and_a_budget_is_for_selective(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("seed: 3\n", encoding="utf-8")
    assert load_config(path, ["model.compile=[decoder, llm]", "model.gradient_checkpointing=full"])
    with pytest.raises(ConfigError, match=r"model\.activation_budget: is a share"):
        load_config(path, ["model.activation_budget=0.5", "model.gradient_checkpointing=full"])
