"""Baselines for a trained model: the same photos and scorer, other ways to an answer.

<output_dir>/baselines.json           every number, for each baseline
             baselines/truth.jsonl    the photos that were compared
             baselines/<name>.jsonl   predictions of a baseline
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bbu.config import Config
from bbu.data.photo import Photo
from bbu.data.sampling.episodes import EvaluationEpisodes, TeacherPool
from bbu.data.sampling.similarity import hash_photos
from bbu.errors import CheckpointError, ConfigError, UserError
from bbu.evaluation import evaluate
from bbu.evaluation.descriptions import most_frequent, ratio
from bbu.families.prompts import answer_text
from bbu.images import load_image
from bbu.inference import Inference, TextResult
from bbu.inference.predictor import Shown
from bbu.jsonl import write_json, write_jsonl
from bbu.models.build import build_model
from bbu.models.checkpoint import FACTS_FILE
from bbu.models.precision import use_bf16
from bbu.records import PredictedObject, PredictionRow, Row, iter_predictions, read_predictions, resolve_image

SHOTS = (0, 1, 3, 5)  # teachers of the few-shot curve
TEXT_TITLE = "its language model's text"
ROOM_TO_WRITE = 1.25  # text is cut off at this multiple of the longest training answer

Predict = Callable[[Sequence[str]], Iterator[PredictionRow]]
COLUMNS = {  # of the table → key in a baseline's entry or its metrics
    "AP": "AP",
    "AP50": "AP50",
    "AP50 agnostic": "AP50_agnostic",
    "caption acc": "description_accuracy",
    "precision": "precision",
    "recall": "recall",
    "s/photo": "seconds_per_photo",
}


@dataclass(frozen=True)
class Material:
    """Data that every baseline uses.

    Args:
        rows: annotated photos that are predicted and scored.
        students: training rows, for the majority baseline, and as teachers where teacher.jsonl is empty.
        teachers: rows of teacher.jsonl.
        image_root: folder that image paths are relative to.
    """

    config: Config
    rows: Sequence[Row]
    students: Sequence[Row]
    teachers: Sequence[Row]
    image_root: str

    @property
    def names(self) -> list[str]:
        return [row.images[0] for row in self.rows]

    @cached_property
    def trained_descriptions(self) -> Counter[str]:
        """Description → count in the training split."""
        return Counter(item.desc for row in self.students for item in row.objects)

    @property
    def pool_name(self) -> str:
        """The split that teachers come from: data.episodes.pool, or train if it is empty."""
        return "teacher" if self.config.data.episodes.pool == "teacher" and self.teachers else "train"

    @cached_property
    def pool(self) -> TeacherPool:
        rows = self.teachers if self.pool_name == "teacher" else self.students
        cache = Path(self.config.output_dir) / "data" / "photo_hashes.jsonl"
        hashes = hash_photos([*self.names, *(row.images[0] for row in rows)], self.image_root, cache)
        return TeacherPool(rows, hashes, self.config.data.episodes.near_duplicate_bits)

    def shown(self, teachers: int) -> Shown:
        """Teachers and context of each photo.

        Raises:
            UserError: too few teachers are left without photos of the split, or one cannot be read.
        """
        pool = self.pool if teachers else None
        shown = EvaluationEpisodes(self.config.data.episodes, self.rows, pool, teachers, self.image_root)
        if pool is not None and len(pool.rows) - shown.left_out < teachers:
            raise ConfigError(
                f"{teachers} teachers: only {len(pool.rows) - shown.left_out} of the {self.pool_name} split show no "
                "photo of the evaluation split; raise data.source.max_teachers, or set data.episodes.pool=train"
            )
        return shown


def _forget_earlier(output: Path) -> None:
    """Delete the report of an earlier comparison and the predictions that it names; other files stay."""
    report = output / "baselines.json"
    try:
        names = list(json.loads(report.read_text(encoding="utf-8"))["baselines"])
    except (OSError, ValueError, KeyError, TypeError):
        names = []
    for name in names:
        if Path(name).name == name:
            (output / "baselines" / f"{name}.jsonl").unlink(missing_ok=True)
    report.unlink(missing_ok=True)


def compare(material: Material, model_folder: Path) -> dict[str, Any]:
    """Predict, score and save every baseline; ``baselines.json`` is written last.

    Raises:
        UserError: there is no photo to compare on, no trained model, or it was trained without a detection head.
    """
    config, output = material.config, Path(material.config.output_dir)
    if not material.rows:
        raise ConfigError(f"evaluation.split: there is no {config.evaluation.split} split with photos in it")
    if not (model_folder / FACTS_FILE).is_file():
        raise CheckpointError(f"{model_folder}: there is no trained model; train one first with: bbu run CONFIG")
    inference = Inference.as_configured(model_folder, config)
    inference.check_detects()
    _forget_earlier(output)
    write_jsonl(output / "baselines" / "truth.jsonl", material.rows)
    trained = _of_trained_model(material, inference)
    restart(inference, config)  # in place, so memory holds one model
    report = {
        "config": config.name,
        "split": config.evaluation.split,
        "photos": len(material.rows),
        "score_threshold": config.evaluation.score_threshold,
        "teacher_pool": material.pool_name,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "batch_size": config.evaluation.batch_size,
        "baselines": _of_untrained_model(material, inference) | trained,
    }
    write_json(output / "baselines.json", report)
    return report


def restart(inference: Inference, config: Config) -> None:
    """Replace the trained weights by training's initial ones: fresh, or the base model's with an untrained head.

    Prompt, tokenizer and settings stay; the calibration, fitted to the trained weights, is removed.
    """
    device = next(inference.model.parameters()).device
    dtype = torch.bfloat16 if use_bf16(config.training.precision, device) else torch.float32
    start = replace(config, training=replace(config.training, deepspeed=""))  # which alone would store 16-bit weights
    inference.model = inference.predictor.model = build_model(
        start, inference.processor.tokenizer, device=device, dtype=dtype
    )
    inference.model.to(device).eval()
    inference.predictor.options = replace(inference.predictor.options, calibration=None)


# ---------------------------------------------------------------- the baselines


def _of_trained_model(material: Material, inference: Inference) -> dict[str, dict[str, Any]]:
    usual = material.config.evaluation.teachers
    found = {
        "trained": _measured(material, inference, "trained", "trained model", usual),
        "trained_text": _measured(material, inference, "trained_text", TEXT_TITLE, usual, write=True),
        "majority": _majority(material),
    }
    for shots in SHOTS:
        if shots != usual:
            name = f"trained_{shots}_teachers"
            found[name] = _measured(material, inference, name, f"trained model, teachers: {shots}", shots)
    return found


def _of_untrained_model(material: Material, inference: Inference) -> dict[str, dict[str, Any]]:
    usual, path = material.config.evaluation.teachers, material.config.model.path
    title = "base model, untrained head" if path else "before training"
    found = {"untrained": _measured(material, inference, "untrained", title, usual)}
    if path:  # fresh weights write no text
        found["untrained_text"] = _measured(material, inference, "untrained_text", TEXT_TITLE, usual, write=True)
    return found


def _measured(
    material: Material, inference: Inference, name: str, title: str, teachers: int, *, write: bool = False
) -> dict[str, Any]:
    """Predict, time and score the photos: all boxes from one forward pass or, with ``write``, text photo by photo.

    The seconds per photo include reading; a warm-up call is not timed.
    """
    facts = {"title": title, "teachers": teachers}
    names, root = material.names, material.image_root
    try:
        shown = material.shown(teachers)
        writer = Writer(inference, shown, root, answer_budget(material, inference)) if write else None
    except UserError as error:
        return {**facts, "note": f"not run: {error}"}
    predict: Predict = writer or partial(inference.predictor.predict_files, image_root=root, shown=shown)
    list(predict(names[:1]))
    started = time.perf_counter()
    rows = list(tqdm(predict(names), total=len(names), desc=name, unit="photo", file=sys.stderr))
    seconds = round((time.perf_counter() - started) / len(names), 4)
    return {**facts, "seconds_per_photo": seconds, **(writer.counts if writer else {}), **_scored(material, name, rows)}


def _majority(material: Material) -> dict[str, Any]:
    """The trained model's boxes, all with the most frequent training description, ranked by objectness."""
    facts: dict[str, Any] = {"title": "its boxes, majority caption", "teachers": material.config.evaluation.teachers}
    saved = _saved(material, "trained")
    majority = most_frequent(material.trained_descriptions)
    if majority is None or not saved.is_file():
        return {**facts, "note": "not run: the trained model has no boxes, or training has no description"}
    rows = []
    for row in read_predictions(saved):
        objects = (PredictedObject(item.box, majority, item.objectness, item.objectness) for item in row.predictions)
        rows.append(replace(row, predictions=tuple(objects)))
    return {**facts, "description": majority, **_scored(material, "majority", rows)}


