"""Training checkpoints: save them whole, find the newest whole one, resume from it, publish its model.

A checkpoint is a model folder (bbu.models.checkpoint) with the trainer's own state and ``run_identity.json`` beside it.
It is written in a hidden folder, sealed with a manifest, and renamed into place: ``checkpoint-N`` is whole, or was
damaged afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer_pt_utils import safe_globals

from bbu.errors import CheckpointError
from bbu.jsonl import write_json
from bbu.machine import RESUME, cannot_write, disk_full
from bbu.models.acceleration.lora import has_lora, load_adapter
from bbu.models.checkpoint import BACKBONE_FOLDER, FACTS_FILE, is_model_file, load_backbone, load_head
from bbu.models.manifest import MANIFEST_FILE, check_same, check_whole, read_manifest, seal, sync
from bbu.models.vocabulary import DESCRIPTIONS_FILE
from bbu.models.wrapper import DetectionVLM
from bbu.training.distributed import barrier, is_main
from bbu.training.folders import checkpoint_at, checkpoints

STATE_FILE = "trainer_state.json"  # transformers' name
IDENTITY_FILE = "run_identity.json"
SAVING_FOLDER = ".saving"  # in the output folder: a checkpoint on its way in, or an old one on its way out
PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl")
_SAFE_SWITCH, _UNSAFE_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


# ---------------------------------------------------------------- folders


def newest_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The latest whole checkpoint of a run's folder, and why each later one is not whole, one line each."""
    faults = []
    for path in reversed(checkpoints(output_dir)):
        try:
            check_checkpoint(path)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return path, faults
    return None, faults


def check_checkpoint(folder: Path) -> None:
    """Check that training can resume from a folder.

    Raises:
        CheckpointError: it is not whole, or one of its pickle files holds something else than tensors and plain values.
    """
    check_whole(folder)
    with weights_only(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of is refused
        for path in sorted(path for pattern in PICKLES for path in folder.rglob(pattern)):
            try:
                torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # reads the pickle, not the tensors
            except Exception as error:  # a made-up pickle raises anything
                raise CheckpointError(f"{path}: is not loaded: {_cause(error)}; use another checkpoint") from None


def _cause(error: Exception) -> str:
    """What torch refuses in a pickle file, without its advice to load it all the same."""
    found = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)):? ([\w.]+)", str(error))
    if found:
        return f"it would run {found[1]}"
    return f"it does not hold plain tensors ({type(error).__name__})"


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that was the best so far when this one was saved, wherever the run's folder has moved since."""
    step = _state(folder).get("best_global_step")
    return checkpoint_at(folder.parent, int(step)) if step else None


def tracked_run(folder: Path) -> str | None:
    """The W&B run that a checkpoint's run logged into; None if it logged into none."""
    kept = _state(folder).get("stateful_callbacks", {}).get("TrackedRun")
    return str(kept["args"]["run_id"]) if kept else None


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return state


# ---------------------------------------------------------------- saving


