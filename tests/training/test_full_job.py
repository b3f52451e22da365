"""The A100 job's config, scaled down: train.sh, torchrun, two CPU ranks, ZeRO-2, bf16, a tiny model folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from bbu.config import GROUP_NAMES, load_config
from bbu.families.base import Backbone
from bbu.families.prompts import PromptSpec
from bbu.families.qwen2_5_vl.backbone import Qwen25VL
from bbu.families.qwen2_5_vl.codec import Qwen25VLSizes
from bbu.families.qwen3_vl.backbone import Qwen3VL
from bbu.families.qwen3_vl.codec import Qwen3VLSizes
from bbu.families.tokenizer import train_tokenizer
from bbu.inference import Inference
from data_conversion.cabinet_photos import draw_data_set
from tests.jobs import compiled_once

RunJob = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model saved as a Hugging Face folder, and raw photos with annotation JSON."""
    folder = tmp_path_factory.mktemp("job")
    small = {"vision_width": 32, "vision_depth": 2, "vision_heads": 2, "text_width": 64, "text_depth": 2}
    save_folder(Qwen25VL, Qwen25VLSizes(**small, vision_full_attention=[1]), folder / "model")
    save_folder(Qwen3VL, Qwen3VLSizes(**small), folder / "qwen3_model")
    draw_data_set(folder / "raw", {"train": 20, "val": 4, "test": 4}, seed=5, workers=1)
    return folder


def save_folder(family: type[Backbone], sizes: Any, folder: Path) -> None:
    """A tiny model of a family, as a Hugging Face folder."""
    talk = family.conversation
    tokenizer = train_tokenizer(["bbox_2d label 螺丝连接点/BBU安装螺丝/安装正确"], 500, talk)
    family.from_scratch(sizes, len(tokenizer), tokenizer.get_vocab()).save(folder)
    tokenizer.save_pretrained(folder)
    family.photo_plan("", PromptSpec.create("zh", talk, 64 * 64, 128 * 128)).save(folder)


@pytest.fixture(scope="module")
def run_job(workshop: Path, project: Path) -> RunJob:
    def run(*overrides: str, config: str = "bbu", ranks: int = 2) -> subprocess.CompletedProcess[str]:
        tiny = (
            "data.min_pixels=12544", "data.max_pixels=25088", "data.workers=0", "data.source.max_teachers=2",
            "model.detection.width=32", "model.detection.heads=4", "model.detection.layers=2",
            "model.detection.queries=20", "training.batch_size=2", "training.warmup_steps=1", "training.log_every=1",
            "training.eval_every=2", "training.report_to=[wandb,tensorboard]", "evaluation.pictures=1",
            "model.compile=[]",  # a minute of g++; training/test_compile_ahead.py has compiled training
        )  # fmt: skip
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NNODES", "MASTER"))},
            "BBU_PYTHON": sys.executable,
            "NPROC": str(ranks),
            "MASTER_PORT": "29517",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HOME": str(workshop),  # no W&B login of the person who runs the tests
            **compiled_once(),
        }
        return subprocess.run(
            [
                "bash", str(project / "train.sh"), f"configs/{config}.yaml", f"data.source.path={workshop / 'raw'}",
                f"model.path={workshop / 'model'}", f"output_dir={workshop / 'run'}", *tiny, *overrides,
            ],
            capture_output=True, text=True, cwd=workshop, env=environment, timeout=400,
        )  # fmt: skip

    return run


def test_the_full_job_trains_resumes_predicts_and_scores_on_two_ranks(
    run_job: RunJob, workshop: Path, project: Path
) -> None:
    first = run_job("training.max_steps=2")
    assert first.returncode == 0, first.stderr[-3000:]
    second = run_job("training.max_steps=4", "training.resume=true")
    assert second.returncode == 0, second.stderr[-3000:]

    run = workshop / "run"
    log = [json.loads(line) for line in (run / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4], "the second run went on where the first had stopped"
    rates = vars(load_config(project / "configs" / "bbu.yaml").training.learning_rates)
    for group in GROUP_NAMES:
        peak = max(entry[f"learning_rate/{group}"] for entry in steps)
        assert peak == pytest.approx(rates[group]), f"the {group} group has its own rate"
    for entry in steps:
        parts = sum(value for name, value in entry.items() if name.startswith("loss/"))
        assert parts == pytest.approx(entry["loss"], rel=2e-2)  # bf16 sums, logged in float32

    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["photos"] == 4 and metrics["steps"] == 4
    assert len((run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert list((run / "pictures").glob("*.png"))
    assert list((run / "checkpoint-4").glob("global_step4/*optim_states.pt")), "ZeRO wrote each rank's share"
    assert list(run.glob("wandb/offline-run-*")), "W&B without an account keeps its run here"
    assert list((run / "tensorboard").rglob("events*"))
    Qwen2_5_VLForConditionalGeneration.from_pretrained(run / "model" / "backbone")  # stock transformers reads it
    photo = next((workshop / "raw" / "test").glob("*.jpg"))
    boxes, captions = Inference(run / "model").predict_detection(photo)
    assert 0 < len(boxes) == len(captions) <= 20


def test_the_job_with_qwen3_vl_trains_and_predicts_on_two_ranks(run_job: RunJob, workshop: Path) -> None:
    done = run_job(
        "training.max_steps=1", "training.eval_every=0", "training.select_best=", "training.report_to=[]",
        "model.family=auto", f"model.path={workshop / 'qwen3_model'}", f"output_dir={workshop / 'qwen3'}",
        "evaluation.calibration=none", "evaluation.bootstrap_samples=0", config="qwen3_vl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((workshop / "qwen3" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["photos"] == 4 and metrics["steps"] == 1
    assert load_config(workshop / "qwen3" / "config.yaml").model.family == "qwen3_vl"
    Qwen3VLForConditionalGeneration.from_pretrained(workshop / "qwen3" / "model" / "backbone")  # stock reads it
