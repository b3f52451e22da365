"""Texts that the language model writes: the same in a batch as alone, and the summaries it has learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bbu.data.chat_processor import ChatProcessor
from bbu.data.photo import Photo
from bbu.errors import SampleError
from bbu.families.generation import Prompt
from bbu.inference import Inference
from bbu.losses.language_loss import linear_cross_entropy_sum
from bbu.models.checkpoint import save_model
from bbu.models.wrapper import DetectionVLM
from tests.tiny import FAMILIES, build_tiny, noise_photo, pack, run_model, tiny_config, tiny_model, tiny_processor

SUMMARIES = ["两个部件，一个松动。", "没有部件。"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every test of this file runs over all families."""
    return str(request.param)


def asked_for_summaries(family: str) -> ChatProcessor:
    processor = tiny_processor(family, caption_max_tokens=24)
    processor.spec = replace(processor.spec, summary_instruction="概括。")
    return processor


def photos() -> list[Photo]:
    pictures = [noise_photo(1, 112, 84), noise_photo(2, 84, 140)]
    return [replace(picture, summary=text) for picture, text in zip(pictures, SUMMARIES, strict=True)]


def test_a_text_is_the_same_in_a_batch_as_alone(family: str) -> None:
    """Prompts differ in length and in the size of their photos."""
    processor, backbone = asked_for_summaries(family), tiny_model(family).backbone
    samples = [
        processor.process_photos(photos()[:1], photos()[1], with_answer=False),
        *(processor.process_photos([], photo, with_answer=False, answer="summary") for photo in photos()),
    ]
    prompts = [Prompt(sample.input_ids, sample.pixel_values.double(), sample.image_grid_thw) for sample in samples]
    lengths = {"end_token_id": processor.end_token_id, "max_new_tokens": 12, "min_new_tokens": 8}
    with torch.no_grad():
        together = backbone.generate(prompts, **lengths)
        alone = [backbone.generate([prompt], **lengths)[0] for prompt in prompts]
    assert together == alone and len({len(prompt.input_ids) for prompt in prompts}) > 1
    assert all(8 <= len(written) <= 12 for written in alone)


def memorise(model: DetectionVLM, processor: ChatProcessor) -> None:
    """Learn the summaries of a few photos by heart."""
    batch = pack(model, [processor.process_photos([], item, with_answer=True, answer="summary") for item in photos()])
    optimizer, labels = torch.optim.AdamW(model.parameters(), lr=5e-3), batch["labels"][0]
    places = (labels >= 0).nonzero()[:, 0]
    for _ in range(150):
        states = run_model(model, batch).hidden_TD[places - 1]
        ones = torch.ones(len(places))
        loss = linear_cross_entropy_sum(states, model.backbone.lm_head_weight, labels[places], ones)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.2:
            return


def test_learned_summaries_are_written_one_by_one_or_in_a_batch(family: str, tmp_path: Path) -> None:
    model, processor = build_tiny(tiny_config(model={"family": family})), asked_for_summaries(family)
    memorise(model, processor)
    save_model(tmp_path, model, processor)
    inference = Inference(tmp_path, device="cpu", precision="fp32", batch_size=2)
    images = [photo.image for photo in photos()]
    assert inference.summarize(images) == SUMMARIES
    assert [inference.summarize(image) for image in images] == SUMMARIES
    samples = [inference.processor.process_photos([], photos()[0], with_answer=False, answer="summary")]
    (cut,) = inference.write_summaries(samples, max_new_tokens=3)
    assert not cut.finished and SUMMARIES[0].startswith(cut.text)
    assert inference.write_summaries(samples)[0].finished


def test_a_model_without_summaries_says_so(family: str, tmp_path: Path) -> None:
    save_model(tmp_path, build_tiny(tiny_config(model={"family": family})), tiny_processor(family))
    with pytest.raises(SampleError, match=r"not trained to answer with a summary; .*data\.answers\.summary"):
        Inference(tmp_path, device="cpu", precision="fp32").summarize(photos()[0].image)
