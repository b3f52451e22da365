"""Adapters on disk: peft's own files, for one base model, as good as the merged weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from bbu.config import Config
from bbu.errors import CheckpointError
from bbu.families.registry import backbone_class
from bbu.models.acceleration.lora import base_hash
from bbu.models.build import build_model
from bbu.models.checkpoint import load_model, load_processor, read_facts, save_model
from bbu.models.wrapper import DetectionVLM
from bbu.training.recovery import load_for_training
from tests.models.test_checkpoint import predict
from tests.tiny import FAMILIES, build_tiny, tiny_config, tiny_processor

LORA = {"lora.parts": ["llm", "vision"], "lora.rank": 2, "lora.alpha": 4}


def base_folder(folder: Path, family: str) -> Path:
    """A model folder of transformers, as one that is downloaded."""
    config = tiny_config(model={"family": family})
    save_model(folder, build_tiny(config), tiny_processor(family))
    return folder / "backbone"


def adapted(base: Path, family: str, dtype: torch.dtype = torch.float32, **model: Any) -> DetectionVLM:
    """A model on this base, with adapters that have learned something, and a merger and a head as well."""
    built = build_model(config_of(base, family, **model), _tokenizer(family), device=torch.device("cpu"), dtype=dtype)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return built.eval()


def config_of(base: Path, family: str, **model: Any) -> Config:
    return tiny_config(model={"family": family, "path": str(base), **LORA, **model})


def _tokenizer(family: str) -> Any:
    return tiny_processor(family).tokenizer


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, DetectionVLM]:
    """Family, a folder with base/ and model/ (adapters), and the model in memory."""
    folder = tmp_path_factory.mktemp(request.param)
    base = base_folder(folder / "base", request.param)
    model = adapted(base, request.param)
    save_model(folder / "model", model, tiny_processor(request.param, caption_max_tokens=24), adapters=True)
    return request.param, folder, model


def copied(saved: tuple[str, Path, DetectionVLM], tmp_path: Path) -> Path:
    """The adapters, to be spoilt; without the manifest, which would speak first."""
    folder = shutil.copytree(saved[1] / "model", tmp_path / "model")
    (folder / "manifest.json").unlink()
    return folder


def test_the_folder_holds_what_learned_alone(saved: tuple[str, Path, DetectionVLM]) -> None:
    _, folder, model = saved
    names = sorted(path.name for path in (folder / "model" / "backbone").iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(names)
    assert not [name for name in names if name.startswith(("model", "pytorch_model"))]
    written = sum(value.numel() for value in load_file(folder / "model/backbone/adapter_model.safetensors").values())
    assert written == sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)


def test_stock_peft_reads_it_and_has_our_weights(saved: tuple[str, Path, DetectionVLM]) -> None:
    """The merger, which learned whole, included."""
    family, folder, model = saved
    stock = backbone_class(family).from_pretrained(str(folder / "base" / "backbone"), torch.float32).vlm
    theirs = PeftModel.from_pretrained(stock, str(folder / "model" / "backbone")).state_dict()
    ours = model.backbone.vlm.state_dict()
    assert {f"base_model.model.{name}" for name in ours} == set(theirs)
    assert all(torch.equal(theirs[f"base_model.model.{name}"], value) for name, value in ours.items())


def test_a_model_of_adapters_is_the_merged_model(saved: tuple[str, Path, DetectionVLM], tmp_path: Path) -> None:
    family, folder, model = saved
    save_model(tmp_path / "merged", model, tiny_processor(family, caption_max_tokens=24))
    merged, loaded = load_model(tmp_path / "merged"), load_model(folder / "model")
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=1e-7)
    assert predict(loaded, load_processor(folder / "model")) == predict(merged, load_processor(tmp_path / "merged"))


def test_training_goes_on_with_the_same_bits(saved: tuple[str, Path, DetectionVLM]) -> None:
    family, folder, model = saved
    other = build_model(
        config_of(folder / "base" / "backbone", family),
        _tokenizer(family),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    load_for_training(other, folder / "model")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())


def test_another_base_model_is_refused(saved: tuple[str, Path, DetectionVLM], tmp_path: Path) -> None:
    family, folder, _ = saved
    config = tiny_config(model={"family": family})
    config.seed = 99
    save_model(tmp_path / "other", build_tiny(config), tiny_processor(family))
    spoilt = copied(saved, tmp_path)
    point_to(spoilt, str(tmp_path / "other" / "backbone"))
    with pytest.raises(CheckpointError, match="is not the model that these adapters were trained on; name the folder"):
        load_model(spoilt)
    point_to(spoilt, str(folder / "base" / "backbone"))
    load_model(spoilt)


def point_to(folder: Path, base: str) -> None:
    path = folder / "backbone" / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    path.write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    ("base", "why"),
    [
        (
            "/nowhere/at/all",
            r"base_model_name_or_path: /nowhere/at/all cannot be loaded: .*; name the base model's folder",
        ),
        ("", r"base_model_name_or_path: is empty: the run began from random weights"),
    ],
)
def test_a_base_model_that_is_not_there_is_one_clear_line(
    base: str, why: str, saved: tuple[str, Path, DetectionVLM], tmp_path: Path
) -> None:
    spoilt = copied(saved, tmp_path)
    point_to(spoilt, base)
    with pytest.raises(CheckpointError, match=why) as caught:
        load_model(spoilt)
    assert "\n" not in str(caught.value)


def test_adapters_that_lack_a_tensor_are_refused(saved: tuple[str, Path, DetectionVLM], tmp_path: Path) -> None:
    """peft itself would leave it at its start, with a warning."""
    spoilt = copied(saved, tmp_path)
    path = spoilt / "backbone" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: does not fit .*: .* is missing"):
        load_model(spoilt)


def test_the_hash_of_a_base_model_is_the_same_in_float32_and_bfloat16(
    saved: tuple[str, Path, DetectionVLM],
) -> None:
    family, folder, _ = saved
    base = folder / "base" / "backbone"
    expected = read_facts(folder / "model")["base"]["hash"]
    assert base_hash(adapted(base, family, torch.bfloat16).backbone.vlm) == expected
    plain = backbone_class(family).from_pretrained(str(base), torch.bfloat16).vlm
    assert base_hash(plain, load_file(folder / "model/backbone/adapter_model.safetensors")) == expected
