"""On-disk cache of frozen vision features: bit-identical results, whether a photo is cached or not."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from bbu.config import AugmentConfig, load_config
from bbu.data.augment import Augmenter
from bbu.data.chat_processor import ChatProcessor
from bbu.data.collators import Batch
from bbu.errors import ConfigError
from bbu.families.feature_cache import FeatureCache
from bbu.losses.weighting import TERMS
from bbu.models.build import build_model, build_processor, freeze
from bbu.models.wrapper import DetectionVLM
from bbu.training.objective import DetectionObjective
from tests.tiny import (
    FAMILIES,
    mixed_samples,
    pack,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
    write_samples,
)

every_family = pytest.mark.parametrize("family", FAMILIES)


def frozen(family: str, folder: Path | None, dtype: torch.dtype = torch.float64) -> DetectionVLM:
    """A model with a frozen tower and a cache in ``folder``."""
    model = tiny_model(family, dtype)
    freeze(model, ["vision"])
    if folder is not None:
        model.backbone.feature_cache = FeatureCache(folder)
    return model


def named(family: str) -> ChatProcessor:
    return tiny_processor(family, name_photos=True)


def step(model: DetectionVLM, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients."""
    model.zero_grad()
    sums = DetectionObjective(model, tiny_config().loss)(**batch)
    loss = torch.stack([sums[term].double() for term in TERMS]).sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_bits(one: Any, other: Any) -> bool:
    return torch.equal(one[0], other[0]) and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def cache_of(model: DetectionVLM) -> FeatureCache:
    assert model.backbone.feature_cache is not None
    return model.backbone.feature_cache


def count_runs(model: DetectionVLM) -> list[int]:
    """Rows that went through the tower's first block, for each run of it."""
    runs: list[int] = []
    block = model.backbone.blocks("vision")[0]
    block.register_forward_pre_hook(lambda _, inputs: runs.append(len(inputs[0])))
    return runs


# ---------------------------------------------------------------- equal results


@every_family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cached_photos_give_the_same_bits_and_skip_the_tower(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    samples = mixed_samples(named(family))
    model = frozen(family, tmp_path, dtype)
    runs = count_runs(model)
    batch = pack(model, samples)
    first = step(model, batch)
    photos = len(set(batch["image_keys"]))
    assert len(runs) == photos == cache_of(model).written == 11
    assert same_bits(step(model, batch), first) and len(runs) == photos, "the tower ran again"

    later = frozen(family, tmp_path, dtype)  # another run with the same weights
    assert same_bits(step(later, batch), first) and cache_of(later).written == 0
    assert cache_of(later).read == photos


@every_family
def test_cached_features_do_not_depend_on_the_pack(family: str, tmp_path: Path) -> None:
    samples = mixed_samples(named(family))
    found = []
    for number, packs in enumerate(([samples], [[s] for s in samples], [samples[:2], samples[2:]])):
        model = frozen(family, tmp_path / str(number), torch.float32)
        for some in packs:
            step(model, pack(model, some))
        found.append({path.name: path.read_bytes() for path in (tmp_path / str(number)).glob("*/*")})
    assert found[0] == found[1] == found[2] and len(found[0]) == 11


@every_family
def test_with_and_without_a_cache_differ_by_rounding_alone(family: str, tmp_path: Path) -> None:
    batch = pack(tiny_model(family), mixed_samples(named(family)))
    plain, cached = (step(frozen(family, folder), batch) for folder in (None, tmp_path))
    torch.testing.assert_close(cached[0], plain[0], rtol=1e-9, atol=1e-9)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(cached[1][name], gradient, rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}")


# ---------------------------------------------------------------- keys


@every_family
def test_other_weights_backends_and_dtypes_share_no_features(family: str, tmp_path: Path) -> None:
    batch = pack(tiny_model(family), mixed_samples(named(family))[:1])

    def towers() -> int:
        return len(list(tmp_path.iterdir()))

    model = frozen(family, tmp_path, torch.float32)
    step(model, batch)
    assert towers() == 1
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if model.group_of(name) == "merger").add_(1)
        next(p for name, p in model.named_parameters() if model.group_of(name) == "llm").add_(1)
    step(model, batch)
    assert towers() == 1, "what comes after the tower does not change its features"
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if model.group_of(name) == "vision").flatten()[0].add_(1e-3)
    step(model, batch)
    assert towers() == 2
    with torch.autocast("cpu", torch.bfloat16):
        step(model, batch)
    assert towers() == 3
    model.backbone.attention_backend = "another"
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model.backbone.see(batch["pixel_values"], batch["image_grid_thw"], batch["image_keys"])
    assert towers() == 4
    step(frozen(family, tmp_path, torch.float64), batch)
    assert towers() == 5


