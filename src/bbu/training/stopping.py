"""What ends a run before its last step: a signal, or a metric on val that gains no more.

At a signal the step under way ends, its checkpoint is written, and every rank stops at the same step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bbu.config import EarlyStoppingConfig
from bbu.interruption import StopRequest
from bbu.training.distributed import is_main, world_size


class EvaluationStoppedError(Exception):
    """An evaluation on val ended before its last photo, on all ranks, because one of them was asked to stop."""


class SharedRequest(StopRequest):
    """A stop request that all ranks learn of in the same step.

    With several ranks, whether any rank was asked to stop travels with the loss terms' counts, which are summed over
    the ranks anyway: before a step's forward, so a signal during a step stops the next one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._any: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    @property
    def column(self) -> list[int]:
        """This rank's value in the sum over ranks; empty for a single process."""
        return [int(self.signum > 0)] if world_size() > 1 else []

    def take(self, counts: torch.Tensor) -> torch.Tensor:
        """Cut the column off the summed counts; its copy to the host waits for nothing."""
        if world_size() == 1:
            return counts
        self._any = counts[-1].to("cpu", non_blocking=True)
        if counts.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()
        return counts[:-1]

    @property
    def agreed(self) -> bool:
        """Whether all ranks stop after this step. The matcher has waited for the GPU since the copy was queued."""
        if self._any is None:
            return self.signum > 0
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._any.numpy() > 0)


class StopOnSignal(TrainerCallback):
    """Saves and stops at the end of the step in which ranks agree to; an evaluation that is due then waits.

    A resumed run makes up for the evaluation, so that it is the run that was never stopped.

    Args:
        stop: the trainer's request.
        evaluate_late: evaluates what the model has learned so far.
    """

    def __init__(self, stop: SharedRequest, evaluate_late: Callable[[], None]) -> None:
        self.stop, self.evaluate_late = stop, evaluate_late

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stop.agreed:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.eval_strategy == "no" or not state.global_step:
            return
        due = state.global_step % int(args.eval_steps or 1) == 0 or state.global_step >= state.max_steps
        if due and not any(log["step"] == state.global_step for log in state.log_history if "eval_seconds" in log):
            self.evaluate_late()


class EarlyStopping(TrainerCallback):
    """Ends a run after ``patience`` evaluations in a row without a gain (Prechelt 1998, "Early Stopping — But When?").

    The count follows from the log in the trainer's state, so a resumed run goes on with it, under its own settings.

    Args:
        config: patience, and how much a gain is at least.
        metric: of the evaluations on val.
    """

    def __init__(self, config: EarlyStoppingConfig, metric: str) -> None:
        self.config, self.metric = config, metric

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._judge(state, control)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._judge(state, control)

    def _judge(self, state: TrainerState, control: TrainerControl) -> None:
        count, best = without_gain(state.log_history, self.metric, self.config.min_delta)
        if count < self.config.patience or state.global_step >= state.max_steps or control.should_training_stop:
            return
        control.should_training_stop = True
        if is_main():
            least = f" of more than {self.config.min_delta:g}" if self.config.min_delta else ""
            tqdm.write(
                f"stopped early at step {state.global_step} of {state.max_steps}: {self.metric} on val had no gain"
                f"{least} in {count} evaluations, since {best:.3f}",
                file=sys.stderr,
            )


def gain(value: float, metric: str | None) -> float:
    """The value of a metric so that more is better: of a loss, less is."""
    return -value if metric == "loss" else value


def without_gain(log_history: Iterable[Mapping[str, Any]], metric: str, min_delta: float) -> tuple[int, float]:
    """Evaluations since the last gain of a metric on val, and its value; an undefined value is no gain."""
    count, best = 0, -math.inf
    for log in (log for log in log_history if "eval_seconds" in log):
        value = gain(log[f"eval_{metric}"], metric) if f"eval_{metric}" in log else -math.inf
        count, best = (0, value) if value > best + min_delta else (count + 1, best)
    return count, gain(best, metric)
