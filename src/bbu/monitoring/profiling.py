"""Profiler of a training step: labels its parts, records a trace and prints tables. Saves and scores nothing.

Labels are attached from outside and only while profiling, so normal training pays nothing for them.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, record_function, schedule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bbu.config import Config
from bbu.errors import UserError
from bbu.jsonl import atomic_file, atomic_writer
from bbu.losses import detection_loss, matcher
from bbu.monitoring.trace import LABEL, STEP, Gap, Took, Trace, step_gaps, step_operations, step_parts
from bbu.training import objective as objective_module
from bbu.training.callbacks import ProgressBar
from bbu.training.trainer import BBUTrainer

__all__ = ["Gap", "labelled_parts", "profile_config", "profile_step", "report", "step_gaps", "write_report"]

FOLDER, TRACE_FILE, TABLE_FILE = "profile", "trace.json", "profile.txt"
DEAREST, LONGEST = 10, 10  # number of operations and gaps in the tables


def profile_config(config: Config) -> Config:
    """The same training without evaluation, visual log, checkpoints, trackers and resuming."""
    changed = copy.deepcopy(config)
    changed.training.eval_every = changed.training.visual_every = changed.training.save_every = 0
    changed.training.report_to = []
    changed.training.resume = False
    changed.data.on_unreadable = changed.training.on_not_finite = "stop"
    return changed


def profile_step(trainer: BBUTrainer, folder: Path, warm_up: int = 3) -> Path:
    """Train ``warm_up`` steps and trace the next one into ``folder``; writes no checkpoint.

    Use a trainer for one profile only, because training changes its weights.

    Raises:
        UserError: the run has too few steps.
    """
    if trainer.args.max_steps <= warm_up:
        raise UserError(
            f"training.max_steps: {trainer.args.max_steps} steps are too few to profile one after {warm_up} warm-up "
            "steps; set it higher"
        )
    trainer.args.set_save(strategy="no")
    trainer.remove_callback(ProgressBar)
    trainer.write_no_log()
    tracer = StepTracer(folder / TRACE_FILE, warm_up)
    trainer.add_callback(tracer)
    with labelled_parts(trainer):
        try:
            trainer.train()
        finally:
            tracer.close()
    return tracer.path


class StepTracer(TrainerCallback):
    """Records the step after ``warm_up`` steps, from the end of the last one to its own end, then stops training."""

    def __init__(self, path: Path, warm_up: int) -> None:
        self.path, self.warm_up, self.recording = path, warm_up, False
        if not torch.cuda.is_available():
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a missing GPU as an error
        self.recorded = profile(
            schedule=schedule(wait=0, warmup=warm_up, active=1, repeat=1), on_trace_ready=self._write
        )
        self.optimizer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recorded.start()
        self.recording = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.optimizer = record_function(f"{LABEL}optimizer")
        self.optimizer.__enter__()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.optimizer.__exit__(None, None, None)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # count a step's kernels in that step
        self.recorded.step()
        if state.global_step > self.warm_up:
            control.should_training_stop = True

    def close(self) -> None:
        """Stop recording; an incomplete step is not written."""
        if self.recording:
            self.recorded.on_trace_ready = None
            self.recorded.stop()

    def _write(self, recorded: profile) -> None:
        """Write the trace atomically."""
        with atomic_file(self.path) as temporary:
            recorded.export_chrome_trace(str(temporary))


# ---------------------------------------------------------------- labels


@contextmanager
def labelled_parts(trainer: BBUTrainer) -> Iterator[None]:
    """Context in which the parts of a trainer's steps carry record_function labels."""
    objective = trainer.unwrapped
    model = objective.model
    places: list[tuple[Any, str, str]] = [
        (trainer, "get_batch_samples", "data"),
        (trainer, "compute_loss", "forward"),
        (trainer.accelerator, "backward", "backward"),
        (trainer.accelerator, "clip_grad_norm_", "optimizer"),
        (model.backbone, "see", "tower"),
        (model.backbone, "read", "language model"),
        (model, "_build_memory", "memory"),
        *([(model.detection_head, "forward", "head")] if model.config is not None else []),
        (objective_module, "begin_sums", "losses"),
        (detection_loss, "begin_matching", "matching"),
        (detection_loss.PendingSums, "finish", "losses"),
        (matcher.Matching, "finish", "matching"),
        (objective, "_compute_teacher_student_losses", "losses"),
        (objective, "_caption_sum", "captions"),
    ]
    with ExitStack() as stack:
        for owner, name, label in places:
            stack.enter_context(_labelled_calls(owner, name, label))
        yield


