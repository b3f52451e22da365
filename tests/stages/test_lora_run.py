"""A run with LoRA on a model folder: small checkpoints; the published model is merged or holds adapters alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bbu import stages
from bbu.config import Config
from bbu.models.build import build_model
from bbu.models.checkpoint import load_model, save_model
from bbu.models.manifest import read_manifest
from tests.tiny import DEFAULT, PAIR, build_tiny, tiny_config, tiny_processor
from tests.training.test_resume import records as records
from tests.training.test_resume import run_config

LORA = {"model__lora_dot_parts": ["llm", "vision"], "model__lora_dot_rank": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of transformers, with numbers that bfloat16 has, as in published ones."""
    folder = tmp_path_factory.mktemp("base")
    model = build_tiny(tiny_config(model={"family": DEFAULT})).to(torch.bfloat16).float()
    save_model(folder, model, tiny_processor(DEFAULT))
    return folder / "backbone"


def trained(records: Path, base: Path, output: Path, **changes: Any) -> Config:
    config = run_config(records, output, DEFAULT, model__path=str(base), **LORA, **changes)
    config.training.max_steps, config.training.save_every = 2, 1
    stages.train(config)
    return config


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_published_adapters_are_the_published_merged_model(
    precision: str, records: Path, base: Path, tmp_path: Path
) -> None:
    """In bfloat16, merging rounds: the adapters alone are more exact."""
    merged, apart = tmp_path / "merged", tmp_path / "apart"
    trained(records, base, merged, training__precision=precision)
    trained(records, base, apart, training__precision=precision, model__publish="adapter")
    one, other = load_model(merged / "model").state_dict(), load_model(apart / "model").state_dict()
    near = 1e-7 if precision == "fp32" else 2**-8
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=near, atol=1e-7)
    assert (merged / "model" / "backbone" / "model.safetensors").is_file()
    assert not list((apart / "model" / "backbone").glob("model*.safetensors"))
    config = (apart / "model" / "backbone" / "adapter_config.json").read_text(encoding="utf-8")
    assert json.loads(config)["base_model_name_or_path"] == str(base.resolve())


def test_checkpoints_hold_no_base_model(records: Path, base: Path, tmp_path: Path) -> None:
    trained(records, base, tmp_path)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    names = read_manifest(tmp_path / "checkpoint-2")
    assert "backbone/adapter_model.safetensors" in names
    assert not [name for name in names if name.startswith("backbone/model")]
    saved = load_model(tmp_path / "checkpoint-2").state_dict()  # a checkpoint is a model folder as well
    published = load_model(tmp_path / "model").state_dict()
    assert all(torch.allclose(saved[name], value, atol=1e-7) for name, value in published.items())


@pytest.mark.parametrize("family", PAIR)
def test_frozen_weights_are_held_in_bfloat16_where_products_run_in_it(family: str, tmp_path: Path) -> None:
    tokenizer, random = tiny_processor(family).tokenizer, ""
    published = build_tiny(tiny_config(model={"family": family})).to(torch.bfloat16).float()
    save_model(tmp_path, published, tiny_processor(family))

    def dtypes(dtype: torch.dtype, path: str = str(tmp_path / "backbone"), **model: Any) -> dict[str, torch.dtype]:
        config = tiny_config(model={"family": family, "path": path, **model})
        built = build_model(config, tokenizer, device=torch.device("cpu"), dtype=dtype)
        return {name: parameter.dtype for name, parameter in built.named_parameters()}

    lora = {"lora.parts": ["llm"], "freeze": ["vision"]}
    half = dtypes(torch.bfloat16, **lora)
    learns = ("lora_", "merger", "adapter", "detection_head", "caption_decoder", "local_pyramid", "deepstack")
    for name, dtype in half.items():
        assert dtype == (torch.float32 if any(word in name for word in learns) else torch.bfloat16), name
    assert set(dtypes(torch.bfloat16, random, freeze=["vision", "llm"]).values()) == {torch.float32}, "rounded"
    assert set(dtypes(torch.float32, **lora).values()) == {torch.float32}
    assert set(dtypes(torch.bfloat16, weights="float32", **lora).values()) == {torch.float32}
    assert set(dtypes(torch.bfloat16).values()) == {torch.float32}, "all of them learn"
    whole = dtypes(torch.bfloat16, weights="bfloat16")
    assert all((d == torch.bfloat16) == name.startswith("backbone.") for name, d in whole.items())


def test_four_bits_train_and_publish(records: Path, base: Path, tmp_path: Path) -> None:
    """QLoRA: adapters learn over a base of 4 bits; merged, they give the weights that were used."""
    pytest.importorskip("bitsandbytes")
    config = trained(records, base, tmp_path, training__precision="bf16", model__weights="4bit")
    run = stages.open_run(config)
    layers = [m for m in run.model.modules() if type(m).__name__ == "Linear4bit"]
    assert layers
    plain = load_file(base / "model.safetensors")
    merged = load_file(tmp_path / "model" / "backbone" / "model.safetensors")
    assert merged.keys() == plain.keys()
    name = next(name for name in plain if name.endswith("layers.0.mlp.down_proj.weight"))
    off = (merged[name].float() - plain[name]).abs()
    assert 0 < off.max() < plain[name].abs().max() and merged[name].dtype == torch.bfloat16
    load_model(tmp_path / "model")
    broken = trained(records, base, tmp_path / "again", training__precision="bf16", model__weights="4bit")
    broken.training.max_steps, broken.training.resume = 3, True
    stages.train(broken)
