"""``bbu summarize``: a summary of every photo, in one row for each group, resumable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.photo import Photo
from bbu.errors import UserError
from bbu.images import load_image
from bbu.inference.job import begun, digest, written_name
from bbu.inference.loading import in_parallel, unfinished
from bbu.inference.model_folder import Inference
from bbu.inference.partial import PartialRows
from bbu.inference.predictor import each_or_error
from bbu.records import FieldChecker, resolve_image

GroupOf = Callable[[str], str | None]  # path of a photo → its group; None = it is alone
Loaded = tuple[int, ChatProcessorOutput | str]  # index in the input; a sample, or an error message


@dataclass(frozen=True)
class SummaryRow:
    """The summary of one photo, or the error that prevented it; ``finished``: it ended before the token limit."""

    images: tuple[str, ...]
    summary: str = ""
    finished: bool = True
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        found = {"summary": self.summary, "finished": self.finished} if self.error is None else {"error": self.error}
        return {"images": list(self.images), **found}


def parse_summary(value: Any, where: str) -> SummaryRow:
    """Check one decoded row.

    Raises:
        RecordError: it is none.
    """
    check = FieldChecker(where, "")
    if isinstance(value, dict) and "error" in value:
        check.keys(value, required=("images", "error"))
        return SummaryRow(check.images(value["images"]), error=check.string(value["error"], "error"))
    check.keys(value, required=("images", "summary", "finished"))
    if not isinstance(value["finished"], bool):
        check.fail("finished", "must be true or false")
    return SummaryRow(check.images(value["images"]), check.string(value["summary"], "summary"), value["finished"])


def summarize_to_file(
    inference: Inference,
    names: Sequence[str],
    image_root: str,
    output: str | Path,
    *,
    group_of: GroupOf,
    settings: Mapping[str, Any],
    max_new_tokens: int = 512,
    workers: int = 0,
) -> tuple[int, int, int]:
    """Summarise photos into a JSONL file, written atomically: a row for each group, in order of its first photo.

    A row is ``{"group", "images", "per_image"}``; ``per_image`` has ``{"summary", "finished"}`` or ``{"error"}`` of
    each image, in the order of ``images``. A photo without a group has a row of its own, whose group is null.

    Args:
        settings: everything that summaries depend on besides names, root and length; a rerun with the same resumes.
        max_new_tokens: most tokens of a summary.
        workers: processes that read, decode and resize photos; 0 = this process does it.

    Returns:
        number of photos, how many of them failed, and how many summaries were cut off.

    Raises:
        SampleError: the model was not trained to answer with a summary.
        UserError: the output cannot be written.
    """
    from tqdm import tqdm

    inference.processor.spec.asking_for("summary")
    written = list(map(written_name, names))
    where = {"photos": digest(names), "image_root": str(Path(image_root).resolve()), "max_new_tokens": max_new_tokens}
    partial: PartialRows[SummaryRow] = PartialRows(
        output, {**settings, **where}, len(names), [(name,) for name in written], parse_summary
    )
    cut = 0

    def by_group(rows: Iterator[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        nonlocal cut
        groups: dict[object, dict[str, Any]] = {}
        for name, row in zip(names, rows, strict=True):
            group, (image,) = group_of(name), row.pop("images")
            key = group if group is not None else object()  # alone
            entry = groups.setdefault(key, {"group": group, "images": [], "per_image": []})
            entry["images"].append(image)
            entry["per_image"].append(row)
            cut += not row.get("finished", True)
        return groups.values()

    try:
        if partial.begun or partial.senseless:
            print(begun(partial, "summaris"), file=sys.stderr)
        tasks = unfinished(len(names), inference.predictor.options.batch_size, partial.is_done)
        loaded = in_parallel(_Questions(inference.processor, image_root, names), tasks, workers)
        with tqdm(total=len(names), initial=partial.done(), desc="summarize", unit="photo", file=sys.stderr) as bar:
            while pack := list(islice(loaded, inference.predictor.options.batch_size)):
                for index, row in _written(inference, pack, written, max_new_tokens):
                    bar.update(not partial.is_done(index))
                    partial.add(index, row)
        partial.finish(gather=by_group)
        return len(names), len(partial.failed), cut
    finally:
        partial.close()


class _Questions(Dataset[Loaded]):
    """Index of a photo → a sample that asks for its summary."""

    def __init__(self, processor: ChatProcessor, image_root: str, names: Sequence[str]) -> None:
        self.processor, self.image_root, self.names = processor, image_root, names

    def __getitem__(self, index: int) -> Loaded:
        name = self.names[index]
        try:
            photo = Photo(load_image(resolve_image(self.image_root, name)), name)
            return index, self.processor.process_photos([], photo, with_answer=False, answer="summary")
        except UserError as error:
            return index, str(error)


def _written(
    inference: Inference, pack: Sequence[Loaded], names: Sequence[str], max_new_tokens: int
) -> Iterator[tuple[int, SummaryRow]]:
    for index, problem in pack:
        if isinstance(problem, str):
            yield index, SummaryRow((names[index],), error=problem)
    good = [(index, sample) for index, sample in pack if not isinstance(sample, str)]
    texts = each_or_error(
        [sample for _, sample in good], lambda some: inference.write_summaries(some, max_new_tokens=max_new_tokens)
    )
    for (index, _), text in zip(good, texts, strict=True):
        if isinstance(text, str):
            yield index, SummaryRow((names[index],), error=text)
        else:
            yield index, SummaryRow((names[index],), text.text, text.finished)
