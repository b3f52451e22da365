"""Compiled blocks give the same results under the same names, and packs of other shapes do not compile them anew."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bbu.config import COMPILED_PARTS, load_config
from bbu.data.collators import Batch
from bbu.errors import ConfigError
from bbu.layers import attention
from bbu.models.acceleration.compiling import compile_parts, compiled_graphs
from bbu.models.wrapper import DetectionVLM
from bbu.training.objective import DetectionObjective
from tests import warm
from tests.tiny import DEFAULT, PAIR, mixed_samples, pack, tiny_config, tiny_model, tiny_processor, tiny_sample

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
    plain, model = tiny_model(family, torch.float32), tiny_model(family, torch.float32)
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


@compiler
@each_family
def test_packs_of_other_shapes_are_not_compiled_anew_and_names_stay(family: str) -> None:
    """The graphs are run by torch itself: they are as many, whatever they are handed to."""
    sizes = {"scratch.vision_depth": 1, "scratch.text_depth": 1, "detection.layers": 1}
    changes = {"model": {"family": family, **sizes}}
    plain, model = tiny_model(family, **changes), tiny_model(family, **changes)
    compile_parts(model, COMPILED_PARTS, backend="eager")
    processor = tiny_processor(family)
    found = []
    for number in range(6):
        samples = [tiny_sample(processor, 5 * number + n, teachers=n % 3, parts=1 + n) for n in range(2 + number % 3)]
        check_equal(model, plain, pack(plain, samples))
        found.append(compiled_graphs())
    assert 0 < found[-1] <= 30 and len(set(found[2:])) == 1, found
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state)


def test_without_a_compiler_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compile_parts(tiny_model(DEFAULT), [])
    with pytest.raises(ConfigError, match=r"model\.compile: needs a C\+\+ compiler"):
        compile_parts(tiny_model(DEFAULT), ["decoder"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.compile=[head]"], "'head' is not one of decoder, captions, llm, vision"),
        (["model.compile=[decoder,llm]", "model.gradient_checkpointing=full"], "leave llm out"),
    ],
)
def test_what_cannot_be_compiled_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("seed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.compile") as caught:
        load_config(path, overrides)
    assert words in str(caught.value)
    assert load_config(path, ["model.compile=[decoder]", "model.gradient_checkpointing=full"])
