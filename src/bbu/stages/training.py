"""Train a run and publish its model. Runs on every rank."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu.config import Config
from bbu.errors import ConfigError, UserError
from bbu.jsonl import atomic_writer, write_json, write_jsonl
from bbu.records import FewShotSample, PredictionRow, Row
from bbu.stages.preparation import MODEL_FOLDER, PreparedData, prepare_once, taxonomy_of
from bbu.stages.shown import photo_hashes, shown_photos

if TYPE_CHECKING:
    from bbu.data.packing.planner import PackedRun
    from bbu.inference.predictor import Predictor, Shown


def train(config: Config) -> PreparedData:
    """Prepare, train, and publish the chosen checkpoint as ``<output_dir>/model``. Runs on every rank."""
    from bbu.training.trainer import BBUTrainer, training_arguments

    output = Path(config.output_dir)
    _check_output(config, output)
    _quiet_trackers(config)
    device, bf16 = ready_device(config)
    args = training_arguments(config, use_cpu=device.type == "cpu", bf16=bf16, has_val=True)
    with args.main_process_first(local=False, desc="preparing data"):
        data = prepare_once(config, main=args.process_index == 0)
        split = _seen_split(config, data, evaluating=args.eval_strategy != "no")
        hashes = photo_hashes(config, data, training=True, split=split)
    samples = data.samples("train")
    val = data.rows("val")
    if args.eval_strategy != "no" and not any(row.objects for row in val):
        raise ConfigError(
            "training.eval_every: there is no val split with parts in it; set data.source.val_fraction, or eval_every=0"
        )
    processor, model, stream = build_run(config, data, hashes, device, bf16, args.world_size)
    if args.process_index == 0:
        _describe(config, model, device, bf16, [sample.student for sample in samples], len(val))
    if args.process_index == 0 and model.backbone.feature_cache is not None:
        _describe_features(model.backbone.feature_cache, views=stream.augmenter.active)
    seen = [sample.student for sample in samples] if split == "train" else val
    shown = shown_photos(config, data, seen, hashes) if split else None
    with args.main_process_first(local=False, desc="measuring samples"):
        packs = plan_packs(config, stream, processor, model, args.world_size)
    trainer: BBUTrainer = build_trainer(
        config, args, model, stream, processor, seen, data.image_root, bf16, shown, split, packs
    )
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=_resume_from(config, output))
    if args.process_index == 0:
        known = {item.desc for sample in samples for item in sample.student.objects}
        _finish(config, trainer, output, time.monotonic() - started, known)
    return data


def ready_device(config: Config) -> tuple[Any, bool]:
    """The device of this process, set up as the config asks, and whether it computes in bfloat16."""
    import torch

    from bbu.models.precision import compute_device, use_bf16

    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    device = compute_device()
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed looks for CUDA tools otherwise, and warns
    _single_process_rendezvous(config)
    return device, use_bf16(config.training.precision, device)


def build_run(
    config: Config, data: PreparedData, hashes: Mapping[str, int], device: Any, bf16: bool, ranks: int
) -> tuple[Any, Any, Any]:
    """Processor, model and stream of training samples."""
    import torch

    from bbu.models.build import build_model, build_processor

    samples = data.samples("train")
    processor = build_processor(config, samples, data.image_root)
    model = build_model(config, processor.tokenizer, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    return processor, model, _stream(config, samples, data.rows("teacher"), hashes, processor, ranks)


def _seen_split(config: Config, data: PreparedData, evaluating: bool) -> str:
    """The split that is predicted while it trains; "" = none."""
    if not (evaluating or config.training.visual_every):
        return ""
    return "val" if evaluating or any(row.objects for row in data.rows("val")) else "train"


def _check_output(config: Config, output: Path) -> None:
    """A fresh run does not mix with the checkpoints of an earlier one."""
    from bbu.training.recovery import STATE_FILE

    old = [path for path in sorted(output.glob("checkpoint-*")) if (path / STATE_FILE).is_file()]
    if int(os.environ.get("RANK", "0")) != 0 or config.training.resume or not old:
        return
    if not config.training.overwrite:
        raise ConfigError(
            f"{output} holds {old[-1].name} of an earlier run; go on from it with training.resume=true, replace it "
            "with training.overwrite=true, or set another output_dir"
        )
    for path in old:
        shutil.rmtree(path)


def _quiet_trackers(config: Config) -> None:
    """W&B without an account keeps its run in the output folder instead of asking for a login."""
    if "wandb" in config.training.report_to:
        os.environ.setdefault("WANDB_DIR", config.output_dir)
        os.environ.setdefault("WANDB_PROJECT", "bbu")
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        if "WANDB_API_KEY" not in os.environ and not Path("~/.netrc").expanduser().is_file():
            os.environ.setdefault("WANDB_MODE", "offline")
    if "tensorboard" in config.training.report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(config.output_dir) / "tensorboard"))


def _single_process_rendezvous(config: Config) -> None:
    """DeepSpeed wants a process group; without torchrun, a group of one."""
    if config.training.deepspeed and "RANK" not in os.environ:
        with socket.socket() as free:  # a fixed port would stop a second run on this machine
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: os.environ.get(name, value) for name, value in alone.items()})


def _describe(config: Config, model: Any, device: Any, bf16: bool, photos: Sequence[Row], val: int) -> None:
    """A few lines before the bar starts; also keeps the resolved config."""
    from omegaconf import OmegaConf

    from bbu.data.sampling.order import balance_table, effective_balance
    from bbu.training.param_groups import assign_groups

    with atomic_writer(Path(config.output_dir) / "config.yaml") as stream:
        stream.write(OmegaConf.to_yaml(OmegaConf.structured(config)))
    groups = {name: sum(p.numel() for p in members.values()) for name, members in assign_groups(model).items()}
    sizes = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in groups.items())
    precision = "bf16" if bf16 else "fp32"
    print(
        f"{len(photos)} training photos, {val} val; {device.type}, {precision}, "
        f"attention {model.backbone.attention_backend}"
    )
    print(f"learning: {sizes}", flush=True)
    if config.data.sampling.method != "uniform":
        print(balance_table(effective_balance(photos, config.data.sampling)), flush=True)


def _describe_features(cache: Any, views: bool) -> None:
    print(f"features: {cache.describe()}", flush=True)
    if views:
        print(
            "features: data.augment changes photos, and a changed one is not kept: only those that it leaves alone "
            "come from the cache (val; teachers with data.augment.teachers=none)",
            flush=True,
        )


def _stream(
    config: Config,
    samples: Sequence[FewShotSample],
    teachers: Sequence[Row],
    hashes: Mapping[str, int],
    processor: Any,
    ranks: int,
) -> Any:
    from bbu.data.dataset import TrainingStream
    from bbu.data.sampling.episodes import Episodes

    training, students = config.training, [sample.student for sample in samples]
    return TrainingStream(
        samples,
        processor,
        length=training.max_steps * training.batch_size * training.gradient_accumulation * ranks,
        seed=config.seed,
        episodes=Episodes(config.data.episodes, students, teachers, hashes, config.seed),
        sampling=config.data.sampling,
        augment=config.data.augment,
        mirror=taxonomy_of(config).mirror,
    )


def plan_packs(config: Config, stream: Any, processor: Any, model: Any, ranks: int) -> PackedRun | None:
    """The planned packs of the run, which set the stream's length; None where a pack is the next samples."""
    from bbu.data.packing.lengths import LengthMeter, StreamLengths
    from bbu.data.packing.planner import Budgets, PackedRun

    training, budgets = config.training, Budgets.of(config.training)
    if not budgets.limits:
        return None
    meter = LengthMeter(processor, config.data.augment, taxonomy_of(config).mirror)
    cache = Path(config.output_dir) / "data" / "lengths.json"
    lengths = StreamLengths(stream, meter, model.backbone.cost(), cache)
    packs = PackedRun(
        lengths.epoch,
        budgets,
        steps=training.max_steps,
        ranks=ranks,
        accumulation=training.gradient_accumulation,
        seed=config.seed,
        name=lengths.name,
    )
    stream.length = max(1, round(len(packs) * packs.samples_per_pack))
    return packs


