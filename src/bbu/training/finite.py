"""Steps whose loss or gradient is not finite change no weight, are named, and are kept for replay.

A GPU is never waited for. A loss that is not finite makes its whole gradient NaN, so one number, the norm of the
gradient, tells all ranks. The optimizer gets it as ``found_inf`` and leaves the weights alone, on the device. The host
reads a copy of it in the next step, after the matching has waited for that step's costs.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from bbu.config import TrainingConfig
from bbu.data.collators import Batch
from bbu.errors import NotFiniteError, UserError
from bbu.jsonl import write_json
from bbu.losses.weighting import TERMS
from bbu.models.finite import check_finite, not_finite, shown_names, weights_text
from bbu.training.distributed import gather, is_main, rank
from bbu.training.objective import DetectionObjective
from bbu.training.replay import MOST_BYTES, NOT_FINITE_FOLDER, keep_batches, replay, room_for
from bbu.training.unreadable import UnreadablePhotos

SKIPPED = "skipped_steps"  # in the log: steps left out so far


def poison(loss: torch.Tensor) -> torch.Tensor:
    """The same loss; if it is not finite, every gradient that flows from it is NaN."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


@dataclass
class Step:
    """A step under way: its batches, the weighted components of each, and in the end the norm of its gradient.

    Args:
        left_out: samples left out on all ranks because a photo cannot be read, a scalar.
        verdict: on the host, the norm, the samples left out and the components of each batch; filled once ``ready`` has
            happened.
    """

    number: int
    batches: list[Batch]
    left_out: torch.Tensor
    components: list[torch.Tensor] = field(default_factory=list)
    verdict: torch.Tensor | None = None
    ready: torch.cuda.Event | None = None

    def read(self) -> tuple[float, int, list[list[str]]]:
        """Norm, samples left out, and of each batch the terms that are not finite.

        Waits for the copy, not for all that the device has to do.
        """
        if self.ready is not None:
            self.ready.synchronize()
        assert self.verdict is not None
        norm, left_out, *values = self.verdict.tolist()
        rows = [values[start : start + len(TERMS)] for start in range(0, len(values), len(TERMS))]
        spoilt = [[term for term, value in zip(TERMS, row, strict=True) if not math.isfinite(value)] for row in rows]
        return norm, int(left_out), spoilt


@dataclass(frozen=True)
class Finding:
    """What was not finite on one rank: terms of the loss, and the samples of the batches they came from."""

    terms: list[str]
    gradients: list[str]
    samples: list[str]


