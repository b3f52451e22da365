"""Training checkpoints: find the newest, resume from it, publish its model.

A checkpoint is a model folder (bbu.models.checkpoint) with the trainer's own state beside it. ``trainer_state.json`` is
written last: a folder without it is incomplete. With planned packs, ``packs.json`` stores what the plan depends on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from bbu.errors import CheckpointError
from bbu.jsonl import write_json
from bbu.models.acceleration.lora import has_lora
from bbu.models.checkpoint import BACKBONE_FOLDER, FACTS_FILE, HEAD_FILE, LORA_FILE, load_head
from bbu.models.vocabulary import DESCRIPTIONS_FILE
from bbu.models.wrapper import DetectionVLM

STATE_FILE = "trainer_state.json"  # transformers' name
PACKS_FILE = "packs.json"


def load_for_training(model: DetectionVLM, folder: Path) -> None:
    """Load a checkpoint's weights into a model in training, LoRA weights unmerged."""
    load_head(model, folder)
    if has_lora(model):
        learned = load_file(folder / LORA_FILE)
        _, unexpected = model.backbone.vlm.load_state_dict(learned, strict=False)
        if unexpected:
            raise CheckpointError(f"{folder / LORA_FILE}: does not fit the model: {', '.join(unexpected[:5])}")
        return
    saved = type(model.backbone).from_pretrained(str(folder / BACKBONE_FOLDER), torch.float32)
    model.backbone.load_state_dict(saved.state_dict())


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The latest complete training checkpoint in a run's folder."""
    found = [path for path in output_dir.glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def check_packs(checkpoint: Path, state: Mapping[str, int | str]) -> None:
    """A resumed run must have the packs it began with: with others it would see samples twice or never.

    Args:
        state: PackedRun.state of the packs planned now; empty if packs are not planned.

    Raises:
        CheckpointError: the packs differ; the message names the setting.
    """
    path = checkpoint / PACKS_FILE
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if bool(saved) != bool(state):
        had = "had planned packs" if saved else "had none"
        raise CheckpointError(
            f"{checkpoint}: its run {had} (training.pack_tokens, pack_pixels, pack_images); restore these keys"
        )
    for key, value in state.items():
        if saved.get(key) == value:
            continue
        if key == "lengths":
            raise CheckpointError(f"{checkpoint}: the samples had other lengths; restore data, prompt and augmentation")
        raise CheckpointError(f"{checkpoint}: its run had {key} {saved.get(key)}, not {value}; restore it")


def publish(checkpoint: Path, target: Path, descriptions: Sequence[str] = ()) -> None:
    """Copy the model of a training checkpoint to ``target``, through a temporary folder.

    Args:
        descriptions: known to the model; written beside it if there are any.
    """
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    shutil.copytree(checkpoint / BACKBONE_FOLDER, temporary / BACKBONE_FOLDER)
    for name in (HEAD_FILE, FACTS_FILE):
        shutil.copy2(checkpoint / name, temporary / name)
    if descriptions:
        write_json(temporary / DESCRIPTIONS_FILE, list(descriptions))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