def build_trainer(
    config: Config,
    args: Any,
    model: Any,
    stream: Any,
    processor: Any,
    seen: list[Row],
    root: str,
    bf16: bool,
    shown: Shown | None,
    split: str,
    packs: PackedRun | None,
) -> Any:
    import torch

    from bbu.inference.predictor import Predictor
    from bbu.training.objective import DetectionObjective
    from bbu.training.trainer import BBUTrainer

    predictor = Predictor(
        model,
        processor,
        batch_size=config.evaluation.batch_size,
        max_detections=config.evaluation.max_detections,
        nms_iou=config.evaluation.nms_iou,
        autocast=torch.bfloat16 if bf16 and not config.training.deepspeed else None,
    )

    def score_val() -> dict[str, float | None]:
        from bbu.evaluation import evaluate

        found = predict_rows(predictor, seen, root, args.process_index, args.world_size, shown)
        metrics = evaluate(seen, found, bootstrap_samples=0)
        return {name: metrics[name] for name in ("AP", "AP50", "AP50_agnostic", "description_accuracy")}

    objective = DetectionObjective(model, config.loss)
    photos_per_epoch = round(stream.order.epoch_length)
    trainer = BBUTrainer(objective, config, args, stream, processor, score_val, photos_per_epoch, packs)
    if config.training.visual_every and args.process_index == 0:
        _visual_log(config, predictor, seen, root, shown, split).attach(trainer.callback_handler.callbacks)
    return trainer


