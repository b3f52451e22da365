"""The main job in five stages: prepare → train → predict → score → draw. Each writes into the run's folder.

<output_dir>/config.yaml  data/  checkpoint-N/  model/  train_log.jsonl  training_log.html
             val_predictions.jsonl  predictions.jsonl  metrics.json  pictures/  report.html
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu.config import Config
from bbu.errors import ConfigError, UserError
from bbu.jsonl import atomic_writer, write_json, write_jsonl
from bbu.records import FewShotSample, PredictionRow, Row, read_predictions, read_rows, read_samples
from bbu.taxonomy import Taxonomy

if TYPE_CHECKING:
    from bbu.data.packing import PackedRun
    from bbu.models.predictor import Predictor, Shown

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class PreparedData:
    """Where a run's rows and photos are."""

    folder: Path
    image_root: str

    def rows(self, split: str) -> list[Row]:
        """Rows of a split; empty where it does not exist."""
        path = self.folder / f"{split}.jsonl"
        return read_rows(path) if path.is_file() else []

    def samples(self, split: str) -> list[FewShotSample]:
        """Samples of a split, with the teachers written into them."""
        path = self.folder / f"{split}.jsonl"
        return read_samples(path) if path.is_file() else []


# ---------------------------------------------------------------- prepare


def prepare(config: Config) -> PreparedData:
    """Make sure that the rows exist: read, or draw and convert.

    Raises:
        UserError: the source is missing or malformed.
    """
    source = config.data.source
    output = Path(config.output_dir)
    if source.format == "records":
        if not source.path:
            raise ConfigError("data.source.path: name the folder that holds train.jsonl")
        folder = Path(source.path)
        if not (folder / "train.jsonl").is_file():
            raise ConfigError(f"data.source.path: {folder} has no train.jsonl")
        return PreparedData(folder, config.data.image_root or source.path)
    raw = Path(source.path) if source.path else output / "data" / "raw"
    if source.format == "cabinet_photos":
        _draw(config, raw)
    elif not source.path:
        raise ConfigError(f"data.source.path: name the folder of {source.format} annotations")
    elif not raw.is_dir():
        raise ConfigError(f"data.source.path: {raw} does not exist; point it at your {source.format} folder")
    records = output / "data" / "records"
    _convert(config, raw, records)
    return PreparedData(records, config.data.image_root or _image_root(config, raw, records))


def _image_root(config: Config, raw: Path, records: Path) -> str:
    """Where converted rows' photos are."""
    return str(raw if config.data.source.images == "keep" else records / "photos")


def _draw(config: Config, raw: Path) -> None:
    """Draw the demo's photos, unless the same ones lie there already."""
    from data_conversion.cabinet_photos import draw_data_set

    photos = dict(config.data.source.photos)
    wanted = {"photos": photos, "seed": config.seed}
    stamp = raw.parent / f"{raw.name}.json"
    if raw.is_dir() and stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return
    if raw.is_dir() and not stamp.is_file():
        raise ConfigError(f"{raw} exists but was not drawn by this run; move it away or set another output_dir")
    print(f"drawing {sum(photos.values())} photos into {raw}", flush=True)
    shutil.rmtree(raw, ignore_errors=True)
    draw_data_set(raw, photos, config.seed, workers=os.cpu_count() or 1)
    write_json(stamp, wanted)


def taxonomy_of(config: Config) -> Taxonomy:
    """The words of the config's labelling project."""
    from data_conversion.__main__ import load_taxonomy

    return load_taxonomy(config.data.source.taxonomy) if config.data.source.taxonomy else Taxonomy()


def _convert(config: Config, raw: Path, records: Path) -> None:
    from data_conversion.pipeline import convert

    source = config.data.source
    report = convert(
        "bbu_json" if source.format == "cabinet_photos" else source.format,
        raw,
        records,
        taxonomy=taxonomy_of(config),
        val_fraction=source.val_fraction,
        test_fraction=source.test_fraction,
        max_teachers=source.max_teachers,
        seed=config.seed,
        on_error=source.on_error,
        splits=source.splits or None,
        images=source.images,
        max_pixels=source.image_max_pixels,
        frame=source.frame,
        progress=True,
    )
    print(report.summary(), flush=True)


