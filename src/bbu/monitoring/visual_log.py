"""The visual training log: every N steps, what the model predicts for the same photos (docs/visual_log.md).

It goes to ``<output_dir>/training_log.html`` and to the trackers of ``training.report_to``. Training is bit-identical
with and without it, and no error in it ends a run.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from bbu.config import Config
from bbu.errors import UserError
from bbu.evaluation.pictures import draw_comparison
from bbu.images import load_image, open_image
from bbu.monitoring.visual_history import History, Look, read_page, thumbnail, write_page
from bbu.monitoring.visual_probe import Probe, Seen
from bbu.records import resolve_image

PAGE = "training_log.html"
TRACKED_LOOKS = 40  # looks whose pictures go to the trackers, about 200 kB each; scalars go at every look
PICTURE_QUALITY = 85  # JPEG


class VisualLog(TrainerCallback):
    """Looks at the probe photos, updates the page and the trackers; for the main rank only.

    A look at step n is taken before step n + 1 begins: then the losses and scores of step n are known, and a run that
    resumes from the checkpoint of step n does not miss it.

    Args:
        probe: the photos and the model.
        split: the split that the photos are from.
    """

    strict = False  # tests: an error here is an error

    def __init__(self, probe: Probe, config: Config, split: str) -> None:
        self.probe, self.config = probe, config
        self.path = Path(config.output_dir) / PAGE
        training = config.training
        facts = {
            "title": config.name or Path(config.output_dir).name,
            "split": split,
            "threshold": config.evaluation.score_threshold,
            "every": training.visual_every,
            "log_every": training.log_every,
            "eval_every": max(training.eval_every, 1),
            "max_steps": training.max_steps,
        }
        self.history = History(facts, [])
        self.trackers: list[TrainerCallback] = []
        self.failed = 0

    def attach(self, callbacks: list[TrainerCallback]) -> None:
        """Join a trainer's callbacks before its trackers, which close when training ends."""
        self.trackers = callbacks[:]
        callbacks.insert(0, self)

    # ------------------------------------------------------------ events

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._guarded(state, lambda: self._open(state.global_step))

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.config.training.visual_every == 0:
            self._guarded(state, lambda: self._look(state.global_step))

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._guarded(state, lambda: self.history.add_losses(state.global_step, logs))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if metrics:
            self._guarded(state, lambda: self.history.add_val(state.global_step, metrics))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._guarded(state, lambda: self._look(state.global_step))
        if self.failed > 1:
            tqdm.write(f"visual log: {self.failed} updates failed in all", file=sys.stderr)

    def _guarded(self, state: TrainerState, update: Callable[[], None]) -> None:
        """Run ``update``. An error is printed once and counted on the page; it never ends hours of training."""
        try:
            update()
        except Exception as error:
            if self.strict:
                raise
            self.failed += 1
            self.history.failed += 1
            if self.failed == 1:
                reason = (str(error).splitlines() or [""])[0]
                text = f"visual log: step {state.global_step}: {type(error).__name__}: {reason}; training goes on"
                tqdm.write(text, file=sys.stderr)

    # ------------------------------------------------------------ history

    def _open(self, step: int) -> None:
        """Continue the page of a resumed run, or begin an empty one."""
        self.history.photos = [thumbnail(row, self.probe.image_root) for row in self.probe.rows]
        if not (self.config.training.resume and self.path.is_file()):
            return
        try:
            old = read_page(self.path)
            before, now = ([replace(photo, jpeg="") for photo in page.photos] for page in (old, self.history))
            if before != now:
                raise UserError(f"{self.path}: shows other photos")
        except UserError as error:
            kept = self.path.with_suffix(".old.html")
            os.replace(self.path, kept)
            tqdm.write(f"visual log: {error}; kept as {kept.name}, a new one is started", file=sys.stderr)
            return
        old.facts, old.photos = self.history.facts, self.history.photos
        old.forget_after(step)
        self.history = old

    def _look(self, step: int) -> None:
        if self.history.looks and self.history.looks[-1].step == step:
            write_page(self.path, self.history)  # with the latest losses and scores
            return
        seen = self.probe.look()
        look = self.history.add_look(step, self.probe.rows, seen)
        write_page(self.path, self.history)
        self._track(look, seen)

    # ------------------------------------------------------------ trackers

    def _track(self, look: Look, seen: Seen) -> None:
        """Send scalars, and at every k-th look pictures, to the trainer's TensorBoard and W&B runs."""
        boards = [writer for item in self.trackers if (writer := getattr(item, "tb_writer", None)) is not None]
        modules = [getattr(item, "_wandb", None) for item in self.trackers]
        clouds: list[Any] = [wandb for wandb in modules if getattr(wandb, "run", None)]
        if not boards and not clouds:
            return
        numbers = {**look.metrics, "match_stability": look.stability, "seconds": look.seconds}
        scalars = {f"visual/{name}": value for name, value in numbers.items() if value is not None}
        pictures = self._pictures(seen) if self._shows_pictures(look.step) else {}
        for board in boards:
            for name, value in scalars.items():
                board.add_scalar(name, value, look.step)
            for name, jpeg in pictures.items():
                _add_jpeg(board, f"visual/{name}", jpeg, look.step)
            board.flush()
        for wandb in clouds:
            images = {
                f"visual/{name}": wandb.Image(open_image(jpeg), file_type="jpg") for name, jpeg in pictures.items()
            }
            wandb.log({**scalars, **images, "train/global_step": look.step})

    def _shows_pictures(self, step: int) -> bool:
        training = self.config.training
        every_kth = math.ceil(training.max_steps / training.visual_every / TRACKED_LOOKS)
        return step >= training.max_steps or step // training.visual_every % every_kth == 0

    def _pictures(self, seen: Seen) -> dict[str, bytes]:
        """Photo → JPEG of truth beside prediction; the page says why a photo could not be read."""
        pictures = {}
        for row, found in zip(self.probe.rows, seen.predictions, strict=True):
            if found.error is None:
                image = load_image(resolve_image(self.probe.image_root, row.images[0]))
                threshold, stream = self.config.evaluation.score_threshold, io.BytesIO()
                picture = draw_comparison(image, row.objects, found.predictions, threshold=threshold)
                picture.save(stream, format="JPEG", quality=PICTURE_QUALITY)
                pictures[row.images[0]] = stream.getvalue()
        return pictures


def _add_jpeg(board: Any, tag: str, jpeg: bytes, step: int) -> None:
    """Like ``SummaryWriter.add_image``, which would write a PNG many times larger."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    with open_image(jpeg) as image:
        width, height = image.size
    encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=jpeg)
    board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=encoded)]), step)