def _visual_log(
    config: Config, predictor: Predictor, seen: list[Row], root: str, shown: Shown | None, split: str
) -> Any:
    from bbu.losses.matcher import MatchCosts
    from bbu.monitoring.visual_log import VisualLog
    from bbu.monitoring.visual_probe import Probe, choose_probes

    loss = config.loss
    probes = choose_probes(seen, config.training.visual_photos, config.seed)
    costs = MatchCosts(loss.match_l1, loss.match_giou, loss.match_objectness)
    return VisualLog(Probe(predictor, probes, root, costs, shown=shown), config, split)


def predict_rows(
    predictor: Predictor, rows: Sequence[Row], root: str, rank: int = 0, ranks: int = 1, shown: Shown | None = None
) -> list[PredictionRow]:
    """Predictions for annotated rows, each rank doing its share and all getting the whole."""
    from bbu.training.trainer import merge_shards

    names = [row.images[0] for row in rows]
    mine = list(predictor.predict_files(names[rank::ranks], root, shown=shown))
    if ranks == 1:
        return mine
    import torch

    shards: list[list[PredictionRow]] = [[] for _ in range(ranks)]
    torch.distributed.all_gather_object(shards, mine)
    return merge_shards(shards)


def _resume_from(config: Config, output: Path) -> str | None:
    from bbu.training.recovery import newest_checkpoint

    if not config.training.resume:
        return None
    newest = newest_checkpoint(output)
    if newest is None:
        raise ConfigError(f"training.resume: {output} has no complete checkpoint; start without it")
    return str(newest)


def _finish(config: Config, trainer: Any, output: Path, seconds: float, seen: set[str]) -> None:
    """Publish the best (or last) checkpoint as the run's model, with the descriptions it knows; keep the log."""
    from bbu.models.vocabulary import known_descriptions
    from bbu.training.recovery import newest_checkpoint, publish

    best = trainer.state.best_model_checkpoint if config.training.select_best else None
    checkpoint = Path(best) if best else newest_checkpoint(output)
    if checkpoint is None:
        raise UserError(f"{output}: training ended without a checkpoint")
    publish(checkpoint, output / MODEL_FOLDER, known_descriptions(seen, taxonomy_of(config)))
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
