"""The log is honest: components sum to the loss that was backpropagated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import TrainerCallback

from bbu.config import GROUP_NAMES
from bbu.losses.weighting import LANGUAGE_TERMS, TERMS, count_terms
from bbu.training.trainer import BBUTrainer
from tests.tiny import DEFAULT, conversation_samples, mixed_samples, tiny_config, tiny_processor, tiny_trainer


@pytest.fixture(params=[(1, 1), (2, 3)], ids=["every step", "accumulated, every third step"])
def trained(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A few real steps, with what compute_loss returned."""
    accumulation, log_every = request.param
    rates = {f"learning_rates.{group}": 1e-4 * (n + 1) for n, group in enumerate(GROUP_NAMES)}
    config = tiny_config(
        loss={"teacher_lm_weight": 0.3, "student_lm_weight": 0.7, "replay_lm_weight": 0.6, "caption_weight": 1.7},
        training={
            "max_steps": 6, "batch_size": 2, "gradient_accumulation": accumulation, "log_every": log_every,
            "schedule": "constant", **rates,
        },
    )  # fmt: skip
    processor = tiny_processor(DEFAULT)
    samples = (conversation_samples(processor) + mixed_samples(processor)) * 3
    trainer = tiny_trainer(config, tmp_path, samples[: 12 * accumulation], processor)
    returned: list[float] = []
    answers: list[tuple[float, int]] = []  # of each batch: the loss sum over all answers, and their tokens
    real = BBUTrainer.compute_loss

    def remember(self: BBUTrainer, model: Any, inputs: Any, **options: Any) -> Any:
        with torch.no_grad():
            sums, counts = model(**inputs), count_terms(inputs)
        answers.append(
            (sum(sums[term].item() for term in LANGUAGE_TERMS), sum(counts[term] for term in LANGUAGE_TERMS))
        )
        loss = real(self, model, inputs, **options)
        returned.append(loss.item())
        return loss

    monkeypatch.setattr(BBUTrainer, "compute_loss", remember)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {"returned": returned, "answers": answers, "logs": logs, "accumulation": accumulation, "every": log_every}


def test_the_logged_components_sum_to_the_loss_that_was_backpropagated(trained: dict[str, Any]) -> None:
    batches = trained["accumulation"] * trained["every"]
    assert len(trained["logs"]) == 6 // trained["every"]
    for number, log in enumerate(trained["logs"]):
        window = trained["returned"][number * batches : (number + 1) * batches]
        assert len(window) == batches
        assert log["loss"] == pytest.approx(sum(window) / trained["every"], rel=1e-6)
        assert sum(log[f"loss/{term}"] for term in TERMS) == pytest.approx(log["loss"], rel=1e-5)


def test_the_plain_language_loss_is_the_token_weighted_mean(trained: dict[str, Any]) -> None:
    """Reported only: the components above sum to the loss without it."""
    steps = []
    for first in range(0, len(trained["answers"]), trained["accumulation"]):
        step = trained["answers"][first : first + trained["accumulation"]]
        steps.append(sum(total for total, _ in step) / sum(count for _, count in step))
    every = trained["every"]
    for number, log in enumerate(trained["logs"]):
        assert log["lm_loss"] == pytest.approx(sum(steps[number * every : (number + 1) * every]) / every, rel=1e-5)


def test_the_rate_of_every_group_is_logged(trained: dict[str, Any]) -> None:
    for log in trained["logs"]:
        for number, group in enumerate(GROUP_NAMES):
            assert log[f"learning_rate/{group}"] == pytest.approx(1e-4 * (number + 1))


def test_the_logged_rates_are_those_of_the_step_itself(tmp_path: Path) -> None:
    """While they change from step to step, in warm-up and decay."""

    class Rates(TrainerCallback):
        seen: ClassVar[list[dict[str, float]]] = []

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen.append({group["group"]: group["lr"] for group in kwargs["optimizer"].param_groups})

    config = tiny_config(training={"max_steps": 5, "batch_size": 1, "warmup_steps": 2, "schedule": "linear"})
    processor = tiny_processor(DEFAULT)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor), processor)
    trainer.add_callback(Rates())
    trainer.train()
    logged = [log for log in trainer.state.log_history if "loss" in log]
    assert len({rates["llm"] for rates in Rates.seen}) > 2, "the rates do not change here"
    for log, rates in zip(logged, Rates.seen, strict=True):
        assert {group: log[f"learning_rate/{group}"] for group in GROUP_NAMES} == pytest.approx(rates)
