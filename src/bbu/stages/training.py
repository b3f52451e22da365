"""Trains a run and publishes its model. Runs on every rank."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu.config import Config, as_written
from bbu.config.schema import TEXT_METRICS, VAL_METRICS
from bbu.errors import CheckpointError, ConfigError, UserError
from bbu.interruption import Stopped
from bbu.jsonl import atomic_writer, write_json
from bbu.machine import RESUME
from bbu.models.manifest import MANIFEST_FILE
from bbu.monitoring.trackers import place_trackers, ready_wandb
from bbu.records import PredictionRow, Row
from bbu.stages.answers import scores_on_val
from bbu.stages.identity import check_identity, identity_of
from bbu.stages.judging import rules_of
from bbu.stages.preparation import PreparedData, prepare
from bbu.stages.run import Run, ready_device
from bbu.stages.run_folder import CONFIG_FILE, STARTED, RunFolder, claim
from bbu.training.distributed import gather, is_main, main_first, rank, world_size
from bbu.training.folders import checkpoint_at, checkpoints

PHOTOS_FOR_WORDS = 16

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from bbu.inference.predictor import Predictor, Shown
    from bbu.training.loss_log import LogPlace
    from bbu.training.trainer import BBUTrainer


@dataclass(frozen=True)
class Part:
    """What a phase has of the whole run: its rows, the place in its log, and its W&B run."""

    data: PreparedData
    log: LogPlace
    run_id: str | None


def train(config: Config, *, scored: bool = False, part: Part | None = None) -> Run:
    """Prepare, train, and publish the chosen checkpoint as ``<output_dir>/model``. Runs on every rank.

    Args:
        part: of a run in phases, which this config is one of (stages.phases).
        scored: whether the model is scored afterwards, so that a missing evaluation split is found before it trains.

    Raises:
        UserError: the config, its data or the output folder does not allow the run; an earlier run's files are as they
            were.
        Stopped: a signal ended the training, after a checkpoint.
    """
    if not is_main():
        return _train(config, None, scored, part)
    with claim(config) as folder:
        return _train(config, folder, scored, part)


def _train(config: Config, folder: RunFolder | None, scored: bool, part: Part | None) -> Run:
    from bbu.models.precision import use_bf16
    from bbu.training.callbacks import OnSave, TrackedRun
    from bbu.training.recovery import tracked_run
    from bbu.training.trainer import training_arguments

    old = _replaceable(config) if folder else []
    place_trackers(config)
    device = ready_device(config)
    bf16 = use_bf16(config.training.precision, device)
    args = training_arguments(config, use_cpu=device.type == "cpu", bf16=bf16, has_val=True)
    with main_first():
        run = Run(config, part.data if part else prepare(config, make=is_main()))
        _ = run.hashes  # the main rank caches them, the others read the cache
    if config.model.detection is not None and run.students and not any(row.objects for row in run.students):
        raise ConfigError(
            f"{run.data.folder}: no object in {len(run.students)} training photos, so there is nothing to learn; "
            "bbu doctor says what was not read"
        )
    if args.eval_strategy != "no":
        _check_val(run)
    if scored:
        _ = run.evaluation_rows, rules_of(run)
    _ = run.model, run.stream
    if run.rank == 0:
        _describe(run)
    with main_first():
        _ = run.packs
    trainer = build_trainer(run, args, part.log if part else None)
    resume_from = _resume_from(run, trainer.identity)
    before = tracked_run(Path(resume_from)) if resume_from else part.run_id if part else None
    if run_id := ready_wandb(config, before):
        trainer.add_callback(TrackedRun(run_id))
    started = time.monotonic()
    with ExitStack() as stack:
        if folder:
            stack.enter_context(folder.replacing(old))
            folder.begin(resumed=bool(resume_from))
            with atomic_writer(run.output / CONFIG_FILE) as stream:
                stream.write(as_written(config))
            trainer.add_callback(OnSave(folder.drop_replaced))
        trainer.train(resume_from_checkpoint=resume_from)
    if trainer.stop.agreed:
        raise Stopped(trainer.stop.signum or signal.SIGTERM, _where_it_stopped(config, trainer))
    if folder:
        _finish(run, trainer, time.monotonic() - started)
        folder.published()
    return run


def _check_val(run: Run) -> None:
    """With detection val needs objects; without it, or to choose by what the language model answers, questions.

    Raises:
        ConfigError: val has none.
    """
    detects, by_text = run.config.model.detection is not None, run.config.training.select_best in TEXT_METRICS
    if detects and not any(row.objects for row in run.val):
        what = "with objects"
    elif (by_text or not detects) and not run.questions("val"):
        what = "that answers a question of training (data.answers)"
    else:
        return
    raise ConfigError(
        f"training.eval_every: there is no val split {what}; set data.source.val_fraction, or eval_every=0"
    )


def _replaceable(config: Config) -> list[Path]:
    """Checkpoints of an earlier run, its config and its logs, which this one replaces.

    Raises:
        ConfigError: it may not, since a fresh run must not mix with them.
    """
    output = Path(config.output_dir)
    old = [path for path in checkpoints(output) if (path / MANIFEST_FILE).is_file()]  # another one no run has saved
    if config.training.resume or not old:
        return []
    if not config.training.overwrite:
        raise ConfigError(
            f"{output} holds {old[-1].name} of an earlier run; continue it with training.resume=true, replace it "
            "with training.overwrite=true, or set another output_dir"
        )
    return old + [output / name for name in STARTED if (output / name).exists()]


def _where_it_stopped(config: Config, trainer: BBUTrainer) -> str:
    saved = checkpoint_at(Path(config.output_dir), trainer.state.global_step)
    return f"{saved} is saved; {RESUME}"


def _describe(run: Run) -> None:
    """Print a summary of the run."""
    from bbu.data.sampling.order import balance_table, effective_balance
    from bbu.training.param_groups import assign_groups

    config, model, backend = run.config, run.model, run.model.backbone.attention_backend
    groups = {name: sum(p.numel() for p in members.values()) for name, members in assign_groups(model).items()}
    sizes = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in groups.items())
    precision = "bf16" if run.bf16 else "fp32"
    tiles = len(run.training_rows) - len(run.students)
    photos = f"{len(run.students)} training photos{f' with {tiles} tiles' if tiles else ''}, {len(run.val)} val"
    print(f"{photos}; {run.device.type}, {precision}, attention {backend}\nlearning: {sizes}", flush=True)
    if config.data.sampling.method != "uniform":
        print(balance_table(effective_balance(run.training_rows, config.data.sampling)), flush=True)
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


def build_trainer(run: Run, args: TrainingArguments, log_place: LogPlace | None = None) -> BBUTrainer:
    """The trainer of a run, with the visual log if the config enables it."""
    from bbu.training.callbacks import count_from
    from bbu.training.compile_ahead import CompileAhead
    from bbu.training.objective import DetectionObjective
    from bbu.training.trainer import BBUTrainer

    config, predictor = run.config, _predictor(run)

    def go_on() -> bool:
        trainer.watchdog.beat("the evaluation on val")
        return not trainer.stop.signum

    def score_val() -> dict[str, float | None]:
        scores: dict[str, float | None] = {}
        if config.model.detection is not None:
            found = predict_rows(predictor, run.watched, run.data.image_root, run.watched_shown, go_on)
            scores = _scores(run, found)
        scores |= _word_use(run, predictor)
        loss = config.loss
        if loss.student_lm_weight or config.training.select_best in TEXT_METRICS:
            scores |= scores_on_val(run, predictor, go_on)
        return scores

    trainer = BBUTrainer(
        DetectionObjective(run.model, config.loss),
        config,
        args,
        run.stream,
        run.processor,
        score_val,
        samples_per_epoch=round(run.stream.epoch_length),
        packs=run.packs,
        identity=identity_of(run),
        log_place=log_place,
    )
    if config.model.compile:
        trainer.add_callback(CompileAhead(trainer))
    if log_place:
        count_from(trainer.callback_handler.callbacks, log_place.steps)
    if config.training.visual_every and run.rank == 0:
        _watch(run, predictor, trainer)
    return trainer


def _predictor(run: Run) -> Predictor:
    """Predicts with the model in training."""
    import torch

    from bbu.inference.predictor import Predictor

    config = run.config
    return Predictor(
        run.model,
        run.processor,
        batch_size=config.evaluation.batch_size,
        max_detections=config.evaluation.max_detections,
        nms_iou=config.evaluation.nms_iou,
        autocast=torch.bfloat16 if run.bf16 and not config.training.deepspeed else None,
    )


def _word_use(run: Run, predictor: Predictor) -> dict[str, float | None]:
    """How val's photos use the visual words, where the family has any; some photos, which show a collapse as well."""
    from bbu.data.photo import Photo
    from bbu.families.base import Backbone
    from bbu.images import load_image
    from bbu.inference.words import use_of, words_of
    from bbu.records import resolve_image

    names = [row.images[0] for row in run.watched[:PHOTOS_FOR_WORDS]]
    if type(run.model.backbone).visual_words is Backbone.visual_words or not names:
        return {}
    photos = []
    for name in names:
        with suppress(UserError):  # one that cannot be read is told by its prediction
            photos.append(Photo(load_image(resolve_image(run.data.image_root, name)), name))
    if not photos:
        return {}
    use = use_of(words_of(predictor, photos))
    return {"words_in_use": use.in_use, "words_entropy": use.entropy}