class Writer:
    """The language model's answers as predictions, and counts of malformed ones.

    Text has no scores: every object gets 1, so the ranking is arbitrary.

    Args:
        budget: tokens after which an answer is cut off.
    """

    def __init__(self, inference: Inference, shown: Shown, image_root: str, budget: int) -> None:
        self.inference, self.shown, self.image_root, self.budget = inference, shown, image_root, budget
        self.counts: dict[str, int] = {}

    def __call__(self, names: Sequence[str]) -> Iterator[PredictionRow]:
        """One row per photo; a photo that cannot be read or does not fit the model becomes an error row."""
        self.counts = {"max_new_tokens": self.budget, "tokens": 0, "malformed_objects": 0, "unfinished_answers": 0}
        for name in names:
            try:
                photo = Photo(load_image(resolve_image(self.image_root, name)), name)
                teachers, context = self.shown(name)
                process = self.inference.processor.process_photos
                sample = process(teachers, photo, context=context, with_answer=False)
            except UserError as error:
                yield PredictionRow((name,), error=str(error))
                continue
            answer = self.inference.write_answer(sample, max_new_tokens=self.budget)
            self.counts["tokens"] += answer.tokens
            self.counts["malformed_objects"] += answer.malformed
            self.counts["unfinished_answers"] += not answer.finished
            yield PredictionRow((name,), *photo.image.size, _objects(answer, *photo.image.size))


