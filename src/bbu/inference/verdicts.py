"""``bbu write-verdicts``: the language model's verdict on every group of photos, resumable."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from bbu.data.photo import Photo
from bbu.errors import UserError
from bbu.images import load_image
from bbu.inference.job import begun, digest, written_name
from bbu.inference.loading import in_parallel, unfinished
from bbu.inference.model_folder import Inference
from bbu.inference.partial import PartialRows
from bbu.inference.predictor import each_or_error
from bbu.judging.written import WrittenGroup, parse_written
from bbu.records import resolve_image

Groups = Sequence[tuple[str, Sequence[str]]]  # name, and paths of the photos in the order they are shown
Loaded = tuple[int, list[Photo] | str]  # index of the group; its photos, or an error message


def verdicts_to_file(
    inference: Inference,
    groups: Groups,
    image_root: str,
    output: str | Path,
    *,
    settings: Mapping[str, Any],
    max_new_tokens: int = 256,
    workers: int = 0,
) -> tuple[int, int]:
    """Write the model's verdicts into a JSONL file, atomically: a row for each group, in the given order.

    Args:
        settings: everything that verdicts depend on besides groups, root and length; a rerun with the same resumes.
        max_new_tokens: most tokens of an answer.
        workers: processes that read and decode photos; 0 = this process does it.

    Returns:
        how many groups failed (a photo cannot be read, or they are too many), and how many answers are malformed.

    Raises:
        SampleError: the model was not trained to answer with a verdict.
        UserError: the output cannot be written.
    """
    from tqdm import tqdm

    inference.processor.spec.asking_for("verdict")
    written = [tuple(map(written_name, photos)) for _, photos in groups]
    listed = digest([part for name, photos in groups for part in (name, *photos)])
    where = {"groups": listed, "image_root": str(Path(image_root).resolve()), "max_new_tokens": max_new_tokens}
    partial: PartialRows[WrittenGroup] = PartialRows(output, {**settings, **where}, len(groups), written, parse_written)
    malformed = 0

    def counted(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        nonlocal malformed
        for row in rows:
            found = parse_written(row, str(output))
            malformed += found.error is None and found.answer is None
            yield row

    try:
        if partial.begun or partial.senseless:
            print(begun(partial, "judg"), file=sys.stderr)
        size = inference.predictor.options.batch_size
        loaded = in_parallel(_GroupPhotos(image_root, groups), unfinished(len(groups), size, partial.is_done), workers)
        with tqdm(total=len(groups), initial=partial.done(), desc="verdicts", unit="group", file=sys.stderr) as bar:
            while pack := list(islice(loaded, size)):
                for index, row in _judged(inference, pack, groups, written, max_new_tokens):
                    bar.update(not partial.is_done(index))
                    partial.add(index, row)
        partial.finish(gather=counted)
        return len(partial.failed), malformed
    finally:
        partial.close()


class _GroupPhotos(Dataset[Loaded]):
    """Index of a group → its photos."""

    def __init__(self, image_root: str, groups: Groups) -> None:
        self.image_root, self.groups = image_root, groups

    def __getitem__(self, index: int) -> Loaded:
        photos = []
        for name in self.groups[index][1]:
            try:
                photos.append(Photo(load_image(resolve_image(self.image_root, name)), name))
            except UserError as error:
                return index, f"{written_name(name)} could not be read: {error}"
        return index, photos


def _judged(
    inference: Inference,
    pack: Sequence[Loaded],
    groups: Groups,
    written: Sequence[tuple[str, ...]],
    max_new_tokens: int,
) -> Iterator[tuple[int, WrittenGroup]]:
    for index, problem in pack:
        if isinstance(problem, str):
            yield index, WrittenGroup(groups[index][0], written[index], error=problem)
    good = [(index, photos) for index, photos in pack if not isinstance(photos, str)]
    texts = each_or_error(
        [photos for _, photos in good], lambda some: inference.write_verdicts(some, max_new_tokens=max_new_tokens)
    )
    for (index, _), found in zip(good, texts, strict=True):
        name, images = groups[index][0], written[index]
        if isinstance(found, str):
            yield index, WrittenGroup(name, images, error=found)
        else:
            yield index, WrittenGroup(name, images, found.text, found.finished, found.pass_probability)
