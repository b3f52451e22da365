"""The full job's config under DeepSpeed ZeRO-2, a group of one: ten steps, and a resume from the checkpoint after five.

Called by benchmarks/gpu.py if --parts names it. The backbone has Qwen2.5-VL-3B's widths and vocabulary but DEPTH blocks
of tower and language model: a checkpoint of all 36 + 32 would be 60 GB with its float32 weights and moments, and take
longer than everything else together. Whether the whole model fits one GPU under DeepSpeed is not tried.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_machine import Findings, Setting
from gpu_model import PROJECT, PUBLISHED, TINY, model_config
from gpu_small import Clock, clocked
from transformers import Qwen2_5_VLForConditionalGeneration

from bbu import stages
from bbu.families.prompts import PromptSpec
from bbu.families.qwen2_5_vl.backbone import Qwen25VL
from bbu.families.tokenizer import train_tokenizer
from bbu.training.loss_log import LOG_FILE
from data_conversion.cabinet_photos import draw_data_set

DEPTH = 4  # blocks of the tower, and layers of the language model
STEPS, TINY_STEPS = (5, 10), (1, 2)  # of the first run, and after the second
ALWAYS = (
    "training.eval_every=0", "training.select_best=", "training.report_to=[]", "training.closing.epochs=0",
    "training.warmup_steps=1", "training.log_every=1", "data.source.max_teachers=4",
)  # fmt: skip
SMALL = (
    "data.min_pixels=12544", "data.max_pixels=25088", "data.workers=0", "model.detection.width=32",
    "model.detection.heads=4", "model.detection.layers=2", "model.detection.queries=20",
)  # fmt: skip


def deepspeed(setting: Setting, findings: Findings) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        findings.add(skipped="deepspeed is not installed")
        return
    setting.free()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = save_backbone(setting, folder / "model")
        photos = {"train": 8 if setting.tiny else 64, "val": 1, "test": 1}
        draw_data_set(folder / "raw", photos, seed=5, workers=1 if setting.tiny else 8)
        findings.add(parameters=parameters, zero_stage=2, processes=1)
        peaks, clock = [], Clock()
        with clocked(clock):
            for steps in TINY_STEPS if setting.tiny else STEPS:
                peaks.append(setting.memory_of(lambda steps=steps: train(setting, folder, steps)))  # type: ignore[misc]
                setting.free()
                findings.add(steps=steps, step_seconds=step_seconds(clock), peak_bytes=[p and p[0] for p in peaks])
        findings.add(**outcome(folder / "run", steps))


def save_backbone(setting: Setting, folder: Path) -> int:
    """A folder of random bfloat16 weights, as transformers reads it; the number of weights."""
    talk = Qwen25VL.conversation
    tokenizer = train_tokenizer(["bbox_2d label 螺丝连接点/BBU安装螺丝/安装正确"], 500, talk)
    sizes = copy.deepcopy(TINY if setting.tiny else PUBLISHED)
    if not setting.tiny:
        sizes["vision_config"] |= {"depth": DEPTH, "fullatt_block_indexes": [DEPTH - 1]}
        sizes["text_config"] |= {"num_hidden_layers": DEPTH}
    config = model_config(sizes, tokenizer.get_vocab())
    with torch.device(setting.device):
        vlm = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    Qwen25VL(vlm).save(folder)
    tokenizer.save_pretrained(folder)
    Qwen25VL.photo_plan("", PromptSpec.create("zh", talk, 64 * 64, 128 * 128)).save(folder)
    return sum(parameter.numel() for parameter in vlm.parameters())


def train(setting: Setting, folder: Path, steps: int) -> None:
    """Train to so many steps, going on from the last checkpoint if there is one."""
    from bbu.config import load_config

    places = (f"data.source.path={folder / 'raw'}", f"model.path={folder / 'model'}", f"output_dir={folder / 'run'}")
    resume = f"training.resume={'true' if (folder / 'run').exists() else 'false'}"
    words = [*places, *ALWAYS, *(SMALL if setting.tiny else ()), resume, f"training.max_steps={steps}"]
    config = load_config(PROJECT / "configs" / "bbu.yaml", words)
    config.training.deepspeed = str(PROJECT / "configs" / "zero2.json")
    stages.train(config)


def step_seconds(clock: Clock) -> list[float]:
    """Between ends of steps; the one with the checkpoint, and the start of the second run, is among them."""
    return [round(later - earlier, 3) for earlier, later in zip(clock.ends, clock.ends[1:], strict=False)]


def outcome(run: Path, steps: int) -> dict[str, Any]:
    """Whether the second run went on where the first had stopped, and what a checkpoint takes."""
    lines = (run / LOG_FILE).read_text(encoding="utf-8").splitlines()
    losses = {entry["step"]: entry["loss"] for entry in map(json.loads, lines) if "loss" in entry}
    checkpoint = run / f"checkpoint-{steps}"
    return {
        "resumed": list(losses) == list(range(1, steps + 1)),
        "finite": all(math.isfinite(loss) for loss in losses.values()),
        "first_loss": losses.get(1),
        "last_loss": losses.get(steps),
        "zero_files": sorted(path.name for path in checkpoint.glob("global_step*/*optim_states.pt")),
        "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()),
    }