# ---------------------------------------------------------------- train


def train(config: Config) -> PreparedData:
    """Prepare, train, and publish the chosen checkpoint as ``<output_dir>/model``. Runs on every rank."""
    import torch

    from bbu.models.build import build_model, build_processor
    from bbu.training.precision import compute_device, use_bf16
    from bbu.training.trainer import BBUTrainer, training_arguments

    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    output = Path(config.output_dir)
    _check_output(config, output)
    device = compute_device()
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed looks for CUDA tools otherwise, and warns
    bf16 = use_bf16(config.training.precision, device)
    _quiet_trackers(config)
    _single_process_rendezvous(config)
    args = training_arguments(config, use_cpu=device.type == "cpu", bf16=bf16, has_val=True)
    with args.main_process_first(local=False, desc="preparing data"):
        data = _prepare_once(config, main=args.process_index == 0)
        split = _seen_split(config, data, evaluating=args.eval_strategy != "no")
        hashes = _photo_hashes(config, data, training=True, split=split)
    samples = data.samples("train")
    val = data.rows("val")
    if args.eval_strategy != "no" and not any(row.objects for row in val):
        raise ConfigError(
            "training.eval_every: there is no val split with parts in it; set data.source.val_fraction, or eval_every=0"
        )
    processor = build_processor(config, samples, data.image_root)
    model = build_model(config, processor.tokenizer, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    if args.process_index == 0:
        _describe(config, model, device, bf16, [sample.student for sample in samples], len(val))
    stream = _stream(config, samples, data.rows("teacher"), hashes, processor, args.world_size)
    seen = [sample.student for sample in samples] if split == "train" else val
    shown = _shown(config, data, seen, hashes) if split else None
    with args.main_process_first(local=False, desc="measuring samples"):
        packs = _packs(config, stream, processor, model, args.world_size)
    trainer: BBUTrainer = _trainer(
        config, args, model, stream, processor, seen, data.image_root, bf16, shown, split, packs
    )
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=_resume_from(config, output))
    if args.process_index == 0:
        known = {item.desc for sample in samples for item in sample.student.objects}
        _finish(config, trainer, output, time.monotonic() - started, known)
    return data


def _seen_split(config: Config, data: PreparedData, evaluating: bool) -> str:
    """The split that is predicted while it trains; "" = none."""
    if not (evaluating or config.training.visual_every):
        return ""
    return "val" if evaluating or any(row.objects for row in data.rows("val")) else "train"


def _prepare_once(config: Config, main: bool) -> PreparedData:
    """The first rank makes the rows, the others, let in after it, read what it made."""
    if main:
        return prepare(config)
    source = config.data.source
    if source.format == "records":
        return PreparedData(Path(source.path), config.data.image_root or source.path)
    raw = Path(source.path) if source.path else Path(config.output_dir) / "data" / "raw"
    records = Path(config.output_dir) / "data" / "records"
    return PreparedData(records, config.data.image_root or _image_root(config, raw, records))


def _check_output(config: Config, output: Path) -> None:
    """A fresh run does not mix with the checkpoints of an earlier one."""
    from bbu.training.checkpoint import STATE_FILE

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
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        os.environ.update({name: os.environ.get(name, value) for name, value in alone.items()})


def _describe(config: Config, model: Any, device: Any, bf16: bool, photos: Sequence[Row], val: int) -> None:
    """A few lines before the bar starts; also keeps the resolved config."""
    from omegaconf import OmegaConf

    from bbu.data.sampling import balance_table, effective_balance
    from bbu.training.param_groups import assign_groups

    with atomic_writer(Path(config.output_dir) / "config.yaml") as stream:
        stream.write(OmegaConf.to_yaml(OmegaConf.structured(config)))
    groups = {name: sum(p.numel() for p in members.values()) for name, members in assign_groups(model).items()}
    sizes = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in groups.items())
    precision = "bf16" if bf16 else "fp32"
    print(f"{len(photos)} training photos, {val} val; {device.type}, {precision}, attention {model.backbone.engine}")
    print(f"learning: {sizes}", flush=True)
    if config.data.sampling.method != "uniform":
        print(balance_table(effective_balance(photos, config.data.sampling)), flush=True)