def _scores(run: Run, found: Sequence[PredictionRow]) -> dict[str, float | None]:
    """The metrics that are followed on val."""
    from bbu.evaluation import evaluate

    metrics = evaluate(run.watched, found, bootstrap_samples=0)
    return {name: metrics[name] for name in VAL_METRICS}


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
    predictor: Predictor,
    rows: Sequence[Row],
    root: str,
    shown: Shown | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> list[PredictionRow]:
    """Predictions for annotated rows; ranks predict a shard each, and all of them get all predictions.

    Args:
        go_on: called after each row; False ends the prediction.

    Raises:
        EvaluationStoppedError: on all ranks, if ``go_on`` was False on one.
    """
    from bbu.training.stopping import EvaluationStoppedError

    names, found, stopped = [row.images[0] for row in rows], [], False
    for prediction in predictor.predict_files(names[rank() :: world_size()], root, shown=shown):
        found.append(prediction)
        if stopped := not go_on():
            break
    if any(gather([stopped])):
        raise EvaluationStoppedError
    return gather(found)


def _resume_from(run: Run, identity: Mapping[str, Any]) -> str | None:
    """The newest whole checkpoint of this run, on all ranks; None = start afresh.

    Raises:
        UserError: there is none, or it is another run's.
    """
    config, output = run.config, run.output
    if not config.training.resume:
        return None
    found = [_newest(output, config.training.select_best)] if is_main() else []  # one rank reads the files
    newest, faults, problem = gather(found)[0]
    if newest is None:
        reasons = "".join(f"; {fault}" for fault in faults)
        raise ConfigError(f"training.resume: {output} has no complete checkpoint; start without it{reasons}")
    notes = check_identity(newest, identity, config.training.max_steps)
    if problem:
        raise CheckpointError(problem)
    if is_main():
        print(
            "\n".join([*(f"passed over: {fault}" for fault in faults), *notes, f"resuming from {newest}"]), flush=True
        )
    return str(newest)


