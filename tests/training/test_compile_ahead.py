"""Compiling before the first step changes nothing of a run, and a compiler that fails stops none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bbu.config import COMPILED_PARTS
from bbu.models.acceleration import compiling
from bbu.models.acceleration.compiling import compile_parts, compiled_graphs
from bbu.training.compile_ahead import CompileAhead
from bbu.training.trainer import BBUTrainer
from tests.tiny import DEFAULT, build_tiny, tiny_config, tiny_processor, tiny_sample, tiny_trainer

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")


class Samples(list[Any]):
    """Samples that are handed out as the stream of a run does."""

    def __getitems__(self, wanted: list[int]) -> list[Any]:
        return [self[position] for position in wanted]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    compiling.fallbacks.clear()


def trainer_of(folder: Path, backend: str) -> BBUTrainer:
    """Two steps of two samples, everything compiled."""
    sizes = {"scratch.vision_depth": 1, "scratch.text_depth": 1, "detection.layers": 1, "compile": [*COMPILED_PARTS]}
    config = tiny_config(model=sizes, training={"max_steps": 2})
    processor = tiny_processor(DEFAULT)
    samples = Samples(tiny_sample(processor, seed, teachers=seed % 2) for seed in range(4))
    model = build_tiny(config).train()
    compile_parts(model, COMPILED_PARTS, backend=backend)
    return tiny_trainer(config, folder, samples, processor, model)


def result_of(trainer: BBUTrainer) -> list[torch.Tensor]:
    """Losses, weights and the next random number of a run."""
    torch.manual_seed(5)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return [torch.tensor(losses), *(p.detach().clone() for p in trainer.unwrapped.parameters()), torch.rand(1)]


def test_it_changes_no_bit_of_a_run_and_leaves_nothing_to_compile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = result_of(trainer_of(tmp_path / "plain", "eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainer = trainer_of(tmp_path / "ahead", "eager")
    ahead, found = CompileAhead(trainer), []
    ahead.on_train_begin(None, None, None)
    found.append(compiled_graphs())
    assert all(p.grad is None for p in trainer.unwrapped.parameters())
    assert f"model.compile: {found[0]} graphs of decoder, captions, llm, vision in " in capsys.readouterr().out
    for one, other in zip(plain, result_of(trainer), strict=True):
        assert torch.equal(one, other)
    assert compiled_graphs() == found[0] > 3


def test_a_compiler_that_fails_on_the_way_back_ends_compiling_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, "eager")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("backward")

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", fail)
        CompileAhead(trainer).on_train_begin(None, None, None)
    assert "model.compile: runs uncompiled (RuntimeError: backward)" in capsys.readouterr().out
    before = compiled_graphs()
    trainer.train()
    assert compiled_graphs() == before
    assert compiling.summary(["llm"]).endswith("1 ran uncompiled, the first one: RuntimeError: backward")
