"""Trainer callbacks: the progress bar, the tracker's run, and an evaluation after the last step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, WandbCallback

from bbu.losses.weighting import TERMS
from bbu.training.distributed import is_main

TRACKERS = (WandbCallback, TensorBoardCallback)
SHORT_NAMES = {
    "teacher_lm": "teach",
    "student_lm": "lm",
    "replay_lm": "replay",
    "bbox_l1": "l1",
    "bbox_giou": "giou",
    "objectness": "obj",
    "caption": "cap",
}


class ProgressBar(TrainerCallback):
    """A bar with the weighted loss terms and the time left, on the main rank only.

    If stderr is not a terminal, the bar is refreshed every 15 to 30 seconds only.
    """

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_main():
            quiet = not sys.stderr.isatty()
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="train",
                unit="step",
                dynamic_ncols=not quiet,
                mininterval=15.0 if quiet else 0.2,
                maxinterval=30.0,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            shown = {SHORT_NAMES[term]: f"{logs[f'loss/{term}']:.3f}" for term in TERMS if f"loss/{term}" in logs}
            self.bar.set_postfix({"loss": f"{logs['loss']:.3f}", **shown}, refresh=False)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is not None and metrics:
            shown = ", ".join(
                f"{name.removeprefix('eval_')} {value:.3f}" for name, value in metrics.items() if value is not None
            )
            self.bar.write(f"step {state.global_step}: val {shown}", file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the bar's line, so that the next output starts on a new one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class OnSave(TrainerCallback):
    """Calls ``action`` on the main rank whenever a whole checkpoint has been written."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if is_main():
            self.action()


class TrackedRun(TrainerCallback):
    """Keeps the id of the W&B run in the trainer's state, and so in each checkpoint (``recovery.tracked_run``)."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        callbacks: Any = state.stateful_callbacks
        callbacks[type(self).__name__] = {"args": {"run_id": self.run_id}, "attributes": {}}


def count_from(callbacks: Sequence[TrainerCallback], steps: int) -> None:
    """Let the trackers among some callbacks (W&B, TensorBoard) see the steps of earlier phases too."""
    for callback in callbacks:
        if steps and isinstance(callback, TRACKERS):
            callback.on_log = partial(_log_later, callback.on_log, steps)  # type: ignore[method-assign]


def _log_later(on_log: Callable[..., Any], steps: int, args: Any, state: TrainerState, *rest: Any, **more: Any) -> Any:
    state.global_step += steps
    try:
        return on_log(args, state, *rest, **more)
    finally:
        state.global_step -= steps


class EvaluateAtEnd(TrainerCallback):
    """Evaluates after the last step too, whatever the interval."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