def _newest(output: Path, select_best: str) -> tuple[Path | None, list[str], str]:
    """The newest whole checkpoint, why later ones are passed over, and what is wrong with the best so far."""
    from bbu.training.recovery import best_checkpoint, check_checkpoint, newest_checkpoint

    newest, faults = newest_checkpoint(output)
    best = best_checkpoint(newest) if newest and select_best else None
    try:
        if best and best != newest:
            check_checkpoint(best)
    except CheckpointError as error:
        return newest, faults, f"{error}; it is the best so far: bring it back, or pass training.select_best="
    return newest, faults, ""


def _finish(run: Run, trainer: BBUTrainer, seconds: float) -> None:
    """Publish the best (or last) checkpoint with its known descriptions; write the log and a summary."""
    from bbu.models.vocabulary import known_descriptions
    from bbu.training.recovery import checkpoint_at, newest_checkpoint, publish

    config, output = run.config, run.output
    best = trainer.state.best_global_step if config.training.select_best else None
    last = checkpoint_at(output, best or trainer.state.global_step)
    checkpoint = last if best or last.is_dir() else newest_checkpoint(output)[0]
    if checkpoint is None:
        raise UserError(f"{output}: training ended without a checkpoint")
    seen = {item.desc for row in run.students for item in row.objects}
    with _closed(run, trainer, checkpoint) as (closed, closing), _whole(run, trainer, closed) as finished:
        publish(finished, run.model_folder, known_descriptions(seen, run.taxonomy))
    if config.model.compile:
        from bbu.models.acceleration.compiling import summary

        print(summary(config.model.compile), flush=True)
    cache = trainer.unwrapped.model.backbone.feature_cache
    if cache is not None:
        print(f"features: {cache.read} read, {cache.written} written by this process; {cache.describe()}", flush=True)
    write_json(
        output / "train_summary.json",
        {
            "train_seconds": round(seconds, 1),
            "steps": trainer.state.global_step,
            "checkpoint": checkpoint.name,
            "closing": closing,
        },
    )