class StepGuard:
    """Watches the steps of a run.

    Args:
        config: says what happens to a step that is not finite, and how often.
        output: the run's folder.
        objective: the module in training, without wrappers.
        save_model: writes the model into a folder.
        history: the run's log lines so far, a resumed run's earlier ones included.
        log: adds a log line.
        unreadable: is told on all ranks together when samples were left out.
    """

    def __init__(
        self,
        config: TrainingConfig,
        output: Path,
        objective: Callable[[], DetectionObjective],
        save_model: Callable[[Path], None],
        history: Callable[[], list[dict[str, Any]]],
        log: Callable[[dict[str, float]], None],
        unreadable: UnreadablePhotos,
    ) -> None:
        self.config, self.folder = config, output / NOT_FINITE_FOLDER
        self.objective, self.save_model, self.history, self.log = objective, save_model, history, log
        self.unreadable = unreadable
        self.keeps = True  # batches, for replay
        self._open: Step | None = None
        self._closed: Step | None = None

    def begin(self, number: int, batches: list[Batch], left_out: torch.Tensor) -> None:
        """A step begins; ``number`` counts from 1."""
        self._open = Step(number, batches, left_out)

    def add(self, components: Mapping[str, torch.Tensor]) -> None:
        """The weighted components of the step's next batch."""
        if self._open is not None:
            self._open.components.append(torch.stack([components[term].detach().double() for term in TERMS]))

    def end(self, norm: torch.Tensor) -> torch.Tensor:
        """The step's gradient is complete.

        Args:
            norm: of the gradient, the same on all ranks.

        Returns:
            Whether the step counts, a boolean scalar on the norm's device.
        """
        step, self._open = self._open, None
        if step is not None:
            numbers = [norm.detach().double()[None], step.left_out.double()[None], *step.components]
            values = torch.cat([number.to(norm.device) for number in numbers])
            step.verdict = values.to("cpu", non_blocking=True)
            if values.is_cuda:
                step.ready = torch.cuda.Event()
                step.ready.record()
            self._closed = step
        return norm.isfinite()

    def judge(self) -> None:
        """Act on the last step if it was not finite or left samples out. All ranks call it at the same points.

        Raises:
            NotFiniteError: it was not finite, and the run is to stop or has left out enough steps.
            ImageError: too many photos are unreadable.
        """
        step, self._closed = self._closed, None
        if step is None:
            return
        norm, left_out, spoilt = step.read()
        if left_out:
            self.unreadable.settle()
        if not math.isfinite(norm):
            self._act(step, norm, spoilt)

    def check_weights(self) -> None:
        """Look at every weight, frozen ones included; waits for the device once.

        Raises:
            NotFiniteError: one is not finite; the message names it.
        """
        check_finite(self.objective().model.state_dict())

    def _act(self, step: Step, norm: float, spoilt: list[list[str]]) -> None:
        weights = not_finite(self.objective().model.state_dict().items())
        found = gather([self._finding(step, spoilt, look_further=not weights)])
        guilty = [finding for finding in found if finding.terms or finding.gradients] or found
        samples = list(dict.fromkeys(name for finding in guilty for name in finding.samples))
        cause = weights_text(weights) if weights else _cause(found, norm)
        report = {
            "step": step.number, "cause": cause, "gradient_norm": repr(norm), "weights": weights, "samples": samples,
            "terms": _merged(finding.terms for finding in found),
            "gradients": _merged(finding.gradients for finding in found),
        }  # fmt: skip
        own = [batch for batch, terms in zip(step.batches, spoilt, strict=False) if terms] or step.batches
        batches = own if found[rank()] in guilty else []
        kept = self._keep(self.folder / f"step-{step.number}", batches, report, with_model=not weights)
        self._stop_or_go_on(f"step {step.number}: {cause}; samples: {shown_names(samples)}", kept, bool(weights))

    def _finding(self, step: Step, spoilt: list[list[str]], *, look_further: bool) -> Finding:
        """Terms tell the batch; where all are finite the batches are run again until one has a spoilt gradient."""
        terms = _merged(spoilt)
        names = [name for batch, its in zip(step.batches, spoilt, strict=False) if its for name in batch["names"]]
        if any(gather([bool(terms)])) or not look_further:
            return Finding(terms, [], names)
        for batch in step.batches:
            try:
                gradients = replay(self.objective(), batch).gradients
            except RuntimeError:  # no memory for it: what is known is said
                break
            if gradients:
                return Finding([], gradients, list(batch["names"]))
        return Finding([], [], [name for batch in step.batches for name in batch["names"]])

    def _keep(self, folder: Path, batches: list[Batch], report: dict[str, Any], *, with_model: bool) -> str:
        """Write batches, model and report; returns where they are, or why not. Ends on all ranks together."""
        if not self.keeps:
            return "the batch was not kept"
        mine, trouble = [], ""
        try:
            mine = keep_batches(folder, f"rank-{rank()}", batches)
            size = sum(value.nbytes for value in self.objective().model.state_dict().values())
            if is_main() and with_model and room_for(self.folder, size):
                self.save_model(folder / "model")
        except (OSError, UserError, SafetensorError) as error:
            shutil.rmtree(folder / "model", ignore_errors=True)
            trouble = f"the batch could not be kept: {error}"
        kept = [name for names in gather([mine]) for name in names]
        if not kept and not trouble:
            trouble = f"the batch was not kept: {self.folder} would be over {MOST_BYTES / 2**30:.1f} GiB"
        if is_main() and not trouble:
            write_json(folder / "report.json", {**report, "batches": kept})
        gather([None])  # a rank that raises ends the others
        return trouble or f"kept in {folder} to be replayed (docs/training.md)"

    def _stop_or_go_on(self, where: str, kept: str, weights: bool) -> None:
        if weights:
            raise NotFiniteError(
                f"{where}; {kept}. Continue from the last checkpoint with lower training.learning_rates"
            )
        count = 1 + max((int(line[SKIPPED]) for line in self.history() if SKIPPED in line), default=0)
        most = self.config.max_not_finite
        if self.config.on_not_finite == "stop":
            raise NotFiniteError(
                f"{where}; no weight was changed; {kept}. Lower training.learning_rates or look at these samples, then "
                "continue with training.resume=true; training.on_not_finite=skip leaves such steps out"
            )
        if count > most:
            raise NotFiniteError(
                f"{where}; no weight was changed; {kept}. This is step {count} of the kind and "
                f"training.max_not_finite is {most}: lower training.learning_rates or look at these samples"
            )
        if is_main():
            tqdm.write(f"left out ({count} of at most {most}): {where}; {kept}", file=sys.stderr)
        self.log({SKIPPED: count})


def _cause(found: list[Finding], norm: float) -> str:
    terms, gradients = _merged(f.terms for f in found), _merged(f.gradients for f in found)
    if terms:
        return f"{', '.join(f'loss/{term}' for term in terms)} not finite"
    if gradients:
        return f"the gradient is not finite: {shown_names(gradients)}"
    return f"the norm of the gradient is {norm}"


def _merged(lists: Any) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))