@every_family
def test_a_key_follows_pixels_and_grid_alone(family: str) -> None:
    keys = [sample.image_keys for sample in mixed_samples(named(family))]
    assert keys == [sample.image_keys for sample in mixed_samples(named(family))]
    every = [key for some in keys for key in some]
    assert len(set(every)) == len(every) == 11
    assert all(sample.image_keys == [] for sample in mixed_samples(tiny_processor(family)))


@every_family
def test_a_random_view_is_not_cached(family: str, tmp_path: Path) -> None:
    samples = write_samples(tmp_path, 6)
    processor = tiny_processor(family, tmp_path, name_photos=True)
    config = AugmentConfig(brightness=0.3, teachers="none")
    for number, sample in enumerate(samples):
        plain = processor.process_sample(sample)
        shown = processor.process_sample(sample, Augmenter(config, 1).for_sample(0, number, 0.0))
        assert shown.image_keys == [*plain.image_keys[:-1], None] and None not in plain.image_keys


@every_family
def test_photos_without_a_key_are_not_cached(family: str, tmp_path: Path) -> None:
    model = frozen(family, tmp_path)
    batch = pack(model, mixed_samples(tiny_processor(family)))
    assert set(batch["image_keys"]) == {None}
    plain = step(frozen(family, None), batch)[0]
    torch.testing.assert_close(step(model, batch)[0], plain, rtol=1e-9, atol=1e-9)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- files


@every_family
@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", None], ids=["empty", "no states", "cut off"])
def test_a_damaged_file_is_computed_again(family: str, tmp_path: Path, damage: bytes | None) -> None:
    model = frozen(family, tmp_path)
    batch = pack(model, mixed_samples(named(family))[:2])
    first = step(model, batch)
    victim = min(tmp_path.glob("*/*"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert same_bits(step(model, batch), first)
    assert victim.read_bytes() == whole


@every_family
def test_an_unwritable_folder_warns_once_and_does_not_end_the_run(family: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    model = frozen(family, tmp_path / "file")
    batch = pack(model, mixed_samples(named(family))[:2])
    with pytest.warns(UserWarning, match="file: Not a directory; no more features are kept there") as said:
        first = step(model, batch)
    assert len(said) == 1 and same_bits(step(model, batch), first)


def write_and_read(folder: Path) -> None:
    cache, value = FeatureCache(folder), torch.arange(300_000).float().reshape(1000, 300)
    for _ in range(60):
        cache.put("tower", "photo", value)
        found = cache.get("tower", "photo")
        assert found is not None and torch.equal(found, value)


def test_concurrent_writers_never_leave_a_partial_file(tmp_path: Path) -> None:
    started = [multiprocessing.get_context("fork").Process(target=write_and_read, args=(tmp_path,)) for _ in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert [path.name for path in (tmp_path / "tower").iterdir()] == ["photo.safetensors"]


# ---------------------------------------------------------------- in a run


@every_family
def test_the_config_key_reaches_model_and_processor(family: str, tmp_path: Path) -> None:
    samples = write_samples(tmp_path, 3)
    config = tiny_config(model={"family": family, "freeze": ["vision"], "feature_cache": str(tmp_path / "kept")})
    model = build_model(config, tiny_tokenizer(family), device=torch.device("cpu"), dtype=torch.float32)
    processor = build_processor(config, samples, str(tmp_path))
    batch = pack(model, [processor.process_sample(sample) for sample in samples])
    assert None not in batch["image_keys"]
    model.backbone.see(batch["pixel_values"], batch["image_grid_thw"], batch["image_keys"])
    assert (
        cache_of(model).describe().startswith(f"{tmp_path / 'kept'} holds {len(set(batch['image_keys']))} photos, 0.0")
    )
    config.model.feature_cache = ""
    model = build_model(config, tiny_tokenizer(family), device=torch.device("cpu"), dtype=torch.float32)
    assert model.backbone.feature_cache is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "add vision to model.freeze"),
        (["model.freeze=[merger]"], "add vision to model.freeze"),
        (["model.freeze=[vision]", "model.lora.parts=[llm,vision]"], "model.lora.parts"),
    ],
)
def test_a_trainable_tower_cannot_be_cached(tmp_path: Path, overrides: list[str], words: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("seed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.feature_cache") as caught:
        load_config(path, ["model.feature_cache=kept", *overrides])
    assert words in str(caught.value)
    assert load_config(path, ["model.feature_cache=kept", "model.freeze=[vision]", "model.lora.parts=[llm]"])
