"""Conversations among the photos of a run: what becomes of them, how long they are, where they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbu.config import ReplayConfig
from bbu.data.chat_processor import IGNORE, ChatProcessor
from bbu.data.collators import PackedDataCollator
from bbu.data.dataset import TrainingStream, UnreadableSample
from bbu.data.packing.lengths import LengthMeter, StreamLengths
from bbu.data.packing.planner import Budgets, PackedRun
from bbu.data.replay import Replay, load_replay
from bbu.errors import ConfigError, RecordError
from bbu.families.cost import CostModel
from bbu.jsonl import write_jsonl
from bbu.records import FewShotSample, Row
from tests.tiny import FAMILIES

MODEL = CostModel(token=6e9, token_pair=3e5, patch=1.3e9, patch_pair=2e4)
TALKS: list[dict[str, Any]] = [
    {"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four"}, {"role": "user", "content": "And one?"},
        {"role": "assistant", "content": "Five, then."},
    ]},
    {"messages": [
        {"role": "user", "content": "Compare <image> with <image>."},
        {"role": "assistant", "content": "The first is larger."},
    ], "images": ["talk0.png", "talk1.png"]},
    {"messages": [{"role": "user", "content": "你好？"}, {"role": "assistant", "content": "你好。"}]},
]  # fmt: skip


@pytest.fixture
def talks(photo_folder: Path, make_photo: Callable[..., Path]) -> Path:
    """Three conversations, one of them with two photos."""
    for number, size in enumerate([(140, 84), (56, 56)]):
        make_photo(f"talk{number}.png", size, 90 + number)
    write_jsonl(photo_folder / "talks.jsonl", TALKS)
    return photo_folder / "talks.jsonl"


def replay_of(talks: Path, processor: ChatProcessor, share: float = 0.3) -> Replay:
    found = load_replay(ReplayConfig(str(talks), share), processor)
    assert found is not None
    return found


def stream_of(processor: ChatProcessor, rows: list[Row], replay: Replay | None, seed: int = 5) -> TrainingStream:
    return TrainingStream([FewShotSample(row) for row in rows], processor, length=200, seed=seed, replay=replay)


@pytest.mark.parametrize("family", FAMILIES)
def test_language_is_learned_from_every_answer_and_nothing_else(talks: Path, chat_processor: ChatProcessor) -> None:
    for row, raw in zip(replay_of(talks, chat_processor).rows, TALKS, strict=True):
        sample = chat_processor.process_conversation(row, talks.parent)
        decode = chat_processor.tokenizer.decode
        answers = [message["content"] for message in raw["messages"] if message["role"] == "assistant"]
        end = chat_processor.conversation.end
        assert [decode(sample.input_ids[a:b].tolist()) for a, b in sample.replay_spans] == [
            f"{a}{end}" for a in answers
        ]
        supervised = torch.zeros(len(sample.input_ids), dtype=torch.bool)
        for start, stop in sample.replay_spans:
            supervised[start:stop] = True
        assert torch.equal(sample.labels != IGNORE, supervised)
        assert torch.equal(sample.labels[supervised], sample.input_ids[supervised])
        text = str(decode(sample.input_ids.tolist()))
        assert all(m["content"] in text for m in raw["messages"] if "<image>" not in m["content"])
        assert len(sample.image_grid_thw) == len(raw.get("images", ()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_takes_no_part_in_detection(
    talks: Path, chat_processor: ChatProcessor, make_row: Callable[..., Row]
) -> None:
    talk = chat_processor.process_conversation(replay_of(talks, chat_processor).rows[1], talks.parent)
    photo = chat_processor.process_sample(FewShotSample(make_row("a.png", 3)))
    assert not talk.detects and talk.ground_truth_objects == [] and talk.student_span is None and photo.detects
    batch = PackedDataCollator(lambda ids, grids: torch.arange(len(ids))[None])([talk, photo, talk])
    assert batch["detecting"] == [1] and batch["box_counts"] == [3] and batch["student_images"] == [2]
    start = len(talk.input_ids)
    assert batch["photo_spans"] == [(photo.photo_span[0] + start, photo.photo_span[1] + start)]
    assert batch["image_to_sample"].tolist() == [0, 0, 1, 2, 2] and len(batch["names"]) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_are_those_of_the_real_samples(
    talks: Path, chat_processor: ChatProcessor, make_row: Callable[..., Row], tmp_path: Path
) -> None:
    stream = stream_of(chat_processor, [make_row(f"{n}.png", n) for n in range(7)], replay_of(talks, chat_processor))
    lengths = StreamLengths(stream, LengthMeter(chat_processor), MODEL, tmp_path / "lengths.json")
    start = 0
    for _ in range(3):
        found = lengths.epoch(start)
        samples = [stream[position] for position in range(start, start + len(found))]
        assert sum(sample.detects for sample in samples) == 7, "the photos of an epoch, each once"
        assert found.tokens.tolist() == [len(sample.input_ids) for sample in samples]
        assert found.images.tolist() == [len(sample.image_grid_thw) for sample in samples]
        patch = chat_processor.photo_plan.patch_size**2
        assert found.pixels.tolist() == [int(sample.image_grid_thw.prod(-1).sum()) * patch for sample in samples]
        start += len(found)
    assert not all(stream[position].detects for position in range(start))
    assert abs(start / 3 - stream.epoch_length) < 3


def test_planned_packs_hold_photos_and_conversations_once_each(
    talks: Path, chat_processor: ChatProcessor, make_row: Callable[..., Row], tmp_path: Path
) -> None:
    stream = stream_of(
        chat_processor, [make_row(f"{n}.png", n) for n in range(7)], replay_of(talks, chat_processor, 0.5)
    )
    lengths = StreamLengths(stream, LengthMeter(chat_processor), MODEL, tmp_path / "lengths.json")
    run = PackedRun(
        lengths.epoch, Budgets(600, 0, 4), steps=6, ranks=2, accumulation=1, seed=5, name=lengths.name
    )  # fmt: skip
    packs = list(run)
    positions = [position for pack in packs for position in pack]
    assert len(packs) == 12 and len(set(positions)) == len(positions)
    kinds = [{stream[position].detects for position in pack} for pack in packs]
    assert {True, False} in kinds, "photos and conversations share packs"
    for pack in packs:
        samples = [stream[position] for position in pack]
        assert sum(len(sample.input_ids) for sample in samples) <= 600
        assert sum(len(sample.image_grid_thw) for sample in samples) <= 4


def test_photos_keep_their_order_and_a_position_its_sample(
    talks: Path, chat_processor: ChatProcessor, make_row: Callable[..., Row]
) -> None:
    rows = [make_row(f"{n}.png", 1) for n in range(5)]
    alone, mixed = (stream_of(chat_processor, rows, r) for r in (None, replay_of(talks, chat_processor)))
    names = [mixed[position].name for position in range(100)]
    photos = [name for name in names if name.endswith(".png")]
    assert photos == [alone[position].name for position in range(len(photos))]
    assert abs(100 - len(photos) - 30) <= 2
    resumed = stream_of(chat_processor, rows, replay_of(talks, chat_processor))
    assert [resumed[position].name for position in (99, 3, 64, 63)] == [names[position] for position in (99, 3, 64, 63)]
    assert [mixed.name_at(position) for position in range(100)] == names


def test_a_conversation_whose_photo_is_gone_keeps_its_place(
    talks: Path, chat_processor: ChatProcessor, make_row: Callable[..., Row]
) -> None:
    stream = stream_of(chat_processor, [make_row("a.png", 1)], replay_of(talks, chat_processor, 0.5))
    (talks.parent / "talk1.png").unlink()
    found = stream.__getitems__(range(20))
    missing = [sample for sample in found if isinstance(sample, UnreadableSample)]
    assert missing and {(m.sample, m.photo) for m in missing} == {(f"{talks}:2", "talk1.png")}
    assert sum(sample.detects for sample in found if not isinstance(sample, UnreadableSample)) >= 8


def test_a_conversation_that_is_too_long_is_named_before_training(
    talks: Path, make_chat_processor: Callable[..., ChatProcessor]
) -> None:
    processor = make_chat_processor()
    longest = replay_of(talks, processor).tokens
    processor.max_length = int(longest.max())
    assert replay_of(talks, processor), "exactly as long as allowed"
    processor.max_length -= 1
    line = int(np.argmax(longest)) + 1
    with pytest.raises(RecordError, match=rf"talks\.jsonl:{line}: messages: has \d+ tokens .* over data\.max_length"):
        replay_of(talks, processor)


def test_a_photo_of_impossible_shape_is_named(talks: Path, chat_processor: ChatProcessor, make_photo: Any) -> None:
    make_photo("talk0.png", (4000, 8))
    with pytest.raises(RecordError, match=r"talks\.jsonl:2: images: .*aspect ratio"):
        replay_of(talks, chat_processor)


def test_without_a_share_no_file_is_read_and_with_one_it_is_needed(chat_processor: ChatProcessor) -> None:
    assert load_replay(ReplayConfig(), chat_processor) is None
    with pytest.raises(ConfigError, match=r"data\.replay\.path: name a JSONL file"):
        load_replay(ReplayConfig(share=0.1), chat_processor)


def test_answers_may_begin_with_any_sign(talks: Path, chat_processor: ChatProcessor) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}
        for text in ("\n\nyes", ":", "!\n", "assistant", "<", " 1")
    ]
    talks.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    for row in replay_of(talks, chat_processor).rows:
        sample = chat_processor.process_conversation(row, talks.parent)
        ((start, stop),) = sample.replay_spans
        assert chat_processor.tokenizer.decode(sample.input_ids[start : stop - 1].tolist()) == row.messages[1].parts[0]
