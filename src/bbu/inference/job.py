"""``bbu predict``: streams any number of photos into one file of predictions."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from bbu.data.photo import Photo
from bbu.errors import UserError
from bbu.inference import Inference
from bbu.inference.loading import LoadedView, Views, ViewTask, in_parallel, plan_views
from bbu.inference.operating_points import OperatingPoints
from bbu.inference.partial import PartialRows
from bbu.inference.predictor import Predictor, each_or_error
from bbu.records import PredictedObject, PredictionRow

Found = list[PredictedObject]


def predict_to_file(
    inference: Inference,
    names: Sequence[str],
    image_root: str,
    output: str | Path,
    *,
    settings: Mapping[str, Any],
    teachers: Sequence[Photo] = (),
    operating_points: OperatingPoints | None = None,
    workers: int = 0,
    then: Callable[[int, int], object] = lambda count, failed: None,
) -> tuple[int, int]:
    """Predict photos into a JSONL file, written atomically in the given order.

    Args:
        settings: everything that predictions depend on besides names and root; a rerun with the same resumes.
        teachers: worked examples shown with every photo.
        operating_points: predictions below their description's threshold are dropped.
        workers: processes that read, decode and resize photos; 0 = this process does it.
        then: called with what is returned, once the output is written; if it fails, a rerun need not predict again.

    Returns:
        number of photos, and how many of them failed.

    Raises:
        UserError: the model was trained without a detection head, or the output cannot be written.
    """
    from tqdm import tqdm

    inference.check_detects()
    where = {"photos": digest(names), "image_root": str(Path(image_root).resolve())}
    partial: PartialRows[PredictionRow] = PartialRows(
        output, {**settings, **where}, len(names), [(written_name(name),) for name in names]
    )
    try:
        if partial.begun or partial.senseless:
            print(begun(partial, "predict"), file=sys.stderr)
        workers = workers if len(names) > inference.predictor.options.batch_size else 0
        tasks = plan_views(names, image_root, inference.predictor, partial.is_done)
        loaded = in_parallel(Views(inference.processor, image_root, teachers), tasks, workers)
        bar = tqdm(total=len(names), initial=partial.done(), desc="predict", unit="photo", file=sys.stderr)
        with bar:
            for index, row in predict_views(inference.predictor, loaded):
                if operating_points is not None:
                    row = replace(row, predictions=operating_points.passed(row.predictions))
                bar.update(not partial.is_done(index))
                partial.add(index, row)
        partial.finish(lambda: then(len(names), len(partial.failed)))
        return len(names), len(partial.failed)
    finally:
        partial.close()


def begun(partial: PartialRows[Any], what: str) -> str:
    """What becomes of an earlier partial file; ``what`` is done to each photo, the stem of a regular verb."""
    if partial.begun == "replaced":
        return f"{partial.path}: was made with other settings; {what}ing all photos again"
    senseless = f"; {partial.senseless} lines make no sense, their photos are {what}ed again"
    return f"resuming: {partial.done()} of {partial.count} photos are done{senseless if partial.senseless else ''}"


def predict_views(predictor: Predictor, loaded: Iterable[LoadedView]) -> Iterator[tuple[int, PredictionRow]]:
    """(index in the input, row) of every photo, group by group; a photo with a failing view gets an error row."""
    for _, group in groupby(loaded, key=lambda item: item[0].group):
        found: dict[int, list[tuple[ViewTask, Found | str]]] = {}
        while pack := list(islice(group, predictor.options.batch_size)):
            for task, items in _detect(predictor, pack):
                found.setdefault(task.index, []).append((task, items))
        for index, tasks in found.items():
            yield index, _row(predictor, tasks)


def _detect(predictor: Predictor, pack: Sequence[LoadedView]) -> Iterator[tuple[ViewTask, Found | str]]:
    """One pack: each view with its detections or an error message."""
    yield from ((task, sample) for task, sample in pack if isinstance(sample, str))
    good = [(task, sample) for task, sample in pack if not isinstance(sample, str)]
    found = each_or_error([sample for _, sample in good], predictor.detect)
    yield from zip([task for task, _ in good], found, strict=True)


def _row(predictor: Predictor, tasks: Sequence[tuple[ViewTask, Found | str]]) -> PredictionRow:
    name = written_name(tasks[0][0].name)
    problem = next((items for _, items in tasks if isinstance(items, str)), None)
    if problem is not None:
        return PredictionRow((name,), error=problem)
    views = [task.view for task, _ in tasks if task.view is not None]
    merged = predictor.merge(views, [items for _, items in tasks if not isinstance(items, str)])
    return PredictionRow((name,), *views[0].photo, tuple(merged))


def settings_of(inference: Inference, model: str | Path, *files: str | None) -> dict[str, Any]:
    """Everything that predictions depend on besides the photos.

    Args:
        model: the folder that was loaded.
        files: other files whose contents matter.
    """
    device = next(inference.model.parameters()).device.type
    contents = [content_hash(path) if path else None for path in (model, *files)]
    options = inference.predictor.options
    descriptions = digest(options.vocabulary.descriptions) if options.vocabulary else None
    return {
        "contents": contents,
        "device": device,
        "descriptions": descriptions,
        "options": repr(replace(options, vocabulary=None)),
    }


def written_name(name: str) -> str:
    """The name in valid UTF-8: file names may contain undecodable bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def digest(names: Iterable[str]) -> str:
    """SHA-256 of names, in order."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(path)
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    try:
        for item in files:
            with item.open("rb") as stream:
                total.update(f"{item.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return total.hexdigest()
