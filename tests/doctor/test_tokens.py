"""Token lengths counted from text and sizes are those of the processor that training uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bbu.data.chat_processor import ChatProcessor
from bbu.doctor.charts import histogram, round_edges
from bbu.doctor.reading import Sample
from bbu.doctor.tokens import conversation_findings, measure_lengths
from bbu.jsonl import write_jsonl
from bbu.records import FewShotSample, Row
from tests.tiny import FAMILIES, tiny_config, tiny_processor, write_samples


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_are_those_of_the_processor(family: str, tmp_path: Path) -> None:
    samples = write_samples(tmp_path, 6)
    processor = tiny_processor(family, tmp_path)
    lengths = measure_lengths([Sample("train", "", s) for s in samples], [], processor, tiny_config())
    real = [processor.process_sample(sample) for sample in samples]
    for found in (lengths.alone, lengths.longest):
        assert found.tokens.tolist() == [len(made.input_ids) for made in real]
        assert (found.pixels // processor.photo_plan.patch_size**2).tolist() == [
            len(made.pixel_values) for made in real
        ]
        assert found.images.tolist() == [len(made.image_grid_thw) for made in real]


@pytest.mark.parametrize("family", FAMILIES)
def test_context_photos_are_counted(
    make_row: Callable[..., Row], make_chat_processor: Callable[..., ChatProcessor]
) -> None:
    from dataclasses import replace

    from bbu.families.prompts import CONTEXT_NOTES

    processor = make_chat_processor()
    processor.spec = replace(processor.spec, context_note=CONTEXT_NOTES["zh"])
    rows = [make_row(f"{n}.png", n, (84 + 28 * n, 84), seed=n) for n in range(4)]
    samples = [FewShotSample(rows[0], (rows[1],), (rows[2], rows[3])), FewShotSample(rows[1], (), (rows[0],))]
    lengths = measure_lengths([Sample("train", "", s) for s in samples], [], processor, tiny_config())
    assert lengths.alone.tokens.tolist() == [len(processor.process_sample(sample).input_ids) for sample in samples]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answer", ["summary", "group"])
def test_other_answers_are_counted(
    make_row: Callable[..., Row], make_chat_processor: Callable[..., ChatProcessor], answer: str
) -> None:
    from dataclasses import replace

    processor, config = make_chat_processor(answers=["boxes", answer]), tiny_config()
    setattr(config.data.answers, answer, 1.0)
    rows = [make_row(f"{n}.png", n, (84 + 28 * n, 84), seed=n) for n in range(3)]
    rows = [replace(row, summary="两个部件" * 40, metadata={"group": "a"}) for row in rows]
    others = {"summary": (), "group": (rows[0], rows[1])}[answer]
    made = processor.process_sample(FewShotSample(rows[2], context=others, answer=answer))
    lengths = measure_lengths([Sample("train", "", FewShotSample(row)) for row in rows], [], processor, config)
    assert lengths.longest.tokens[2] == len(made.input_ids) > lengths.alone.tokens[2]
    assert lengths.longest.images[2] == len(made.image_grid_thw)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_holds_for_every_choice_of_teachers_and_context(
    make_row: Callable[..., Row], make_chat_processor: Callable[..., ChatProcessor]
) -> None:
    from dataclasses import replace
    from itertools import permutations

    from bbu.families.prompts import CONTEXT_NOTES

    processor = make_chat_processor()
    processor.spec = replace(processor.spec, context_note=CONTEXT_NOTES["zh"])
    grouped = {"group": "site 7"}
    rows = [replace(make_row(f"{n}.png", n, (84 + 28 * n, 84), seed=n), metadata=grouped) for n in range(4)]
    config = tiny_config()
    config.data.episodes.counts, config.data.episodes.context_photos = {0: 0.5, 2: 0.5}, 1
    lengths = measure_lengths([Sample("train", "", FewShotSample(row)) for row in rows], rows, processor, config)
    assert lengths.teachers == 2
    for student, bound, pixels in zip(rows, lengths.longest.tokens, lengths.longest.pixels, strict=True):
        others = [row for row in rows if row is not student]
        made = [processor.process_sample(FewShotSample(student, (a, b), (c,))) for a, b, c in permutations(others, 3)]
        most = max(len(sample.input_ids) for sample in made)
        assert most <= bound <= most + 200  # close: it may show the student to itself
        assert all(len(sample.pixel_values) * processor.photo_plan.patch_size**2 <= pixels for sample in made)
    assert lengths.longest.images.tolist() == [4] * 4


def test_a_conversation_larger_than_a_pack_is_found(chat_processor: ChatProcessor, photo_folder: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
    write_jsonl(photo_folder / "talks.jsonl", [talk])
    config = tiny_config(data={"replay.path": str(photo_folder / "talks.jsonl"), "replay.share": 0.1})
    assert conversation_findings(config, chat_processor) == []
    config.training.pack_tokens = 5
    (found,) = conversation_findings(config, chat_processor)
    assert found.code == "bad_conversation"
    assert found.examples[0].line().endswith("tokens, over training.pack_tokens 5")
    assert found.examples[0].where == f"{photo_folder / 'talks.jsonl'}:1"
    config.data.replay.path = ""
    (found,) = conversation_findings(config, chat_processor)
    assert "data.replay.path: name a JSONL file" in found.examples[0].detail


def test_a_histogram_loses_nothing() -> None:
    values = [0, 1, 99, 100, 101, 730]
    bars = histogram(values, round_edges(max(values)))
    assert sum(bar.count for bar in bars) == len(values) and len(bars) <= 17
    assert all(bar.high - bar.low == bars[0].high for bar in bars if bar.high)
