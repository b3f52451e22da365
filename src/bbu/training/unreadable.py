"""Photos that turn unreadable in training: their samples are left out of the step, listed and counted."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bbu.config import DataConfig
from bbu.data.collators import Batch
from bbu.errors import ImageError, RecordError
from bbu.jsonl import iter_json_lines, write_jsonl
from bbu.models.finite import shown_names
from bbu.training.distributed import gather, is_main
from bbu.training.loss_log import append_row

UNREADABLE_FILE = "unreadable_photos.jsonl"


class UnreadablePhotos(TrainerCallback):
    """The samples that were left out, by photo; ``unreadable_photos.jsonl`` has a row for each.

    Args:
        config: says whether such a photo stops the run, and how many may be left out.
        output: the run's folder.
    """

    def __init__(self, config: DataConfig, output: Path) -> None:
        self.config, self.path = config, output / UNREADABLE_FILE
        self.rows: list[dict[str, Any]] = []  # of all ranks
        self._mine: list[dict[str, Any]] = []  # of this rank, not yet listed

    @property
    def photos(self) -> list[str]:
        """The photos, each once."""
        return list(dict.fromkeys(row["photo"] for row in self.rows))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed run keeps the rows up to its checkpoint, a fresh one begins anew."""
        kept: list[dict[str, Any]] = []
        if is_main() and self.path.is_file():
            if state.global_step:
                with suppress(RecordError):  # a line cut off by a full disk; it came after the checkpoint
                    kept += (row for _, row in iter_json_lines(self.path) if row["step"] <= state.global_step)
                write_jsonl(self.path, kept)
            else:
                self.path.unlink()
        self.rows, self._mine = gather([kept])[0], []

    def meet(self, step: int, batches: list[Batch]) -> int:
        """Remember a step's samples that are left out on this rank; returns how many.

        Raises:
            ImageError: there is one, and such a photo is to stop the run.
        """
        found = [{"step": step, **row} for batch in batches for row in batch.get("unreadable", ())]
        if found and self.config.on_unreadable == "stop":
            raise ImageError(
                f"{found[0]['error']}. Mend the photo and continue with training.resume=true; data.on_unreadable=skip "
                "leaves its samples out"
            )
        self._mine += found
        return len(found)

    def settle(self) -> None:
        """List what all ranks have met. A collective call.

        Raises:
            ImageError: too many photos are unreadable.
        """
        found = [row for rows in gather([self._mine]) for row in rows]
        self._mine = []
        self.rows += found
        if is_main():
            for row in found:
                append_row(self.path, row)
        gather([None])  # a rank that raises ends the others
        photos, most = self.photos, self.config.max_unreadable
        if len(photos) > most:
            raise ImageError(
                f"{len(photos)} photos cannot be read, and data.max_unreadable is {most}: "
                f"{shown_names(photos)}, listed in {self.path}. Mend them and continue with training.resume=true, or "
                "allow more"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.rows and is_main():
            count = f"{len(self.rows)} samples of {len(self.photos)} unreadable photos"
            print(f"left out: {count}, listed in {self.path}", flush=True)