@contextmanager
def _labelled_calls(owner: Any, name: str, label: str) -> Iterator[None]:
    """Context in which calls of an object's or module's attribute carry a label."""
    original, own = getattr(owner, name), name in vars(owner)

    @functools.wraps(original)
    def labelled(*arguments: Any, **options: Any) -> Any:
        with record_function(LABEL + label):
            return original(*arguments, **options)

    setattr(owner, name, labelled)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


# ---------------------------------------------------------------- tables


def report(trace: Trace) -> str:
    """Tables of a trace: parts of the step, most expensive operations and, on a GPU, idle gaps."""
    parts, operations, gaps = step_parts(trace), step_operations(trace), step_gaps(trace)
    on_gpu = any(took.gpu_us for took in operations.values())
    tables = [_parts_table(parts, on_gpu), _operations_table(operations, on_gpu)]
    if on_gpu:
        tables.append(_gaps_table(gaps, parts[STEP].cpu_us))
    return "\n\n".join(tables)


def write_report(trace: Path) -> str:
    """``report``, also written beside the trace."""
    tables = report(trace)
    with atomic_writer(trace.with_name(TABLE_FILE)) as stream:
        stream.write(f"{tables}\n")
    return tables


def _parts_table(parts: Mapping[str, Took], on_gpu: bool) -> str:
    whole = parts[STEP]
    rows = []
    for path, took in parts.items():
        name = "  " * path.count("/") + path.rpartition("/")[2]
        cells = [name, _ms(took.cpu_us), _share(took.cpu_us, whole.cpu_us)]
        rows.append(cells + ([_ms(took.gpu_us), _share(took.gpu_us, whole.gpu_us)] if on_gpu else []))
    return _table(["part of the step", "ms", "share"] + (["GPU ms", "share"] if on_gpu else []), rows)


def _operations_table(operations: Mapping[str, Took], on_gpu: bool) -> str:
    cpu, gpu = (sum(getattr(took, kind) for took in operations.values()) for kind in ("cpu_us", "gpu_us"))
    rows = []
    for name, took in list(operations.items())[:DEAREST]:
        cells = [name, _ms(took.cpu_us), _share(took.cpu_us, cpu), str(took.calls)]
        rows.append(cells + ([_ms(took.gpu_us), _share(took.gpu_us, gpu)] if on_gpu else []))
    heads = [f"{len(rows)} dearest operations", "self ms", "share", "calls"]
    return _table(heads + (["GPU ms", "share"] if on_gpu else []), rows)


def _gaps_table(gaps: Sequence[Gap], step_us: float) -> str:
    """The longest gaps, below a summary of all of them."""
    idle = sum(gap.length_us for gap in gaps)
    longest = sorted(gaps, key=lambda gap: -gap.length_us)[:LONGEST]
    rows = [[gap.label, _ms(gap.start_us), _ms(gap.length_us)] for gap in longest]
    head = f"GPU idle {_ms(idle)} ms of the step ({_share(idle, step_us)}) in {len(gaps)} gaps"
    return f"{head}\n" + _table([f"{len(rows)} longest: what the CPU did", "at ms", "ms"], rows)


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1e3:.2f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first one to the left."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (heads, *rows)
    )
