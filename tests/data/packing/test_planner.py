"""Planned packs: every sample once, within budgets, equal counts for ranks, and a plan that can be repeated."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.config import AugmentConfig, Config, EpisodesConfig
from bbu.config.checks import check_values
from bbu.data.packing.planner import Budgets, Lengths, PackedRun, fill_packs, plan_steps
from bbu.errors import CheckpointError, ConfigError, SampleError
from bbu.families.cost import CostModel
from bbu.families.qwen2_5_vl.codec import QWEN
from bbu.records import FewShotSample, Row
from bbu.tiles import Tiles
from tests import warm
from tests.tiny import FAMILIES

CELL = 28 * 28  # pixels of an image token in made-up lengths; any number would do
MODEL = CostModel(token=6e9, token_pair=3e5, patch=1.3e9, patch_pair=2e4)


def random_lengths(count: int, seed: int, longest: int = 4000) -> Lengths:
    """Samples of 1 to 4 photos and text beside them."""
    random = np.random.default_rng(seed)
    images = random.integers(1, 5, count)
    photo_tokens = images * random.integers(4, longest // 8, count)
    tokens = np.minimum(photo_tokens + random.integers(10, longest // 2, count), longest)
    return Lengths(tokens, photo_tokens * CELL, images, MODEL.text(tokens) + MODEL.photos(photo_tokens * 4))


budgets = st.builds(
    Budgets, tokens=st.sampled_from([0, 4000, 9001, 70_000]), pixels=st.sampled_from([0, CELL * 2000, CELL * 9999]),
    images=st.sampled_from([0, 4, 7, 64]),
).filter(lambda found: bool(found.limits))  # fmt: skip


@given(st.integers(1, 120), st.integers(0, 9), budgets)
def test_every_sample_is_in_one_pack_and_no_pack_is_over_a_budget(count: int, seed: int, allowed: Budgets) -> None:
    lengths = random_lengths(count, seed)
    packs = fill_packs(lengths, allowed, np.random.default_rng(seed))
    assert sorted(sample for pack in packs for sample in pack) == list(range(count))
    for pack in packs:
        for what, limit in allowed.limits.items():
            assert getattr(lengths, what)[pack].sum() <= limit


@pytest.mark.parametrize("limit", [3, 7, 16, 20, 1000])
def test_rounding_takes_no_room_away_from_a_small_budget(limit: int) -> None:
    ones = np.ones(4 * limit, dtype=np.int64)
    packs = fill_packs(Lengths(ones, ones, ones, ones), Budgets(0, 0, limit), np.random.default_rng(0))
    assert [len(pack) for pack in packs] == [limit] * 4


@pytest.mark.parametrize(
    "allowed", [Budgets(16_384), Budgets(0, CELL * 8192), Budgets(16_384, CELL * 8192), Budgets(100_000, 0, 24)]
)
def test_packs_are_full_by_the_largest_shares_of_their_samples(allowed: Budgets) -> None:
    lengths = random_lengths(4000, 3)
    packs = fill_packs(lengths, allowed, np.random.default_rng(0))
    shares = [getattr(lengths, what) / limit for what, limit in allowed.limits.items()]
    assert np.max(shares, axis=0).sum() / len(packs) >= 0.97


@given(st.integers(1, 150), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_ranks_get_equal_counts_and_what_is_left_is_less_than_a_step(
    count: int, ranks: int, accumulation: int, seed: int
) -> None:
    plan = plan_steps(
        random_lengths(count, seed), Budgets(8000), ranks=ranks, accumulation=accumulation,
        random=np.random.default_rng(seed),
    )  # fmt: skip
    assert len(plan.packs) % (ranks * accumulation) == 0
    assert sorted([*plan.left, *(sample for pack in plan.packs for sample in pack)]) == list(range(count))
    if ranks * accumulation == 1:
        assert plan.left == []
    if plan.left:
        kept = Lengths(*(np.asarray(values)[plan.left] for values in vars(random_lengths(count, seed)).values()))
        assert len(fill_packs(kept, Budgets(8000), np.random.default_rng(0))) <= ranks * accumulation


def test_ranks_of_a_step_have_about_the_same_cost() -> None:
    lengths, ranks = random_lengths(6000, 1), 8
    for accumulation in (1, 3):
        plan = plan_steps(
            lengths, Budgets(16_384), ranks=ranks, accumulation=accumulation, random=np.random.default_rng(0)
        )
        costs = np.array([lengths.cost[pack].sum() for pack in plan.packs]).reshape(-1, accumulation, ranks).sum(1)
        assert (costs.max(1) / costs.mean(1) - 1).mean() < 0.01


# ---------------------------------------------------------------- a whole run


def packed_run(count: int = 40, **changes: Any) -> PackedRun:
    options: dict[str, Any] = {"steps": 20, "ranks": 2, "accumulation": 2, "seed": 5, **changes}
    whole = options.pop("lengths", random_lengths(count, 0))
    return PackedRun(lambda start: whole, options.pop("budgets", Budgets(12_000)), **options)


def test_a_run_has_its_packs_and_each_position_comes_once() -> None:
    run = packed_run(steps=60)
    packs = list(run)
    assert len(packs) == len(run) == 60 * 2 * 2
    shown = Counter(position for pack in packs for position in pack)
    assert set(shown.values()) == {1}
    complete = max(shown) // 40  # epochs before the last one begun: of these, less than a step may be missing
    missing = [position for position in range((complete - 1) * 40) if position not in shown]
    assert complete > 3 and not missing


def test_one_rank_shows_every_sample_exactly_once_an_epoch() -> None:
    shown: list[int] = []
    for pack in packed_run(ranks=1, accumulation=1, steps=60):
        shown += pack
    epochs = [shown[first : first + 40] for first in range(0, len(shown) - 40, 40)]
    assert len(epochs) > 3
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == list(range(number * 40, number * 40 + 40))


def test_the_plan_follows_from_the_seed_and_is_new_each_epoch() -> None:
    assert list(packed_run()) == list(packed_run())
    assert list(packed_run(steps=40))[:80] == list(packed_run())
    assert list(packed_run()) != list(packed_run(seed=6))
    packs = list(packed_run(ranks=1, accumulation=1, steps=60))
    mates = [{frozenset(p % 40 for p in pack) for pack in packs if pack[0] // 40 == epoch} for epoch in range(2)]
    assert mates[0] and mates[0] != mates[1]


def test_data_smaller_than_a_step_waits_for_more_epochs() -> None:
    packs = list(packed_run(5, ranks=4, accumulation=2, steps=3))
    assert len(packs) == 24 and all(packs)
    shown = [position for pack in packs for position in pack]
    assert len(set(shown)) == len(shown)


def test_every_position_comes_at_most_one_plan_late() -> None:
    """One sample fits with no other, so its pack is always among the emptiest."""
    tokens = np.array([600, *[1000] * 10])
    same = Lengths(tokens, tokens, tokens, tokens.astype(np.float64))
    packs = list(packed_run(lengths=same, budgets=Budgets(1000), ranks=4, accumulation=1, steps=50))
    late = [number - (position // 11 + 1) * 11 for number, pack in enumerate(packs) for position in pack]
    assert max(late) <= 11


def test_a_sample_larger_than_a_pack_is_named_with_the_fix() -> None:
    for allowed, what in ((Budgets(900), "tokens"), (Budgets(0, CELL), "pixels"), (Budgets(0, 0, 1), "images")):
        with pytest.raises(SampleError, match=rf"^photo \d+: .* {what}, which is over training\.pack_{what} \d+; rais"):
            packed_run(budgets=allowed, name="photo {}".format)


def test_budgets_and_padding_exclude_each_other() -> None:
    config = Config()
    config.training.pack_images = 8
    check_values(config)
    config.training.packed = False
    with pytest.raises(ConfigError, match=r"training\.pack_images: packs are planned for training\.packed=true"):
        check_values(config)


# ---------------------------------------------------------------- lengths of real samples

MOVES = AugmentConfig(
    flip_horizontal=0.5, flip_vertical=0.5, quarter_turns=True, rotate=10, scale=0.2, crop=0.5, object_crop=0.3,
    mosaic=0.4, copy_paste=0.4, min_visible=0.1,
)  # fmt: skip


def measured_stream(
    processor: Any,
    rows: list[Row],
    cache: Path,
    augment: AugmentConfig | None,
    context: int = 0,
    tiles: Tiles | None = None,
) -> Any:
    from bbu.data.dataset import TrainingStream
    from bbu.data.packing.lengths import LengthMeter, StreamLengths
    from bbu.data.sampling.episodes import Episodes
    from bbu.data.tiling import add_tiles

    shown = Episodes(EpisodesConfig({0: 1, 1: 1, 3: 1}, pool="train", context_photos=context), rows, [], {}, 2)
    samples = add_tiles([FewShotSample(row) for row in rows], tiles, processor.spec.max_pixels, 0.4)
    stream = TrainingStream(samples, processor, length=10 * len(samples), seed=2, episodes=shown, augment=augment)
    return stream, StreamLengths(stream, LengthMeter(processor, augment), MODEL, cache)


def some_rows(make_row: Callable[..., Row]) -> list[Row]:
    sizes = [(112, 84), (300, 200), (56, 168), (84, 84), (500, 30), (29, 28)]
    return [make_row(f"{n}.png", n % 5, sizes[n % len(sizes)], n) for n in range(8)]


def real_lengths(stream: Any, start: int, count: int, processor: Any) -> Any:
    for sample in stream.__getitems__([tuple(range(start, start + count))]):
        patches = int(sample.image_grid_thw.prod(-1).sum())
        pixels = patches * processor.photo_plan.patch_size**2
        yield len(sample.input_ids), pixels, len(sample.image_grid_thw)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("augment", [None, AugmentConfig(brightness=0.3)], ids=["plain", "colours"])
def test_lengths_are_those_of_the_real_samples(
    augment: AugmentConfig | None, language: str, make_chat_processor: Any, make_row: Any, tmp_path: Path
) -> None:
    processor, rows = make_chat_processor(language=language), some_rows(make_row)
    stream, lengths = measured_stream(processor, rows, tmp_path / "lengths.json", augment)
    for epoch in range(2):
        found = lengths.epoch(8 * epoch)
        expected = list(real_lengths(stream, 8 * epoch, 8, processor))
        assert list(zip(found.tokens, found.pixels, found.images, strict=True)) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("augment", [None, AugmentConfig(mosaic=0.5, flip_horizontal=0.5)], ids=["plain", "mosaic"])
def test_tiles_are_planned_as_the_samples_that_they_are(
    augment: AugmentConfig | None, make_chat_processor: Any, make_row: Any, tmp_path: Path
) -> None:
    processor, rows = make_chat_processor(), some_rows(make_row)
    stream, lengths = measured_stream(processor, rows, tmp_path / "lengths.json", augment, tiles=Tiles(2, 1))
    start, sizes = 0, set()
    for _ in range(2):
        found = lengths.epoch(start)
        real = list(real_lengths(stream, start, len(found), processor))
        planned = list(zip(found.tokens, found.pixels, found.images, strict=True))
        assert planned == real if augment is None else all(a[0] <= b[0] for a, b in zip(real, planned, strict=True))
        sizes.add(len(found))
        start += len(found)
    assert min(sizes) > len(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("convention", ["model_pixels", "norm1000"])
@pytest.mark.parametrize(
    "augment",
    [
        MOVES,
        AugmentConfig(flip_horizontal=0.5, flip_vertical=0.5, quarter_turns=True),
        AugmentConfig(crop=0.9),
        AugmentConfig(mosaic=1, min_visible=0),
        AugmentConfig(copy_paste=1, paste_cover=1, min_visible=0),
    ],
    ids=["all", "turns", "crops", "mosaic", "copy-paste"],
)
def test_no_sample_is_longer_than_planned_whatever_augmentation_does(
    augment: AugmentConfig, convention: str, make_chat_processor: Any, make_row: Any, tmp_path: Path
) -> None:
    processor = make_chat_processor(box_convention=convention)
    stream, lengths = measured_stream(processor, some_rows(make_row), tmp_path / "lengths.json", augment)
    for epoch in range(6):
        found = lengths.epoch(8 * epoch)
        for place, (tokens, pixels, images) in enumerate(real_lengths(stream, 8 * epoch, 8, processor)):
            assert tokens <= found.tokens[place] and pixels <= found.pixels[place] and images == found.images[place]


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_samples_are_planned_about_as_long_as_they_get(
    make_chat_processor: Any, make_row: Any, tmp_path: Path
) -> None:
    """Which photos come into a mosaic and how many pieces are pasted is drawn for the plan as for the sample."""
    augment = AugmentConfig(flip_horizontal=0.5, mosaic=0.5, copy_paste=0.5, paste_cover=1)
    processor = make_chat_processor()
    stream, lengths = measured_stream(processor, some_rows(make_row), tmp_path / "lengths.json", augment)
    planned = [lengths.epoch(8 * epoch).tokens.sum() for epoch in range(6)]
    real = [sum(tokens for tokens, *_ in real_lengths(stream, 8 * epoch, 8, processor)) for epoch in range(6)]
    assert 0.6 < sum(real) / sum(planned) <= 1  # photos this small are mostly coordinates, planned at their widest


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
@pytest.mark.parametrize("augment", [None, MOVES], ids=["plain", "moved"])
def test_lengths_hold_for_qwens_own_tokenizer(
    augment: AugmentConfig | None, shared_dir: Path, make_chat_processor: Any, make_row: Any, tmp_path: Path
) -> None:
    from bbu.families.tokenizer import load_tokenizer

    folder = shared_dir / "data" / "qwen_tokenizer"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    processor = make_chat_processor(tokenizer=load_tokenizer(str(folder), QWEN))
    stream, lengths = measured_stream(processor, some_rows(make_row), tmp_path / "lengths.json", augment)
    real = [tokens for tokens, _, _ in real_lengths(stream, 0, 24, processor)]
    planned = np.concatenate([lengths.epoch(start).tokens for start in (0, 8, 16)])
    assert (planned >= real).all() and (augment is not None or planned.tolist() == real)


@pytest.mark.parametrize("family", FAMILIES)
def test_context_photos_are_counted(make_chat_processor: Any, make_row: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    from bbu.families.prompts import CONTEXT_NOTES

    processor = make_chat_processor()
    processor.spec = replace(processor.spec, context_note=CONTEXT_NOTES["zh"])
    rows = [replace(row, metadata={"group": "a"}) for row in some_rows(make_row)]
    stream, lengths = measured_stream(processor, rows, tmp_path / "lengths.json", None, context=2)
    found = lengths.epoch(0)
    assert list(zip(found.tokens, found.pixels, found.images, strict=True)) == list(
        real_lengths(stream, 0, 8, processor)
    )
    assert found.images.min() >= 3


def test_lengths_are_computed_once_and_again_when_anything_changes(
    make_chat_processor: Any, make_row: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bbu.data.packing.lengths import LengthMeter, measure_rows

    rows, cache, asked = some_rows(make_row), tmp_path / "lengths.json", []
    real = LengthMeter.answers
    monkeypatch.setattr(LengthMeter, "answers", lambda self, rows: (asked.append(1), real(self, rows))[1])

    def measure(rows: list[Row] = rows, augment: AugmentConfig | None = None, **options: Any) -> Any:
        return measure_rows(LengthMeter(make_chat_processor(**options), augment), rows, cache)

    first = measure()
    again = measure()
    assert len(asked) == 1
    assert (first.answers == again.answers).all() and (first.patches == again.patches).all()
    for changed in ({"language": "en"}, {"max_pixels": 120 * 120}, {"augment": MOVES}, {"rows": rows[:-1]}):
        measure()
        before = len(asked)
        measure(**changed)
        assert len(asked) == before + 1, f"{changed}: old lengths were used"
    cache.write_text('{"key": 3', encoding="utf-8")
    assert (measure().answers == first.answers).all(), "a damaged cache was not made again"


# ---------------------------------------------------------------- training


def test_packs_are_the_same_for_any_number_of_workers(chat_processor: Any, make_row: Any, tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    stream, lengths = measured_stream(chat_processor, some_rows(make_row), tmp_path / "lengths.json", MOVES)
    longest = int(lengths.epoch(0).tokens.max())
    packs = PackedRun(lengths.epoch, Budgets(2 * longest), steps=4, ranks=1, accumulation=1, seed=1)

    def seen(workers: int) -> list[list[Any]]:
        loader = DataLoader(
            stream, sampler=packs, batch_size=1, collate_fn=list, num_workers=workers,  # type: ignore[arg-type]
            multiprocessing_context="fork" if workers else None,
        )  # fmt: skip
        return [[(sample.name, sample.input_ids.tolist()) for sample in batch] for batch in loader]

    alone = seen(0)
    assert [len(batch) for batch in alone] == [len(pack) for pack in packs]
    assert alone == seen(2)


@pytest.mark.parametrize("skip", [0, 3])
def test_accelerate_deals_each_rank_its_share_of_every_step_also_when_resuming(skip: int) -> None:
    from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
    from torch.utils.data import BatchSampler

    run = packed_run(ranks=3, accumulation=2)
    expected = list(run)
    for rank in range(3):
        shard = BatchSamplerShard(BatchSampler(run, 1, drop_last=False), 3, rank)  # type: ignore[arg-type]
        found = [pack for [pack] in SkipBatchSampler(shard, skip)]
        assert found == expected[rank::3][skip:] and len(shard) == len(run) // 3


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_with_planned_packs_killed_and_resumed_is_the_run_never_killed(
    accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from bbu import stages
    from bbu.jsonl import write_jsonl
    from bbu.models import precision
    from bbu.training.trainer import BBUTrainer
    from tests.tiny import write_samples
    from tests.training.test_resume import PowerCutError, losses, pull_the_plug, run_config, weights

    monkeypatch.setattr(precision, "compute_device", lambda: torch.device("cpu"))
    records = tmp_path / "records"
    records.mkdir()
    samples = write_samples(records, 7)
    write_jsonl(records / "train.jsonl", [sample.to_json() for sample in samples])
    write_jsonl(records / "teacher.jsonl", [sample.student.to_json() for sample in samples[:3]])
    packed = {
        "training__pack_tokens": 1200,
        "training__pack_images": 4,
        "training__gradient_accumulation": accumulation,
    }
    sizes: list[tuple[int, int]] = []
    real = BBUTrainer.compute_loss

    def compute_loss(self: BBUTrainer, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        sizes.append((inputs["input_ids"].numel(), len(inputs["image_grid_thw"])))
        return real(self, model, inputs, *rest, **options)

    monkeypatch.setattr(BBUTrainer, "compute_loss", compute_loss)
    stages.train(run_config(records, tmp_path / "whole", **packed))
    assert max(tokens for tokens, _ in sizes) <= 1200 and max(images for _, images in sizes) <= 4
    assert len({images for _, images in sizes}) > 1
    broken = run_config(records, tmp_path / "broken", **packed)
    with monkeypatch.context() as context, pytest.raises(PowerCutError):
        pull_the_plug(context, after=4 * accumulation)
        stages.train(broken)
    broken.training.resume = True
    changes: dict[str, Any] = {"pack_tokens": 1300, "pack_images": 5, "gradient_accumulation": 3 - accumulation}
    for key, value in changes.items():
        kept = getattr(broken.training, key)
        setattr(broken.training, key, value)
        with pytest.raises(CheckpointError, match=rf"checkpoint-3: its run had training.{key} {kept}, not {value}"):
            stages.train(broken)
        setattr(broken.training, key, kept)
    stages.train(broken)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    final, resumed = (weights(tmp_path / name / "model") for name in ("whole", "broken"))
    assert all(torch.equal(final[name], resumed[name]) for name in final)


def test_the_benchmark_runs_and_ends_in_its_numbers(project: Path) -> None:
    done = warm.run(
        [sys.executable, str(project / "benchmarks" / "planner.py"), "--quick"],
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{project / 'src'}{os.pathsep}{project}"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == "planner"
    assert 0.9 < found["fill"] <= 1 and 0 <= found["rank_imbalance"] < 0.1 and found["seconds_per_million"] > 0
