"""Contracts of every family, and that no code outside families/ names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bbu.families.registry import backbone_class, scratch_sizes
from tests.tiny import FAMILIES, tiny_processor, tiny_sample, tiny_tokenizer

PROJECT = Path(__file__).resolve().parents[2]
KINDS = (".py", ".js", ".css", ".html", ".jinja", ".yaml", ".json", ".sh")
OTHER_MODELS = {"llama", "mllama", "siglip", "navit", "internvl"}  # a likely next family, or a part of one
every_family = pytest.mark.parametrize("family", FAMILIES)


def sources() -> list[Path]:
    """Files of the product outside families/."""
    room = PROJECT / "src" / "bbu" / "families"
    files = [path for top in ("src/bbu", "data_conversion") for path in (PROJECT / top).rglob("*")]
    return [path for path in files if path.suffix in KINDS and not path.is_relative_to(room)]


def test_no_file_outside_the_families_names_a_family_or_a_special_token() -> None:
    names = {word for family in FAMILIES for word in (family, family.partition("_")[0].rstrip("0123456789"))}
    tokens = {token for family in FAMILIES for token in backbone_class(family).conversation.special_tokens}
    models = "|".join(re.escape(name) for name in sorted(names | OTHER_MODELS))
    words = re.compile("|".join([rf"(?i:(?<![A-Za-z])(?:{models}))", *(re.escape(token) for token in tokens)]))
    for wanted in ("Qwen2.5-VL", "load_qwen", "_QWEN_SIZES", "mllama_states", "<|im_end|>"):
        assert words.search(wanted), "the search finds what it is for"
    assert not words.search("provision")
    found = [
        f"{path.relative_to(PROJECT)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert len(sources()) > 150 and not found, "\n".join(found)


@every_family
def test_the_template_writes_what_the_conversation_says(family: str) -> None:
    conversation, tokenizer = backbone_class(family).conversation, tiny_tokenizer(family)
    photo = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "look"}]}
    text = str(tokenizer.apply_chat_template([photo], tokenize=False, add_generation_prompt=True))
    assert text.startswith(conversation.turn_start) and text.count(conversation.image_token) == 1
    assert conversation.image_text in text and text.rstrip().endswith(conversation.answer_header.rstrip())
    assert conversation.answer_header.startswith(conversation.turn_start)
    said = str(tokenizer.apply_chat_template([photo, {"role": "assistant", "content": "[]"}], tokenize=False))
    assert f"{conversation.answer_header.rstrip()}" in said and f"[]{conversation.end}" in said


@every_family
def test_every_needed_token_is_one_id(family: str) -> None:
    conversation, tokenizer = backbone_class(family).conversation, tiny_tokenizer(family)
    assert (
        {conversation.image_token, conversation.turn_start, conversation.end, conversation.pad}
        <= {*conversation.needed_tokens}
        <= {*conversation.special_tokens}
    )
    for token in conversation.needed_tokens:
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [tokenizer.get_vocab()[token]]


@every_family
def test_the_students_photo_is_where_its_image_tokens_are(family: str) -> None:
    processor = tiny_processor(family)
    sample = tiny_sample(processor, 2, teachers=2)
    start, stop = sample.photo_span
    assert (sample.input_ids[start:stop] == processor.image_token_id).all()
    assert stop - start == processor.photo_plan.text_tokens(int(sample.image_grid_thw[-1].prod()))
    assert sample.prompt_span[0] < start and stop < sample.prompt_span[1]


@every_family
def test_a_plan_predicts_the_patches_from_the_size_alone(family: str) -> None:
    processor = tiny_processor(family)
    plan = processor.photo_plan
    sample = tiny_sample(processor, 1, teachers=3)
    assert sample.pixel_values.shape == (int(sample.image_grid_thw.prod(-1).sum()), plan.patch_width)
    assert tuple(sample.image_grid_thw[-1].tolist()) == plan.grid(sample.geometry)


@every_family
def test_sizes_have_defaults_and_refuse_unknown_keys(family: str) -> None:
    sizes = scratch_sizes(family, {})
    assert scratch_sizes(family, {"vocab_size": 300}).vocab_size == 300 != sizes.vocab_size
    with pytest.raises(ValueError, match="did you mean vocab_size"):
        scratch_sizes(family, {"vocab_sizes": 300})
    with pytest.raises(ValueError, match=r"model\.scratch\.vocab_size: must be a whole number, at least 1, is 0"):
        scratch_sizes(family, {"vocab_size": 0})