@contextmanager
def new_checkpoint(output_dir: Path, step: int, *, keep: int, best: int | None) -> Iterator[Path]:
    """A folder for ``checkpoint-<step>`` to be written in; runs on every rank. At the end it is sealed and in place.

    Then all but ``keep`` checkpoints go, the oldest first; the best and those of later steps stay. After an error the
    checkpoints are as before, and what was written of the new one is gone.

    Args:
        best: the best checkpoint's step.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    saving = output_dir / SAVING_FOLDER
    if is_main():
        shutil.rmtree(saving, ignore_errors=True)
        saving.mkdir(parents=True)
    barrier()
    try:
        yield saving
        barrier()
        if is_main():
            written, target = checkpoint_at(saving, step), checkpoint_at(output_dir, step)
            seal(written)
            _make_room(target, saving)
            written.rename(target)
            sync(output_dir)
            _rotate(output_dir, saving, step, keep, best)
    except Exception as error:  # torch and safetensors have types of their own for what the disk refuses
        full = disk_full(error, output_dir)
        if not (full or cannot_write(error) or isinstance(error, OSError | SafetensorError)):
            raise
        why = "the disk is full" if full else " ".join(str(error).split())
        kept = ", ".join(path.name for path in checkpoints(output_dir)) or "no checkpoint"
        raise CheckpointError(
            f"{checkpoint_at(output_dir, step)}: cannot be saved: {why}; {kept} as before; make room and {RESUME}"
        ) from error
    finally:
        if is_main():
            shutil.rmtree(saving, ignore_errors=True)


def _make_room(target: Path, saving: Path) -> None:
    """Take away an earlier checkpoint of the step; a folder that no run has sealed is kept under another name."""
    if (target / MANIFEST_FILE).is_file():
        target.rename(saving / "replaced")
    elif target.exists():
        _move_aside(target)


def _move_aside(path: Path) -> None:
    """Keep what no run wrote."""
    names = (path.with_name(f"{path.name}-old-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    print(f"{path} was not written by a run, or not to its end; moved to {aside.name}", flush=True)


def _rotate(output_dir: Path, saving: Path, step: int, keep: int, best: int | None) -> None:
    kept = {checkpoint_at(output_dir, number) for number in (step, best) if number is not None}
    before = checkpoints(output_dir)
    before = [path for path in before[: before.index(checkpoint_at(output_dir, step))] if path not in kept]
    old = [path for path in before if (path / MANIFEST_FILE).is_file()]
    for path in old[: max(len(old) - max(keep - len(kept), 0), 0)]:
        path.rename(saving / path.name)  # at once: a kill leaves no half of it in place


# ---------------------------------------------------------------- loading


@contextmanager
def weights_only(folder: Path) -> Iterator[None]:
    """Within, every ``torch.load`` builds tensors and plain values alone, whatever its caller asks for.

    DeepSpeed asks for everything that a pickle file can do; torch's switch is stronger than what a caller passes.

    Args:
        folder: the checkpoint, whose files decide which of DeepSpeed's records are allowed.
    """
    before = {name: os.environ.pop(name, None) for name in (_SAFE_SWITCH, _UNSAFE_SWITCH)}
    os.environ[_SAFE_SWITCH] = "1"
    try:
        with safe_globals(), torch.serialization.safe_globals(_deepspeed_records(folder)):
            yield
    finally:
        del os.environ[_SAFE_SWITCH]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _deepspeed_records(folder: Path) -> list[Any]:
    """Classes in DeepSpeed's files. They are data: making and restoring them runs nothing."""
    if not any(folder.glob("global_step*")):
        return []
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        raise CheckpointError(f"{folder}: DeepSpeed saved it; install deepspeed to continue its run") from None
    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def load_for_training(model: DetectionVLM, folder: Path) -> None:
    """Load a checkpoint's weights into a model in training, LoRA weights unmerged.

    Raises:
        CheckpointError: files are missing or damaged, or do not fit the model.
    """
    try:
        load_head(model, folder)
        if has_lora(model):
            load_adapter(model, folder / BACKBONE_FOLDER)
            return
        saved = load_backbone(type(model.backbone), folder, torch.float32)
        model.backbone.load_state_dict(saved.state_dict())
    except CheckpointError:
        raise
    except Exception as error:  # safetensors, transformers and torch all raise their own types
        raise CheckpointError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from None


# ---------------------------------------------------------------- publishing


def publish(checkpoint: Path, target: Path, descriptions: Sequence[str] = ()) -> None:
    """Copy the model of a checkpoint to ``target``, through a temporary folder.

    Args:
        descriptions: known to the model; written beside it if there are any.

    Raises:
        CheckpointError: a file of the model is not as it was written; ``target`` is unchanged.
    """
    listed = {name: entry for name, entry in read_manifest(checkpoint).items() if is_model_file(name)}
    temporary, old = (target.with_name(f".{target.name}.{word}") for word in ("new", "old"))
    for folder in (temporary, old):
        shutil.rmtree(folder, ignore_errors=True)
    (temporary / BACKBONE_FOLDER).mkdir(parents=True)
    try:
        for name in listed:
            try:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(checkpoint / name, temporary / name)
            except FileNotFoundError:
                raise CheckpointError(f"{checkpoint / name}: is missing; use another checkpoint") from None
        if descriptions:
            write_json(temporary / DESCRIPTIONS_FILE, list(descriptions))
        check_same(checkpoint, seal(temporary), listed)
        if (target / FACTS_FILE).is_file():
            _keep_foreign(target, temporary)
            target.rename(old)
        elif target.exists():
            _move_aside(target)
        temporary.rename(target)
        sync(target.parent)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def _keep_foreign(old: Path, new: Path) -> None:
    """Carry what somebody else has put into a published model, such as a README, over to the next one."""
    if not (old / MANIFEST_FILE).is_file():
        return
    listed = read_manifest(old)
    for path in [path for path in sorted(old.rglob("*")) if path.is_file()]:
        name = path.relative_to(old).as_posix()
        if name not in listed and name != MANIFEST_FILE and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(new / name)