def _objects(answer: TextResult, width: int, height: int) -> tuple[PredictedObject, ...]:
    boxes = answer.boxes.clip(0, [width, height, width, height])  # as detection's are
    return tuple(
        PredictedObject((x1, y1, x2, y2), desc, score=1.0, objectness=1.0)
        for (x1, y1, x2, y2), desc in zip(boxes.tolist(), answer.captions, strict=True)
    )


def answer_budget(material: Material, inference: Inference) -> int:
    """Most tokens of an answer: ROOM_TO_WRITE times the longest training answer.

    Coordinates are counted in displayed pixels; they rarely have fewer digits than those of the resized photo.
    """
    tokenizer = inference.processor.tokenizer
    answers = [
        answer_text(np.rint([item.box for item in row.objects]).reshape(-1, 4), [item.desc for item in row.objects])
        for row in material.students
    ]
    lengths = [len(ids) for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]]
    return int(max(lengths) * ROOM_TO_WRITE) + 1  # its end token


# ---------------------------------------------------------------- scores, table


def _scored(material: Material, name: str, rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Save the predictions and score the saved file; no metrics if every photo failed."""
    path = _saved(material, name)
    write_jsonl(path, rows)
    errors = [row.error for row in rows if row.error is not None]
    facts: dict[str, Any] = {"predictions": str(Path("baselines") / path.name)}
    if errors:
        facts["note"] = f"{len(errors)} of {len(rows)} photos failed; the first: {errors[0]}"
    if len(errors) == len(rows):
        return facts
    evaluation = material.config.evaluation
    metrics = evaluate(
        material.rows,
        iter_predictions(path),
        score_threshold=evaluation.score_threshold,
        train_descriptions=material.trained_descriptions,
        precision=evaluation.target_precision,
        fppi=evaluation.fppi,
        bootstrap_samples=evaluation.bootstrap_samples,
    )
    said = metrics["predictions_at_threshold"]
    right = said - metrics["false_positives"]
    return {
        **facts,
        "precision": ratio(right, said),
        "recall": ratio(right, metrics["truth_boxes"]),
        "metrics": metrics,
    }


def _saved(material: Material, name: str) -> Path:
    return Path(material.config.output_dir) / "baselines" / f"{name}.jsonl"


def baselines_table(report: Mapping[str, Any]) -> str:
    """A line per baseline, then notes on some of them."""
    lines = [f"{'':<28}" + "".join(f"{column:>13}" for column in COLUMNS)]
    notes = []
    for entry in report["baselines"].values():
        values = {**entry.get("metrics", {}), **entry}
        lines.append(f"{entry['title']:<28}" + "".join(f"{_cell(values.get(key)):>13}" for key in COLUMNS.values()))
        notes += [f"{entry['title']}: {note}" for note in _notes(entry, report["photos"])]
    lines.append(f"precision, recall: right box and caption, score ≥ {report['score_threshold']:g}; text has no scores")
    return "\n".join([*lines, *notes])


def _cell(value: float | None) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _notes(entry: Mapping[str, Any], photos: int) -> Iterator[str]:
    if "unfinished_answers" in entry:
        yield (
            f"{entry['malformed_objects']} malformed objects, {entry['unfinished_answers']} of {photos} answers cut "
            f"off at {entry['max_new_tokens']} tokens"
        )
    if "description" in entry:
        yield f"always {entry['description']}"
    if "note" in entry:
        yield entry["note"]
