"""The losses between two log lines, and the log file; a killed and resumed run continues both exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bbu.errors import UserError
from bbu.jsonl import decode_json, write_json, write_jsonl
from bbu.losses.weighting import TERMS
from bbu.training.distributed import gather, is_main, rank, sum_over_ranks, world_size

LOG_FILE = "train_log.jsonl"
WINDOW_FILE = "log_window.json"  # in a checkpoint


class LossWindow:
    """Sums over the steps since the last log line, on the device, and the mean loss of the whole run.

    A checkpoint stores them: else the first line after a resume would leave out the steps before the checkpoint.

    Args:
        components: (8,) each of TERMS, weighted, and the plain language loss, of this rank's batches.
        loss: what was backpropagated, in float32 as transformers sums it.
        steps: number of optimizer steps in the sums.
        logged_loss, logged_steps: sum of the losses on all lines so far, and their steps.
    """

    def __init__(self) -> None:
        self.components = torch.zeros(len(TERMS) + 1, dtype=torch.float64)
        self.loss = torch.zeros((), dtype=torch.float32)
        self.steps = torch.zeros((), dtype=torch.float64)
        self.logged_loss, self.logged_steps = 0.0, 0
        self._before: tuple[torch.Tensor, torch.Tensor] | None = None

    def begin_step(self, device: torch.device) -> None:
        """A step begins, whose batches are added next."""
        self.components, self.loss, self.steps = (v.to(device) for v in (self.components, self.loss, self.steps))
        self._before = (self.components.clone(), self.loss.clone())

    def end_step(self, counts: torch.Tensor) -> None:
        """A step ends; unless it ``counts`` (a boolean scalar on the device), the window forgets its batches."""
        if self._before is not None:
            self.components = torch.where(counts, self.components, self._before[0])
            self.loss = torch.where(counts, self.loss, self._before[1])
            self.steps += counts
            self._before = None

    def add(self, loss: torch.Tensor, components: Mapping[str, torch.Tensor], plain: torch.Tensor) -> None:
        """Add one batch: the loss to backpropagate, its components, and the plain language loss."""
        values = [*(components[term].detach().double() for term in TERMS), plain.detach().double()]
        self.components += torch.stack(values)
        self.loss += loss.detach()

    def close(self) -> dict[str, float]:
        """Means over the steps, for a log line, or nothing if there were none; a new window begins. Collective."""
        sums, loss, steps = self._read()
        self.logged_loss, self.logged_steps = self.logged_loss + loss, self.logged_steps + steps
        for values in (self.components, self.loss, self.steps):
            values.zero_()
        if not steps:
            return {}
        means = [value / steps for value in sums]
        terms = {f"loss/{term}": mean for term, mean in zip(TERMS, means[:-1], strict=True)}
        return {"loss": loss / steps, **terms, "lm_loss": means[-1]}

    def mean_loss(self) -> float:
        """Mean over all steps of the run. A collective call."""
        _, loss, steps = self._read()
        return (self.logged_loss + loss) / max(self.logged_steps + steps, 1)

    def _read(self) -> tuple[list[float], float, int]:
        """Components and loss summed over all ranks, and the steps; waits for the device once."""
        components, loss = sum_over_ranks(self.components.clone()), sum_over_ranks(self.loss.clone())
        *sums, loss_sum, steps = torch.cat([components, loss.double()[None], self.steps[None]]).tolist()
        return sums, loss_sum / world_size(), int(steps)

    def save(self, checkpoint: Path) -> None:
        """Write the sums of all ranks into a checkpoint. A collective call."""
        sums = gather([{"components": self.components.tolist(), "loss": self.loss.item()}])
        if is_main():
            run = {"steps": self.steps.item(), "logged_loss": self.logged_loss, "logged_steps": self.logged_steps}
            write_json(checkpoint / WINDOW_FILE, {**run, "ranks": sums})

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; one of an older version has no sums."""
        path = checkpoint / WINDOW_FILE
        if not path.is_file():
            return
        saved = decode_json(path.read_text(encoding="utf-8"), str(path))
        self.logged_loss, self.logged_steps = saved["logged_loss"], saved["logged_steps"]
        self.steps.fill_(saved["steps"])
        if rank() < len(saved["ranks"]):
            mine = saved["ranks"][rank()]
            self.components.copy_(torch.tensor(mine["components"], dtype=torch.float64))
            self.loss.fill_(mine["loss"])


@dataclass(frozen=True)
class LogPlace:
    """Where a training logs, and what comes before it in the file: nothing, or the earlier phases of a run.

    Args:
        lines: of the earlier phases.
        phase: name of this one; empty: the run has no phases.
        steps: of the earlier phases together.
    """

    path: Path
    lines: Sequence[Mapping[str, Any]] = ()
    phase: str = ""
    steps: int = 0

    def line(self, log: Mapping[str, Any]) -> dict[str, Any]:
        """A line of this training as it stands in the file, with steps of the whole run."""
        return {**log, "step": log["step"] + self.steps, "phase": self.phase} if self.phase else dict(log)


class LogFile(TrainerCallback):
    """Appends each log line to ``train_log.jsonl`` as it is logged, on the main rank.

    A resumed run first cuts the file back to the lines up to its checkpoint.

    Args:
        place: of the file.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, place: LogPlace) -> None:
        self.place, self.path = place, place.path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        lines = [*self.place.lines, *map(self.place.line, state.log_history)]
        if is_main() and lines:
            write_jsonl(self.path, lines)
        elif is_main():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)  # of an earlier run

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if is_main():
            append_row(self.path, self.place.line(state.log_history[-1]))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a JSONL file; a kill right afterwards does not lose it.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
