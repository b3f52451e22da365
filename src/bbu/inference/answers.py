"""Questions of training, put to the language model: its loss on the right answers, and the answers that it writes.

A question is a sample with its right answer; the model that answers sees what stands before it.

Shapes: D feature width, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput, Span
from bbu.errors import UserError
from bbu.evaluation.answers import WrittenAnswer
from bbu.families.generation import Prompt
from bbu.inference.predictor import Predictor
from bbu.losses.language_loss import answer_loss_sum
from bbu.records import FewShotSample

Failed = Callable[[FewShotSample, str], None]
ROOM = 16  # tokens that a written answer may have beyond twice the longest right one of its batch


@dataclass(frozen=True)
class Written:
    """A text that the language model wrote, the number of its tokens, and whether it ended before the token limit."""

    text: str
    tokens: int
    finished: bool


def write(
    predictor: Predictor, prompts: Sequence[Prompt], *, max_new_tokens: int, min_new_tokens: int = 0
) -> list[Written]:
    """What the language model writes after each prompt of a batch, each as if it were alone."""
    processor, end = predictor.processor, predictor.processor.end_token_id
    with _reading(predictor):
        rows = predictor.model.backbone.generate(
            prompts,
            end_token_id=end,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
        )
    return [Written(decoded(processor, ids), len(ids), ids[-1:] == [end]) for ids in rows]


def decoded(processor: ChatProcessor, ids: Sequence[int]) -> str:
    """Text of an answer's ids, without special tokens."""
    return str(processor.tokenizer.decode(list(ids), skip_special_tokens=True))


def prompt_of(sample: ChatProcessorOutput) -> Prompt:
    """What stands before the student's answer; all of a sample without one."""
    stop = sample.student_span[0] if sample.student_span else len(sample.input_ids)
    return Prompt(sample.input_ids[:stop], sample.pixel_values, sample.image_grid_thw)


def token_losses(predictor: Predictor, samples: Sequence[ChatProcessorOutput], spans: Sequence[Span]) -> list[float]:
    """Σ −log p of the tokens in a span of each sample, in nats, from one pass over all of them."""
    batch = predictor.collator(samples)
    with _reading(predictor):
        device = predictor.model.backbone.lm_head_weight.device
        hidden_TD = predictor.model.backbone(
            batch["input_ids"].to(device),
            batch["position_ids"].to(device),
            batch["pixel_values"].to(device),
            batch["image_grid_thw"],
            batch["cu_seqlens"].to(device),
            batch["max_seqlen"],
            image_keys=batch["image_keys"],
        ).hidden_TD
        labels_T = batch["input_ids"][0].to(device)
        starts = batch["cu_seqlens"].tolist()
        head = predictor.model.backbone.lm_head_weight
        sums = [
            answer_loss_sum(hidden_TD, labels_T, head, [(start + first, start + last)])
            for start, (first, last) in zip(starts, spans, strict=False)
        ]
    return torch.stack(sums).float().tolist()  # type: ignore[no-any-return]


def pass_probabilities(
    predictor: Predictor, pairs: Sequence[tuple[ChatProcessorOutput, ChatProcessorOutput]]
) -> list[float]:
    """Probability of ``pass`` against ``fail``, in [0, 1], where the answers of two samples first differ.

    Args:
        pairs: for each group, the same question with an answer of either kind: pass, then fail.
    """
    samples = [sample for pair in pairs for sample in pair]
    places = [_first_difference(*(sample.input_ids.tolist() for sample in pair)) for pair in pairs]
    spans = [(place, place + 1) for place in places for _ in range(2)]
    losses = torch.tensor(token_losses(predictor, samples, spans), dtype=torch.float64).reshape(-1, 2)
    return (-losses).softmax(1)[:, 0].tolist()  # type: ignore[no-any-return]


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    return next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def answer_loss(
    predictor: Predictor,
    questions: Sequence[FewShotSample],
    go_on: Callable[[], bool] = lambda: True,
    failed: Failed = lambda question, why: None,
) -> tuple[float, int]:
    """Σ −log p of the right answers' tokens, and their number; up to where ``go_on`` says no.

    Args:
        failed: called with each question that is left out, as a photo cannot be read or it is too long, and why.
    """
    total, count = 0.0, 0
    for _, samples in _in_batches(predictor, questions, go_on, failed):
        spans = [sample.student_span for sample in samples if sample.student_span]
        total += sum(token_losses(predictor, samples, spans))
        count += sum(stop - start for start, stop in spans)
    return total, count


def written_answers(
    predictor: Predictor,
    questions: Sequence[FewShotSample],
    go_on: Callable[[], bool] = lambda: True,
    failed: Failed = lambda question, why: None,
) -> Iterator[WrittenAnswer]:
    """What the language model answers to each question, in order; up to where ``go_on`` says no.

    An answer of more than twice the tokens of the longest right one of its batch is cut off.

    Args:
        failed: as for ``answer_loss``.
    """
    processor = predictor.processor
    for some, samples in _in_batches(predictor, questions, go_on, failed):
        spans = [sample.student_span for sample in samples if sample.student_span]
        most = 2 * max(stop - start for start, stop in spans) + ROOM
        texts = write(predictor, [*map(prompt_of, samples)], max_new_tokens=most)
        for question, sample, span, found in zip(some, samples, spans, texts, strict=True):
            images = tuple(row.images[0] for row in (*question.context, question.student))
            truth = decoded(processor, sample.input_ids[slice(*span)].tolist())
            yield WrittenAnswer(question.answer, images, truth, found.text, found.finished)


def _in_batches(
    predictor: Predictor, questions: Sequence[FewShotSample], go_on: Callable[[], bool], failed: Failed
) -> Iterator[tuple[list[FewShotSample], list[ChatProcessorOutput]]]:
    """Questions with their samples, at most ``batch_size`` photos together, or one question."""
    batch: tuple[list[FewShotSample], list[ChatProcessorOutput]] = [], []
    photos = 0
    for question in questions:
        if photos and photos + len(question.context) + 1 > predictor.options.batch_size:
            yield batch
            batch, photos = ([], []), 0
        if not go_on():
            return
        try:
            sample = predictor.processor.process_sample(question)
        except UserError as error:
            failed(question, str(error))
            continue
        batch[0].append(question)
        batch[1].append(sample)
        photos += len(question.context) + 1
    if photos:
        yield batch


@contextmanager
def _reading(predictor: Predictor) -> Iterator[None]:
    """Without gradients, in evaluation mode, at the predictor's precision."""
    model, training = predictor.model, predictor.model.training
    model.eval()
    try:
        with torch.no_grad(), predictor.precision():
            yield
    finally:
        if training:
            model.train()