@contextmanager
def _closed(run: Run, trainer: BBUTrainer, checkpoint: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """The checkpoint after the closing phase, in a folder of its own; the same where there is none, or it lost on val.

    Yields:
        The folder to publish, and what the phase gave.
    """
    from bbu.training.closing import close_captions
    from bbu.training.recovery import SAVING_FOLDER

    config = run.config
    if not config.training.closing.epochs:
        yield checkpoint, None
        return
    closed = run.output / SAVING_FOLDER / "closed"
    try:
        result = close_captions(trainer.unwrapped, run.stream, checkpoint, closed, config, run.bf16)
        best, metric = trainer.state.best_metric, config.training.select_best
        if metric in VAL_METRICS and best is not None:
            names = [row.images[0] for row in run.watched]  # all of them: the other ranks have left
            found = _predictor(run).predict_files(names, run.data.image_root, shown=run.watched_shown)
            value = _scores(run, list(found))[metric]
            result |= {f"val_{metric}": value, f"val_{metric}_before": best}
            print(f"closing phase: val {metric} {best:.4f} → {value or 0:.4f}", flush=True)
            if value is None or value < best:
                print("closing phase: val is worse; the model is published without it", flush=True)
                closed, result["published"] = checkpoint, False
        yield closed, result
    finally:
        shutil.rmtree(run.output / SAVING_FOLDER, ignore_errors=True)


@contextmanager
def _whole(run: Run, trainer: BBUTrainer, checkpoint: Path) -> Iterator[Path]:
    """The folder to publish: where adapters are to be merged, a copy of the checkpoint with whole weights."""
    from bbu.models.acceleration.lora import has_lora
    from bbu.models.checkpoint import save_model
    from bbu.training.recovery import SAVING_FOLDER, load_for_training

    model = trainer.unwrapped.model
    if not has_lora(model) or run.config.model.publish == "adapter":
        yield checkpoint
        return
    merged = run.output / SAVING_FOLDER / "merged"
    try:
        load_for_training(model, checkpoint)
        save_model(merged, model, run.processor)
        yield merged
    finally:
        shutil.rmtree(merged, ignore_errors=True)
