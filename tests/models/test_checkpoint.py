"""Saved and loaded, the model predicts the same bits; what a model was trained with is kept, and nothing else taken."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from bbu.config import Config
from bbu.data.photo import Photo
from bbu.errors import CheckpointError, NotFiniteError
from bbu.families.prompts import PromptSpec
from bbu.families.qwen2_5_vl.codec import QWEN
from bbu.families.registry import backbone_class
from bbu.families.tokenizer import train_tokenizer
from bbu.inference import Inference
from bbu.inference.predictor import Predictor
from bbu.models.checkpoint import (
    FACTS_FILE,
    HEAD_FILE,
    check_model,
    load_model,
    load_processor,
    pixels_hash,
    read_facts,
    save_model,
)
from bbu.models.manifest import MANIFEST_FILE, read_manifest, seal
from bbu.models.wrapper import DetectionVLM
from bbu.records import PredictedObject
from bbu.training.recovery import load_for_training, publish
from tests.tiny import (
    DEFAULT,
    FAMILIES,
    Conversation,
    build_tiny,
    conversation,
    noise_photo,
    run_backbone,
    tiny_config,
    tiny_processor,
)

STOCK = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
QWEN_FAMILY = "qwen2_5_vl"  # of tests that look into the files of a saved backbone, or have transformers read them
PHOTOS = [noise_photo(1, 112, 84), noise_photo(2, 84, 140), noise_photo(3, 168, 112)]
LORA = {"lora.parts": ["llm", "vision"], "lora.rank": 2, "lora.alpha": 4}


def save(folder: Path, *, adapters: bool = False, **model: Any) -> tuple[Config, DetectionVLM]:
    config = tiny_config(model=model)
    built = build_tiny(config).eval()
    save_model(folder, built, tiny_processor(config.model.family, caption_max_tokens=24), adapters=adapters)
    return config, built


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(folder, family=QWEN_FAMILY)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def predict(model: DetectionVLM, processor: Any, teachers: tuple[Photo, ...] = ()) -> list[list[PredictedObject]]:
    return Predictor(model, processor, batch_size=2, nms_iou=1.0).predict_photos(PHOTOS, teachers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_and_loaded_model_predicts_the_same_bits(family: str, tmp_path: Path) -> None:
    _, model = save(tmp_path, family=family)
    teachers = (noise_photo(9, 84, 84),)
    expected = predict(model, tiny_processor(family, caption_max_tokens=24), teachers)
    assert predict(load_model(tmp_path), load_processor(tmp_path), teachers) == expected
    assert all(len(found) == 10 for found in expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    _, model = save(tmp_path, family=family)
    loaded = load_model(tmp_path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("family", list(STOCK))
def test_the_backbone_folder_is_one_that_stock_transformers_reads(family: str, tmp_path: Path) -> None:
    save(tmp_path, family=family)
    stock, report = STOCK[family].from_pretrained(tmp_path / "backbone", dtype=torch.float32, output_loading_info=True)
    assert not any(report.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = load_model(tmp_path).backbone.vlm.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in stock.state_dict().items())


@pytest.mark.parametrize("family", list(STOCK))
def test_a_folder_that_stock_transformers_wrote_gives_the_same_weights(family: str, tmp_path: Path) -> None:
    _, model = save(tmp_path / "ours", family=family)
    STOCK[family].from_pretrained(tmp_path / "ours" / "backbone", dtype=torch.float32).save_pretrained(
        tmp_path / "stock"
    )
    loaded = type(model.backbone).from_pretrained(str(tmp_path / "stock"), torch.float32)
    expected = model.backbone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(("family", "other"), itertools.permutations(STOCK, 2))
def test_a_folder_of_another_family_is_named(family: str, other: str, tmp_path: Path) -> None:
    save(tmp_path, family=other)
    with pytest.raises(OSError, match=f"config.json says model_type {other}, which is not {family}'s"):
        backbone_class(family).from_pretrained(str(tmp_path / "backbone"), torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_detection_is_saved_without_a_head_and_comes_back(family: str, tmp_path: Path) -> None:
    model = build_tiny(tiny_config(model={"family": family, "detection": None})).eval()
    save_model(tmp_path / "model", model, tiny_processor(family, detection=False))
    assert read_facts(tmp_path / "model")["detection"] is None
    assert not (tmp_path / "model" / HEAD_FILE).exists() and HEAD_FILE not in read_manifest(tmp_path / "model")
    check_model(tmp_path / "model")
    again = build_tiny(tiny_config(model={"family": family, "detection": None}), shake=0.5)
    load_for_training(again, tmp_path / "model")
    for loaded in (load_model(tmp_path / "model"), again):
        assert loaded.config is None and loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    processor = load_processor(tmp_path / "model")
    assert not processor.process_photos([], PHOTOS[0], with_answer=True).detects
    publish(tmp_path / "model", tmp_path / "published")
    assert weights_of(tmp_path / "published") == weights_of(tmp_path / "model") == ["backbone/model.safetensors"]


def weights_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("family", list(STOCK))
def test_the_folder_of_a_model_without_detection_gives_stock_transformers_its_logits(
    family: str, tmp_path: Path
) -> None:
    model = build_tiny(tiny_config(model={"family": family, "detection": None})).eval()
    save_model(tmp_path, model, tiny_processor(family, detection=False))
    part = conversation(model.backbone, 3, 4, [(112, 84)])
    with torch.no_grad():
        ours = run_backbone(model.backbone, [part]).hidden_TD @ model.backbone.lm_head_weight.T
    theirs = stock_logits(family, tmp_path / "backbone", part, model.backbone.image_token_id)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- LoRA


def stock_logits(family: str, folder: Path, part: Conversation, image_token_id: int) -> torch.Tensor:
    stock = STOCK[family].from_pretrained(folder, dtype=torch.float32).eval()
    ids = part.ids[None]
    with torch.no_grad():
        return stock(  # type: ignore[no-any-return]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == image_token_id).int(),
            pixel_values=part.patches,
            image_grid_thw=part.grids,
            use_cache=False,
        ).logits[0]


@pytest.mark.parametrize("family", list(STOCK))
def test_lora_is_saved_merged_and_stock_transformers_gives_its_logits(family: str, tmp_path: Path) -> None:
    _, model = save(tmp_path, family=family, **LORA)
    learned = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert learned and all(p.abs().max() > 0 for p in learned), "weights of zero would merge into nothing"
    part = conversation(model.backbone, 3, 4, [(112, 84)])
    with torch.no_grad():
        ours = run_backbone(model.backbone, [part]).hidden_TD @ model.backbone.lm_head_weight.T
    theirs = stock_logits(family, tmp_path / "backbone", part, model.backbone.image_token_id)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    names = load_file(tmp_path / "backbone" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in names)
    save(tmp_path / "plain", family=family)
    without = stock_logits(family, tmp_path / "plain" / "backbone", part, model.backbone.image_token_id)
    assert (without - ours).abs().max() > 1e-3, "LoRA changes nothing here, so the test would show nothing"


def test_a_merged_model_predicts_what_the_lora_model_predicts(tmp_path: Path) -> None:
    config, model = save(tmp_path, family=QWEN_FAMILY, **LORA)
    expected = predict(model, tiny_processor(config.model.family, caption_max_tokens=24))
    for ours, theirs in zip(predict(load_model(tmp_path), load_processor(tmp_path)), expected, strict=True):
        assert [item.desc for item in ours] == [item.desc for item in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.box == pytest.approx(other.box, abs=1e-2)
            assert one.objectness == pytest.approx(other.objectness, abs=1e-4)


@pytest.mark.parametrize("parts", [[], ["llm"], ["llm", "vision"]], ids=["whole", "llm", "both"])
def test_weights_are_put_back_for_training_as_they_were(parts: list[str], tmp_path: Path) -> None:
    """LoRA weights stay apart from those they adapt."""
    config, model = save(tmp_path, adapters=True, **{**LORA, "lora.parts": parts})
    other = build_tiny(config)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    load_for_training(other, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


# ---------------------------------------------------------------- one truth


def test_what_the_model_was_trained_with_is_in_the_checkpoint(saved: Path) -> None:
    facts = read_facts(saved)
    processor = tiny_processor(QWEN_FAMILY, caption_max_tokens=24)
    assert facts["prompt"] == processor.spec.to_json()
    assert {"system", "instruction", "chat_template", "box_convention", "min_pixels", "max_pixels"} <= set(
        facts["prompt"]
    )
    assert len(facts["prompt_hash"]) == len(facts["vocabulary_hash"]) == 64
    loaded = load_processor(saved)
    assert loaded.spec == processor.spec
    assert loaded.max_length == processor.max_length and loaded.caption_max_tokens == processor.caption_max_tokens


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("system", "You are a poet."),
        ("instruction", "List the parts, please."),
        ("chat_template", "{{ messages }}"),
        ("box_convention", "norm1000"),
        ("language", "zh"),
        ("min_pixels", 28 * 28),
        ("max_pixels", 28 * 28 * 999),
    ],
)
def test_an_edited_prompt_or_resize_policy_is_refused(field: str, value: Any, copy: Path) -> None:
    facts = json.loads((copy / FACTS_FILE).read_text(encoding="utf-8"))
    assert facts["prompt"][field] != value
    facts["prompt"][field] = value
    (copy / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
    for use in (load_model, load_processor, Inference):
        with pytest.raises(CheckpointError, match="the prompt is not the one the model was trained with"):
            use(copy)


def test_another_tokenizer_is_refused(copy: Path) -> None:
    train_tokenizer(["other words"] * 5, 290, QWEN).save_pretrained(copy / "backbone")
    with pytest.raises(CheckpointError, match="the tokenizer is not the one the model was trained with"):
        load_processor(copy)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: has \d+ bytes"):
        Inference(copy)


def test_a_tokenizer_with_two_tokens_swapped_is_refused(copy: Path) -> None:
    path = copy / "backbone" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    a, b = [token for token in vocabulary if token not in QWEN.special_tokens][40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the tokenizer is not the one"):
        load_processor(copy)


def test_resize_policy_and_template_come_from_the_checkpoint_not_from_files_beside_it(copy: Path) -> None:
    """Another program may rewrite these files; ours does not read the sizes and the template from them."""
    path = copy / "backbone" / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["size"] = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    path.write_text(json.dumps(settings), encoding="utf-8")
    (copy / "backbone" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    processor, untouched = load_processor(copy), tiny_processor(QWEN_FAMILY, caption_max_tokens=24)
    ours, theirs = (p.process_photos([], PHOTOS[2], with_answer=True) for p in (processor, untouched))
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


def spoil_missing_facts(folder: Path) -> None:
    (folder / FACTS_FILE).unlink()


def spoil_facts(folder: Path) -> None:
    (folder / FACTS_FILE).write_text("{", encoding="utf-8")


def spoil_lost_key(folder: Path) -> None:
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    del facts["detection"]
    (folder / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")


def spoil_format(folder: Path) -> None:
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    (folder / FACTS_FILE).write_text(json.dumps({**facts, "format": 99}), encoding="utf-8")


def spoil_sizes(folder: Path) -> None:
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    facts["detection"]["width"] = 64
    (folder / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")


def spoil_missing_head(folder: Path) -> None:
    (folder / HEAD_FILE).unlink()


def spoil_head(folder: Path) -> None:
    data = (folder / HEAD_FILE).read_bytes()
    (folder / HEAD_FILE).write_bytes(data[: len(data) // 2])


def spoil_missing_backbone(folder: Path) -> None:
    shutil.rmtree(folder / "backbone")


def spoil_backbone(folder: Path) -> None:
    path = folder / "backbone" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


SPOILERS = [value for name, value in list(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__.removeprefix("spoil_"))
def test_a_damaged_folder_is_a_one_line_error_that_names_it(spoil: Callable[[Path], None], copy: Path) -> None:
    spoil(copy)
    with pytest.raises(CheckpointError) as caught:
        load_model(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- folders of a run


def test_publishing_copies_the_model_alone_and_replaces_an_older_one(saved: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(saved, tmp_path / "checkpoint-5")
    (checkpoint / "optimizer.pt").write_bytes(b"large")
    seal(checkpoint)
    target = tmp_path / "model"
    target.mkdir()
    for name in ("old", FACTS_FILE):
        (target / name).touch()
    publish(checkpoint, target)
    assert sorted(path.name for path in target.iterdir()) == sorted(["backbone", HEAD_FILE, FACTS_FILE, MANIFEST_FILE])
    assert predict(load_model(target), load_processor(target)) == predict(load_model(saved), load_processor(saved))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "model"], "something is left behind"


def test_hashes_and_names_are_those_of_qwen_models_saved_by_earlier_versions() -> None:
    """Literals from a model folder of version 0.1.0: with others, models saved then would be refused."""
    prompt = PromptSpec.create("zh", QWEN, 50_176, 100_352)
    assert prompt.hash == "ef7f5a75bec2fba601916fd52f6166794e48fb9158a839d9ec9086152bc4452b"
    processor = tiny_processor("qwen2_5_vl")
    assert pixels_hash(processor) == "5a35539048d45d4241ea63541630e8915e8953d414751a8cbd638b29ac9fe593"
    model = build_tiny(tiny_config(model={"family": "qwen2_5_vl"}))
    names = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    for name in (
        "vision_adapters.0.norm.weight", "level_adapter.weight", "local_pyramid.halve.0.1.weight",
        "detection_head.learned_boxes", "detection_head.box_place.0.weight",
        "detection_head.layers.0.point_offset.weight", "detection_head.box_heads.0.step.0.weight",
    ):  # fmt: skip
        assert name in names


def test_a_model_whose_weights_are_not_finite_is_not_written(tmp_path: Path) -> None:
    model = build_tiny(tiny_config())
    with torch.no_grad():
        model.detection_head.box_heads[-1].norm.weight[3] = float("inf")
    with pytest.raises(NotFiniteError, match=r"the weights are not finite: detection_head\S+norm\.weight"):
        save_model(tmp_path / "model", model, tiny_processor(DEFAULT))
    assert not (tmp_path / "model").exists()
