"""Samples of the Qwen families equal what transformers' own processors make; the text is what Qwen expects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bbu.data.photo import open_photo
from bbu.families.photo_plan import plan_resize
from bbu.families.prompts import WORDING, answer_text
from bbu.families.qwen2_5_vl.codec import QWEN
from bbu.images import load_image
from bbu.records import FewShotSample

TOKEN_SIDE = {"qwen2_5_vl": 28, "qwen3_vl": 32}  # of an image token, in pixels


@pytest.fixture(params=list(TOKEN_SIDE))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> Any:
    from bbu.families.tokenizer import load_tokenizer

    return load_tokenizer(str(shared_dir / "data" / "qwen_tokenizer"), QWEN)


def transformers_processor(family: str, processor: Any) -> Any:
    """transformers' own processor of the family, with our tokenizer and limits."""
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    spec = processor.spec
    size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    shared = {"tokenizer": processor.tokenizer, "chat_template": spec.chat_template}
    if family == "qwen2_5_vl":
        return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(size=size), video_processor=Qwen2VLVideoProcessor(), **shared)
    published = Qwen2VLImageProcessor(size=size, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Qwen3VLProcessor(published, video_processor=Qwen3VLVideoProcessor(), **shared)


def transformers_sample(
    family: str, processor: Any, sample: FewShotSample, folder: Path, with_answer: bool = True
) -> Any:
    """The same conversation, put together by hand and processed by transformers' own processor."""
    spec, theirs = processor.spec, transformers_processor(family, processor)
    system, instruction = WORDING[spec.language]
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    photos = []
    for row in (*sample.teachers, sample.student):
        photo = load_image(folder / row.images[0])
        photos.append(photo)
        ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}
        limits = {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels}
        plan = plan_resize(*photo.size, factor=TOKEN_SIDE[family], **limits)
        boxes = np.array([item.box for item in row.objects]).reshape(-1, 4)
        whole = (plan.model_width, plan.model_height) if family == "qwen2_5_vl" else (1000, 1000)
        scale = np.array([whole[0] / plan.width, whole[1] / plan.height] * 2)
        answer = answer_text(np.rint(boxes * scale), [item.desc for item in row.objects])
        messages += [ask, {"role": "assistant", "content": answer}]
    if not with_answer:
        messages.pop()
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=not with_answer)
    return theirs(text=[text], images=photos, return_tensors="pt")


@pytest.mark.parametrize("teachers", [0, 1, 3])
@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("which", ["trained", "published"])
def test_a_sample_equals_what_transformers_own_processor_makes(
    family: str,
    which: str,
    language: str,
    teachers: int,
    make_chat_processor: Callable[..., Any],
    make_sample: Callable[..., FewShotSample],
    photo_folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    import torch

    tokenizer = request.getfixturevalue("published") if which == "published" else None
    processor = make_chat_processor(language=language, tokenizer=tokenizer)
    sample = make_sample(teachers=teachers, objects=3)
    ours = processor.process_sample(sample)
    theirs = transformers_sample(family, processor, sample, photo_folder)
    assert ours.input_ids.tolist() == theirs["input_ids"][0].tolist()
    assert torch.equal(ours.pixel_values, theirs["pixel_values"])
    assert torch.equal(ours.image_grid_thw, theirs["image_grid_thw"])
    assert ours.pixel_values.shape[1] == 6 * (TOKEN_SIDE[family] // 2) ** 2 and ours.pixel_values.dtype == torch.float32
    assert len(ours.pixel_values) == int(ours.image_grid_thw.prod(-1).sum())


def test_at_inference_a_sample_equals_transformers_prompt(
    family: str, chat_processor: Any, make_sample: Callable[..., FewShotSample], photo_folder: Path
) -> None:
    sample = make_sample(teachers=1)
    photos = [open_photo(chat_processor.image_root, row) for row in (*sample.teachers, sample.student)]
    ours = chat_processor.process_photos(photos[:1], photos[1], with_answer=False)
    theirs = transformers_sample(family, chat_processor, sample, photo_folder, with_answer=False)
    assert ours.input_ids.tolist() == theirs["input_ids"][0].tolist()
    assert ours.student_span is None and len(ours.teacher_spans) == 1 and ours.ground_truth_objects == []
    assert ours.prompt_span[1] == len(ours.input_ids)


def test_the_prompt_of_a_sample_is_in_chatml(chat_processor: Any, make_sample: Callable[..., FewShotSample]) -> None:
    out = chat_processor.process_sample(make_sample(teachers=1))
    start, stop = out.prompt_span
    assert stop == out.student_span[0]
    grid = int(out.image_grid_thw[-1].prod()) // 4
    instruction = WORDING["zh"][1]
    assert chat_processor.tokenizer.decode(out.input_ids[start:stop]) == (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * grid + f"<|vision_end|>{instruction}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert start > out.teacher_spans[-1][1] - 1
