"""The same optimizer steps cut in different ways, through the real trainer. Used by test_same_gradient.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from bbu.config import LossConfig
from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.losses.weighting import TERMS, term_weights
from tests.tiny import (
    DEFAULT,
    DESCRIPTIONS,
    Recorder,
    build_tiny,
    conversation_samples,
    mixed_samples,
    tiny_config,
    tiny_processor,
    tiny_trainer,
)


@dataclass(frozen=True)
class Cut:
    """How four samples make one step."""

    batch_size: int
    accumulation: int = 1
    ranks: int = 1
    packed: bool = True


CUTS = {
    "one pack of 4": Cut(4),
    "4 steps of accumulation": Cut(1, 4),
    "3 and 1": Cut(3, 2),  # the last batch of a step is smaller
    "padded, 2 x 2": Cut(2, 2, packed=False),
    "2 ranks of 2": Cut(2, ranks=2),
    "2 ranks, accumulating": Cut(1, 2, ranks=2),
}
SHIPPED = term_weights(LossConfig())
CAPTION_WEIGHTS = {desc: 0.5 + number for number, desc in enumerate(DESCRIPTIONS)}
WEIGHTS = [{other: float(other == term) for other in TERMS} for term in TERMS] + [SHIPPED]


class OneWeightAStep(TrainerCallback):
    """Step k weighs as WEIGHTS[k]."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.update(WEIGHTS[state.global_step])


def four_samples(processor: ChatProcessor) -> list[ChatProcessorOutput]:
    """A conversation, which has no detection; 3, 1 and 2 teachers; 1, 0 and 5 objects."""
    return [conversation_samples(processor)[1], *mixed_samples(processor)[1:4]]


def gradients_of_cut(cut: Cut, folder: Path, family: str = DEFAULT) -> dict[str, Any]:
    """One step for every entry of WEIGHTS, all on the same four samples and weights that stand still.

    Returns:
        ``gradients``: for each step every parameter's; ``logs``: for each step what was logged.
    """
    rates = {f"learning_rates.{group}": 0.0 for group in ("vision", "merger", "llm", "detection", "adapter")}
    config = tiny_config(
        model={"family": family},
        training={
            "batch_size": cut.batch_size,
            "gradient_accumulation": cut.accumulation,
            "packed": cut.packed,
            "max_steps": len(WEIGHTS),
            "max_grad_norm": 0.0,
            "weight_decay": 0.0,
            **rates,
        },
    )
    processor = tiny_processor(family, caption_weights=CAPTION_WEIGHTS)
    samples = four_samples(processor)
    if cut.batch_size == 3:  # fill each step up with samples in another order, so that batches hold 3 and 1
        samples = [samples[n] for n in (3, 0, 2, 1)]
    model = build_tiny(config, torch.float64)
    trainer = tiny_trainer(config, folder, StepSamples(samples, cut), processor, model)
    trainer.data_collator = Uneven(trainer.data_collator) if cut.batch_size == 3 else trainer.data_collator
    trainer.args.save_strategy = SaveStrategy.NO
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.add_callback(OneWeightAStep(trainer.weights))
    trainer.train()
    return {"gradients": recorder.gradients, "logs": [log for log in trainer.state.log_history if "loss" in log]}


class StepSamples(list[ChatProcessorOutput]):
    """The four samples over and over, as many as the run asks for."""

    def __init__(self, samples: list[ChatProcessorOutput], cut: Cut) -> None:
        a_step = samples if cut.batch_size != 3 else [*samples[:3], samples[3], samples[3], samples[3]]
        super().__init__(a_step * len(WEIGHTS))


class Uneven:
    """Drops repetitions from a batch, so that three equal samples become one."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, samples: list[ChatProcessorOutput]) -> Any:
        return self.collator(list({id(sample): sample for sample in samples}.values()))