def _stream(
    config: Config,
    samples: Sequence[FewShotSample],
    teachers: Sequence[Row],
    hashes: Mapping[str, int],
    processor: Any,
    ranks: int,
) -> Any:
    from bbu.data.dataset import TrainingStream
    from bbu.data.episodes import Episodes

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


def _packs(config: Config, stream: Any, processor: Any, model: Any, ranks: int) -> PackedRun | None:
    """The planned packs of the run, which set the stream's length; None where a pack is the next samples."""
    from bbu.data.lengths import LengthMeter, StreamLengths
    from bbu.data.packing import CostModel, PackedRun
    from bbu.training.trainer import pack_budgets

    training, budgets = config.training, pack_budgets(config)
    if not budgets.limits:
        return None
    meter = LengthMeter(processor, config.data.augment, taxonomy_of(config).mirror)
    cache = Path(config.output_dir) / "data" / "lengths.json"
    lengths = StreamLengths(stream, meter, CostModel.of(model.backbone.vlm.config), cache)
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


def _photo_hashes(config: Config, data: PreparedData, *, training: bool, split: str) -> dict[str, int]:
    """Perceptual hashes of the photos that teachers are chosen for and among; none where no teachers are shown.

    Args:
        training: whether photos are trained on now.
        split: which one is predicted now; "" = none.
    """
    from bbu.data.episodes import most_teachers
    from bbu.data.similarity import hash_photos

    episodes = config.data.episodes
    splits = {"train", episodes.pool} if training and most_teachers(episodes) else set()
    if split and config.evaluation.teachers:
        splits |= {split, episodes.pool}
    names = [sample.student.images[0] for name in sorted(splits) for sample in data.samples(name)]
    return hash_photos(names, data.image_root, Path(config.output_dir) / "data" / "photo_hashes.jsonl")


def _shown(config: Config, data: PreparedData, rows: Sequence[Row], hashes: Mapping[str, int]) -> Shown | None:
    """What is shown with each of the photos that are predicted; None = nothing."""
    from bbu.data.episodes import EvaluationEpisodes, TeacherPool, pool_rows

    episodes, count = config.data.episodes, config.evaluation.teachers
    if not count and not episodes.context_photos:
        return None
    pool = None
    if count:
        students = [sample.student for sample in data.samples("train")]
        teachers = pool_rows(episodes, students, data.rows("teacher"), "evaluation.teachers")
        pool = TeacherPool(teachers, hashes, episodes.near_duplicate_bits)
    shown = EvaluationEpisodes(episodes, rows, pool, count, data.image_root)
    if shown.left_out and int(os.environ.get("RANK", "0")) == 0:
        print(f"{shown.left_out} possible teachers left out: they show photos that are predicted", flush=True)
    return shown


