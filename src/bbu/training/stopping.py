"""Stop at a signal: the step under way ends, its checkpoint is written, and every rank stops at the same step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bbu.interruption import StopRequest
from bbu.training.distributed import world_size


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
