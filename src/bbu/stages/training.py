"""Trains a run and publishes its model. Runs on every rank."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu.config import Config
from bbu.config.schema import VAL_METRICS
from bbu.errors import ConfigError, UserError
from bbu.jsonl import atomic_writer, write_json, write_jsonl
from bbu.records import PredictionRow, Row
from bbu.stages.preparation import prepare
from bbu.stages.run import Run, ready_device
from bbu.training.distributed import gather, is_main, main_first, rank, world_size

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from bbu.inference.predictor import Predictor, Shown
    from bbu.training.trainer import BBUTrainer


def train(config: Config) -> Run:
    """Prepare, train, and publish the chosen checkpoint as ``<output_dir>/model``. Runs on every rank."""
    from bbu.models.precision import use_bf16
    from bbu.training.trainer import training_arguments

    _check_output(config, Path(config.output_dir))
    _quiet_trackers(config)
    device = ready_device(config)
    bf16 = use_bf16(config.training.precision, device)
    args = training_arguments(config, use_cpu=device.type == "cpu", bf16=bf16, has_val=True)
    with main_first():
        run = Run(config, prepare(config, make=is_main()))
        _ = run.hashes  # the main rank caches them, the others read the cache
    if not any(row.objects for row in run.students):
        raise ConfigError(
            f"{run.data.folder}: no object in {len(run.students)} training photos, so there is nothing to learn; "
            "bbu doctor says what was not read"
        )
    if args.eval_strategy != "no" and not any(row.objects for row in run.val):
        raise ConfigError(
            "training.eval_every: there is no val split with objects; set data.source.val_fraction, or eval_every=0"
        )
    _ = run.model, run.stream
    if run.rank == 0:
        _describe(run)
    with main_first():
        _ = run.packs
    trainer = build_trainer(run, args)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=_resume_from(config, run.output))
    if run.rank == 0:
        _finish(run, trainer, time.monotonic() - started)
    return run


def _check_output(config: Config, output: Path) -> None:
    """A fresh run must not mix with the checkpoints of an earlier one."""
    from bbu.training.recovery import STATE_FILE

    old = [path for path in sorted(output.glob("checkpoint-*")) if (path / STATE_FILE).is_file()]
    if not is_main() or config.training.resume or not old:
        return
    if not config.training.overwrite:
        raise ConfigError(
            f"{output} holds {old[-1].name} of an earlier run; continue it with training.resume=true, replace it "
            "with training.overwrite=true, or set another output_dir"
        )
    for path in old:
        shutil.rmtree(path)


def _quiet_trackers(config: Config) -> None:
    """W&B and TensorBoard write into the output folder; W&B without an account works offline, without asking."""
    if "wandb" in config.training.report_to:
        os.environ.setdefault("WANDB_DIR", config.output_dir)
        os.environ.setdefault("WANDB_PROJECT", "bbu")
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        if "WANDB_API_KEY" not in os.environ and not Path("~/.netrc").expanduser().is_file():
            os.environ.setdefault("WANDB_MODE", "offline")
    if "tensorboard" in config.training.report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(config.output_dir) / "tensorboard"))


def _describe(run: Run) -> None:
    """Save the resolved config and print a summary of the run."""
    from omegaconf import OmegaConf

    from bbu.data.sampling.order import balance_table, effective_balance
    from bbu.training.param_groups import assign_groups

    config, model, backend = run.config, run.model, run.model.backbone.attention_backend
    with atomic_writer(run.output / "config.yaml") as stream:
        stream.write(OmegaConf.to_yaml(OmegaConf.structured(config)))
    groups = {name: sum(p.numel() for p in members.values()) for name, members in assign_groups(model).items()}
    sizes = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in groups.items())
    precision = "bf16" if run.bf16 else "fp32"
    photos = f"{len(run.students)} training photos, {len(run.val)} val"
    print(f"{photos}; {run.device.type}, {precision}, attention {backend}\nlearning: {sizes}", flush=True)
    if config.data.sampling.method != "uniform":
        print(balance_table(effective_balance(run.students, config.data.sampling)), flush=True)
    if model.backbone.feature_cache is not None:
        _describe_features(model.backbone.feature_cache, views=run.stream.augmenter.active)


def _describe_features(cache: Any, views: bool) -> None:
    print(f"features: {cache.describe()}", flush=True)
    if views:
        print(
            "features: photos changed by data.augment are not cached; the cache serves unchanged ones only "
            "(val; teachers with data.augment.teachers=none)",
            flush=True,
        )


def build_trainer(run: Run, args: TrainingArguments) -> BBUTrainer:
    """The trainer of a run, with the visual log if the config enables it."""
    import torch

    from bbu.inference.predictor import Predictor
    from bbu.training.objective import DetectionObjective
    from bbu.training.trainer import BBUTrainer

    config = run.config
    predictor = Predictor(
        run.model,
        run.processor,
        batch_size=config.evaluation.batch_size,
        max_detections=config.evaluation.max_detections,
        nms_iou=config.evaluation.nms_iou,
        autocast=torch.bfloat16 if run.bf16 and not config.training.deepspeed else None,
    )

    def score_val() -> dict[str, float | None]:
        from bbu.evaluation import evaluate

        found = predict_rows(predictor, run.watched, run.data.image_root, run.watched_shown)
        metrics = evaluate(run.watched, found, bootstrap_samples=0)
        return {name: metrics[name] for name in VAL_METRICS}

    trainer = BBUTrainer(
        DetectionObjective(run.model, config.loss),
        config,
        args,
        run.stream,
        run.processor,
        score_val,
        photos_per_epoch=round(run.stream.order.epoch_length),
        packs=run.packs,
    )
    if config.training.visual_every and run.rank == 0:
        _watch(run, predictor, trainer)
    return trainer


def _watch(run: Run, predictor: Predictor, trainer: BBUTrainer) -> None:
    """Attach the visual log."""
    from bbu.losses.matcher import MatchCosts
    from bbu.monitoring.visual_log import VisualLog
    from bbu.monitoring.visual_probe import Probe, choose_probes

    config, loss = run.config, run.config.loss
    probes = choose_probes(run.watched, config.training.visual_photos, config.seed)
    costs = MatchCosts(loss.match_l1, loss.match_giou, loss.match_objectness)
    probe = Probe(predictor, probes, run.data.image_root, costs, shown=run.watched_shown)
    VisualLog(probe, config, run.watched_split).attach(trainer.callback_handler.callbacks)


def predict_rows(
    predictor: Predictor, rows: Sequence[Row], root: str, shown: Shown | None = None
) -> list[PredictionRow]:
    """Predictions for annotated rows; ranks predict a shard each, and all of them get all predictions."""
    names = [row.images[0] for row in rows]
    return gather(list(predictor.predict_files(names[rank() :: world_size()], root, shown=shown)))


def _resume_from(config: Config, output: Path) -> str | None:
    from bbu.training.recovery import newest_checkpoint

    if not config.training.resume:
        return None
    newest = newest_checkpoint(output)
    if newest is None:
        raise ConfigError(f"training.resume: {output} has no complete checkpoint; start without it")
    return str(newest)


def _finish(run: Run, trainer: BBUTrainer, seconds: float) -> None:
    """Publish the best (or last) checkpoint with its known descriptions; write the log and a summary."""
    from bbu.models.vocabulary import known_descriptions
    from bbu.training.recovery import newest_checkpoint, publish

    config, output = run.config, run.output
    best = trainer.state.best_model_checkpoint if config.training.select_best else None
    checkpoint = Path(best) if best else newest_checkpoint(output)
    if checkpoint is None:
        raise UserError(f"{output}: training ended without a checkpoint")
    seen = {item.desc for row in run.students for item in row.objects}
    publish(checkpoint, run.model_folder, known_descriptions(seen, run.taxonomy))
    if config.model.compile:
        from bbu.models.acceleration.compiling import compiled_graphs

        print(f"compiled: {compiled_graphs()} graphs of {', '.join(config.model.compile)}", flush=True)
    cache = trainer.unwrapped.model.backbone.feature_cache
    if cache is not None:
        print(f"features: {cache.read} read, {cache.written} written by this process; {cache.describe()}", flush=True)
    write_jsonl(output / "train_log.jsonl", trainer.state.log_history)
    write_json(
        output / "train_summary.json",
        {"train_seconds": round(seconds, 1), "steps": trainer.state.global_step, "checkpoint": checkpoint.name},
    )