def _trainer(
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

    from bbu.models.predictor import Predictor
    from bbu.training.objective import DetectionObjective
    from bbu.training.trainer import BBUTrainer

    predictor = Predictor(
        model,
        processor,
        batch_size=config.evaluation.batch_size,
        top_k=config.evaluation.captions_per_photo,
        duplicate_iou=config.evaluation.duplicate_iou,
        autocast=torch.bfloat16 if bf16 and not config.training.deepspeed else None,
    )

    def score_val() -> dict[str, float | None]:
        from bbu.evaluation import evaluate

        found = predict_rows(predictor, seen, root, args.process_index, args.world_size, shown)
        metrics = evaluate(seen, found, resamples=0)
        return {name: metrics[name] for name in ("AP", "AP50", "AP50_agnostic", "description_accuracy")}

    objective = DetectionObjective(model, config.loss)
    visual = None
    if config.training.visual_every and args.process_index == 0:
        visual = _visual_log(config, predictor, seen, root, shown, split)
    photos_per_epoch = round(stream.order.epoch_length)
    return BBUTrainer(objective, config, args, stream, processor, score_val, photos_per_epoch, visual, packs)


def _visual_log(
    config: Config, predictor: Predictor, seen: list[Row], root: str, shown: Shown | None, split: str
) -> Any:
    from bbu.losses.matcher import MatchCosts
    from bbu.training.visual_log import VisualLog
    from bbu.training.visual_probe import Probe, choose_probes

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
    from bbu.training.checkpoint import newest_checkpoint

    if not config.training.resume:
        return None
    newest = newest_checkpoint(output)
    if newest is None:
        raise ConfigError(f"training.resume: {output} has no complete checkpoint; start without it")
    return str(newest)


def _finish(config: Config, trainer: Any, output: Path, seconds: float, seen: set[str]) -> None:
    """Publish the best (or last) checkpoint as the run's model, with the descriptions it knows; keep the log."""
    from bbu.models.vocabulary import known_descriptions
    from bbu.training.checkpoint import newest_checkpoint, publish

    best = trainer.state.best_model_checkpoint if config.training.select_best else None
    checkpoint = Path(best) if best else newest_checkpoint(output)
    if checkpoint is None:
        raise UserError(f"{output}: training ended without a checkpoint")
    publish(checkpoint, output / MODEL_FOLDER, known_descriptions(seen, taxonomy_of(config)))
    write_jsonl(output / "train_log.jsonl", trainer.state.log_history)
    write_json(
        output / "train_summary.json",
        {"train_seconds": round(seconds, 1), "steps": trainer.state.global_step, "checkpoint": checkpoint.name},
    )


# ---------------------------------------------------------------- predict, score, draw


def calibrate(config: Config, data: PreparedData) -> None:
    """Fit the published model's scores on val, before it predicts anything else; writes model/calibration.json.

    Also writes val_predictions.jsonl, with the calibrated scores that the model gives from now on. Without a val
    split, or where it teaches nothing, the model stays uncalibrated and a line says so.
    """
    from bbu.evaluation.calibration import CALIBRATION_FILE, calibrated_row, fit_calibration

    output = Path(config.output_dir)
    file = output / MODEL_FOLDER / CALIBRATION_FILE
    file.unlink(missing_ok=True)  # it is fitted on what the model says without it
    rows, kind = data.rows("val"), config.evaluation.calibration
    if kind == "none":
        return
    if not any(row.objects for row in rows):
        print("scores are not calibrated: there is no val split with parts in it", flush=True)
        return
    found = list(_predict_split(config, data, "val", rows))
    try:
        calibration = fit_calibration(rows, found, kind=kind, split="val")
    except UserError as error:
        print(f"scores are not calibrated: {error}", flush=True)
        return
    write_jsonl(output / "val_predictions.jsonl", [calibrated_row(calibration, row) for row in found])
    calibration.save(file)
    print(f"scores calibrated on val: {calibration.summary()}", flush=True)


def predict(config: Config, data: PreparedData) -> Path:
    """Predict the evaluation split with the published model; writes predictions.jsonl."""
    path = Path(config.output_dir) / "predictions.jsonl"
    write_jsonl(path, _predict_split(config, data, config.evaluation.split, _evaluation_rows(config, data)))
    return path


def _predict_split(config: Config, data: PreparedData, split: str, rows: Sequence[Row]) -> Iterable[PredictionRow]:
    """Predictions of the published model, one row a photo, with a progress bar."""
    from tqdm import tqdm

    from bbu.inference import Inference
    from bbu.models.vocabulary import choose_vocabulary

    output = Path(config.output_dir)
    shown = _shown(config, data, rows, _photo_hashes(config, data, training=False, split=split))
    inference = Inference(
        output / MODEL_FOLDER,
        precision=config.training.precision,
        attention=config.model.attention,
        batch_size=config.evaluation.batch_size,
        top_k=config.evaluation.captions_per_photo,
        duplicate_iou=config.evaluation.duplicate_iou,
    )
    words = choose_vocabulary(config.evaluation.descriptions, output / MODEL_FOLDER, inference.processor)
    inference.predictor.options = replace(inference.predictor.options, vocabulary=words)
    if config.data.episodes.context_photos and not inference.processor.spec.context_note:
        raise ConfigError("data.episodes.context_photos: the model was not trained with context photos; set it to 0")
    found = inference.predictor.predict_files([row.images[0] for row in rows], data.image_root, shown=shown)
    bar: Iterable[PredictionRow] = tqdm(found, total=len(rows), desc=f"predict {split}", unit="photo", file=sys.stderr)
    return bar


def score(config: Config, data: PreparedData) -> dict[str, Any]:
    """Score predictions.jsonl against the evaluation split; writes metrics.json."""
    from bbu.evaluation import evaluate, write_metrics

    output = Path(config.output_dir)
    seen = Counter(item.desc for sample in data.samples("train") for item in sample.student.objects)
    metrics = evaluate(
        _evaluation_rows(config, data),
        read_predictions(output / "predictions.jsonl"),
        score_threshold=config.evaluation.score_threshold,
        train_descriptions=seen,
        precision=config.evaluation.target_precision,
        alarms=config.evaluation.alarms_per_photo,
        resamples=config.evaluation.resamples,
    )
    summary = output / "train_summary.json"
    if summary.is_file():
        metrics.update(json.loads(summary.read_text(encoding="utf-8")))
    metrics.update(split=config.evaluation.split, config=config.name, seed=config.seed)
    write_metrics(output / "metrics.json", metrics)
    return metrics


def draw(config: Config, data: PreparedData) -> list[Path]:
    """Truth beside prediction for a few photos, and the page of all; writes pictures/ and report.html."""
    from bbu.evaluation.page import write_report
    from bbu.evaluation.pictures import save_pictures

    output = Path(config.output_dir)
    rows, predictions = _evaluation_rows(config, data), read_predictions(output / "predictions.jsonl")
    shutil.rmtree(output / "pictures", ignore_errors=True)
    pictures = save_pictures(
        rows,
        predictions,
        data.image_root,
        output / "pictures",
        limit=config.evaluation.pictures,
        threshold=config.evaluation.score_threshold,
    )
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    title = f"{config.name}, {config.evaluation.split} split"
    write_report(output / "report.html", rows, predictions, metrics, image_root=data.image_root, title=title)
    return pictures


def _evaluation_rows(config: Config, data: PreparedData) -> list[Row]:
    rows = data.rows(config.evaluation.split)
    if not rows:
        raise ConfigError(f"evaluation.split: there is no {config.evaluation.split} split in {data.folder}")
    return rows


def run(config: Config) -> int:
    """The whole job. Under torchrun every rank trains; the first one goes on to predict, score and draw."""
    from bbu.evaluation import summary_table

    started = time.monotonic()
    data = train(config)
    if int(os.environ.get("RANK", "0")) != 0:
        return 0
    calibrate(config, data)
    predict(config, data)
    metrics = score(config, data)
    pictures = draw(config, data)
    output = Path(config.output_dir)
    print(f"\n{config.evaluation.split} split, scored once\n{summary_table(metrics)}")
    seconds = time.monotonic() - started
    print(f"\ntrained in {metrics.get('train_seconds', 0):.0f} s, all done in {seconds:.0f} s. Written:")
    for path in (output / "metrics.json", output / "predictions.jsonl", output / MODEL_FOLDER):
        print(f"  {path}")
    print(f"  {output / 'pictures'} ({len(pictures)} pictures)")
    print(f"  {output / 'report.html'}")
    if config.training.visual_every:
        print(f"  {output / 'training_log.html'}")
    return 0
