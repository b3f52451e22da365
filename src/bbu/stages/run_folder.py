"""The folder of a run: one run at a time works in it, and what no run wrote stays as it is.

A hidden marker says that the folder belongs to runs. In a folder without it, a file or folder by a name that a run
would write was written by somebody else: it is neither replaced nor deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.config import Config
from bbu.errors import ConfigError, UserError
from bbu.jsonl import write_json
from bbu.training.folders import CHECKPOINT, checkpoints

MARKER, LOCK, REPLACED = ".bbu-run.json", ".bbu-run.lock", ".replaced"
CONFIG_FILE, MODEL_FOLDER, PICTURES_FOLDER = "config.yaml", "model", "pictures"
# What a run writes as soon as it trains, and everything that runs write
STARTED = (CONFIG_FILE, "train_log.jsonl", "training_log.html", "unreadable_photos.jsonl", "not_finite")
WRITTEN = (
    *STARTED, "data/raw", "data/raw.json", "data/records", "data/lengths.json", "data/photo_hashes.jsonl",
    MODEL_FOLDER, "train_summary.json", "training_log.old.html", "val_predictions.jsonl", "predictions.jsonl",
    "metrics.json", "answers.jsonl", "verdicts.jsonl", PICTURES_FOLDER, "report.html", "baselines", "baselines.json",
    "profile", "stacks",
)  # fmt: skip

_held: set[Path] = set()  # folders that this process has claimed


@dataclass(frozen=True)
class RunFolder:
    """A folder that this process has claimed."""

    path: Path

    # ------------------------------------------------------------ whose model

    def begin(self, *, resumed: bool) -> None:
        """A run starts to train: until it publishes, the folder's model is an earlier run's."""
        facts = self._facts()
        number = facts.get("run", 0)
        write_json(self.path / MARKER, {**facts, "run": max(number, 1) if resumed else number + 1})

    def published(self) -> None:
        """The run has published its model."""
        facts = self._facts()
        write_json(self.path / MARKER, {**facts, "published": facts.get("run", 0)})

    def check_published(self) -> None:
        """Refuse to score a model that the last run did not publish.

        Raises:
            UserError: there is no model, or the last run was stopped before it published its own.
        """
        facts, model = self._facts(), self.path / MODEL_FOLDER
        if facts.get("run", 0) != facts.get("published", 0):
            whose = f"{model} is an earlier run's" if model.exists() else f"there is no {model}"
            raise UserError(
                f"{self.path}: its last run was stopped before it published a model ({whose}); finish it with "
                "training.resume=true"
            )
        if not model.exists():
            raise UserError(f"{model}: there is no trained model; train one first with: bbu run CONFIG")

    # ------------------------------------------------------------ replacing

    @contextmanager
    def replacing(self, old: list[Path]) -> Iterator[None]:
        """Put what an earlier run wrote aside while the block trains; it comes back if that saves no checkpoint."""
        aside = self.path / REPLACED
        if old:
            aside.mkdir(exist_ok=True)
            for path in old:
                path.rename(aside / path.name)
        try:
            yield
        finally:
            if aside.is_dir():
                self.restore()

    def drop_replaced(self) -> None:
        """Delete what was put aside: the new run has a whole checkpoint of its own."""
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    def restore(self) -> None:
        """Bring back what a stopped run had put aside, unless it has saved a whole checkpoint of its own."""
        from bbu.training.recovery import newest_checkpoint

        aside = self.path / REPLACED
        if newest_checkpoint(self.path)[0] is not None:
            return self.drop_replaced()
        for path in sorted(aside.iterdir()):
            place = self.path / path.name
            if place.is_dir():
                shutil.rmtree(place)
            path.replace(place)
        shutil.rmtree(aside, ignore_errors=True)

    # ------------------------------------------------------------ pictures

    def remember(self, name: str, files: list[Path]) -> None:
        """Note which files of a folder this run wrote."""
        facts = self._facts()
        written = {**facts.get("files", {}), name: sorted(str(file.relative_to(self.path)) for file in files)}
        write_json(self.path / MARKER, {**facts, "files": written})

    def forget(self, name: str) -> None:
        """Delete the files of a folder that runs wrote; what else lies there stays."""
        for file in self._facts().get("files", {}).get(name, ()):
            path = self.path / file
            if path.resolve().is_relative_to(self.path.resolve()):
                path.unlink(missing_ok=True)

    def _facts(self) -> dict[str, Any]:
        try:
            facts = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        kinds = {"run": int, "published": int, "files": dict}
        sound = isinstance(facts, dict) and all(isinstance(facts.get(key, kind()), kind) for key, kind in kinds.items())
        return facts if sound else {}


@contextmanager
def claim(config: Config) -> Iterator[RunFolder]:
    """Hold a run's folder against other processes; in the process that holds it, again and again.

    Raises:
        ConfigError: another process works in the folder; it has files that no run wrote; or an input of the run lies
            where the run writes.
    """
    folder = RunFolder(Path(config.output_dir))
    key = folder.path.resolve()
    if key in _held:
        yield folder
        return
    _check_inputs(config, key)
    if not (folder.path / MARKER).is_file():
        _check_foreign(folder.path, config.training.resume)
    descriptor = _lock(folder.path)
    _held.add(key)
    new = not (folder.path / MARKER).is_file()
    try:
        if new:
            write_json(folder.path / MARKER, {})
        if (folder.path / REPLACED).is_dir():
            folder.restore()
        yield folder
    finally:
        _held.remove(key)
        if new and {path.name for path in folder.path.iterdir()} <= {MARKER, LOCK}:  # nothing came of it
            for name in (MARKER, LOCK):
                (folder.path / name).unlink(missing_ok=True)
            with suppress(OSError):  # the folder of somebody else may have been empty before, or hold a file by now
                folder.path.rmdir()
        os.close(descriptor)  # and with it the lock


def _check_inputs(config: Config, output: Path) -> None:
    """Nothing that the run reads may lie in what it replaces."""
    values = {"model.path": config.model.path, "model.tokenizer": config.model.tokenizer}
    source = config.data.source
    values |= {"data.source.path": source.path, "data.image_root": config.data.image_root}
    for key, value in values.items():
        if not value or not Path(value).exists():
            continue
        path = Path(value).resolve()
        if not path.is_relative_to(output) or path == output:
            continue
        name = path.relative_to(output).as_posix()
        own = [written for written in WRITTEN if f"{name}/".startswith(f"{written}/")]
        if source.format == "records" and key.startswith("data."):
            own = [written for written in own if not written.startswith("data/")]  # rows are only read
        if own or CHECKPOINT.fullmatch(name.partition("/")[0]):
            raise ConfigError(
                f"{key}: {value} lies in output_dir={config.output_dir}, where this run would replace it; set another "
                "output_dir"
            )


def _check_foreign(folder: Path, resume: bool) -> None:
    """A folder that no run has claimed must have nothing by the names that a run writes."""
    present = [folder / name for name in WRITTEN if os.path.lexists(folder / name)]
    present += [path for path in checkpoints(folder) if not (resume and (path / "bbu.json").is_file())]
    if present:
        raise ConfigError(
            f"{present[0]} exists, no run of this version wrote it, and this one would replace it; move it away, or "
            "set another output_dir"
        )


def _lock(folder: Path) -> int:
    """An open file with this process's lock on it, which ends with the process, however that ends."""
    path = folder / LOCK
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be written: {error.strerror}") from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: a forked loader does not hold it
    except (BlockingIOError, PermissionError):
        who = _owner(descriptor)
        os.close(descriptor)
        raise ConfigError(f"{folder} is in use by {who}; wait for it, stop it, or set another output_dir") from None
    except OSError as error:  # a file system without locks
        print(f"{folder}: cannot be locked ({error.strerror}): start no second run in it", flush=True)
    if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:  # deleted by the one who had it
        os.close(descriptor)
        return _lock(folder)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner).encode())
    return descriptor


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.read(descriptor, 1000))
        minutes = max(0, int(time.time()) - int(owner["since"])) // 60
        return f"process {int(owner['process'])} on {owner['host']}, for {minutes} min"
    except (ValueError, KeyError, TypeError):
        return "another process"
