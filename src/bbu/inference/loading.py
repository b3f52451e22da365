"""Plans the views of photos and loads them in worker processes, with only a few views in memory.

Photos of similar size share a pack, so that packs are even. Packs depend on the list of photos alone, not on what is
already done, so a resumed prediction gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.photo import Photo
from bbu.errors import ImageError, UserError
from bbu.images import load_image, photo_size
from bbu.inference.predictor import Predictor, prepare
from bbu.inference.tiling import View
from bbu.records import resolve_image
from bbu.tiles import Size

WINDOW = 512  # photos that are sorted by size together
HEADERS_AT_ONCE = 8  # image headers read in parallel


@dataclass(frozen=True)
class ViewTask:
    """One view of one photo, to be loaded and predicted.

    Args:
        index: of the photo in the input.
        group: number shared by photos that are predicted together.
        view: None if the photo cannot be read; ``problem`` says why.
    """

    index: int
    group: int
    name: str
    view: View | None
    problem: str = ""


LoadedView = tuple[ViewTask, ChatProcessorOutput | str]  # a sample, or an error message


def plan_views(
    names: Sequence[str], image_root: str, predictor: Predictor, is_done: Callable[[int], bool]
) -> Iterator[ViewTask]:
    """The views of all photos, group by group; groups that are done are left out.

    Args:
        is_done: index in the input → whether that photo is already predicted.
    """
    size = predictor.options.batch_size
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        for start in range(0, len(names), WINDOW):
            window = range(start, min(start + WINDOW, len(names)))
            if all(map(is_done, window)):
                continue
            sizes = pool.map(lambda index: _size_or_problem(image_root, names[index]), window)
            tasks = [_tasks(index, names[index], size, predictor) for index, size in zip(window, sizes, strict=True)]
            tasks.sort(key=lambda some: (_cost(some, predictor.processor.spec.max_pixels), some[0].index))
            for first in range(0, len(tasks), size):
                group = tasks[first : first + size]
                if not all(is_done(some[0].index) for some in group):
                    yield from (_in_group(task, start + first) for some in group for task in some)


def _tasks(index: int, name: str, size: Size | str, predictor: Predictor) -> list[ViewTask]:
    if isinstance(size, str):
        return [ViewTask(index, 0, name, None, size)]
    return [ViewTask(index, 0, name, view) for view in predictor.views(size)]


def _in_group(task: ViewTask, group: int) -> ViewTask:
    return ViewTask(task.index, group, task.name, task.view, task.problem)


def _cost(tasks: Sequence[ViewTask], max_pixels: int) -> int:
    """Approximate number of pixels that the model sees of a photo."""
    return sum(min(task.view.size[0] * task.view.size[1], max_pixels) for task in tasks if task.view)


def _size_or_problem(image_root: str, name: str) -> Size | str:
    try:
        return photo_size(resolve_image(image_root, name))
    except UserError as error:
        return str(error)


class Views(Dataset[LoadedView]):
    """View task → sample for the model. Keeps the last photo, because its other views come next."""

    def __init__(self, processor: ChatProcessor, image_root: str, teachers: Sequence[Photo]) -> None:
        self.processor, self.image_root, self.teachers = processor, image_root, teachers
        self._last: Photo | None = None

    def __getitem__(self, task: ViewTask) -> LoadedView:
        if task.view is None:
            return task, task.problem
        try:
            return task, prepare(self.processor, self._photo(task.name, task.view.photo), task.view, self.teachers)
        except UserError as error:
            return task, str(error)

    def _photo(self, name: str, size: Size) -> Photo:
        if self._last is None or self._last.name != name:
            self._last = None  # never two large photos in memory
            self._last = Photo(load_image(resolve_image(self.image_root, name)), name)
        if self._last.image.size != size:
            raise ImageError(f"{name}: its header says {size}, its pixels {self._last.image.size}; save it again")
        return self._last


def unfinished(count: int, size: int, is_done: Callable[[int], bool]) -> Iterator[int]:
    """Indices in whole batches, which depend on the list alone, so that a rerun writes the same."""
    for first in range(0, count, size):
        batch = range(first, min(first + size, count))
        if not all(map(is_done, batch)):
            yield from batch


def in_parallel(function: Dataset[Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """``function[item]`` for every item, in order, computed ahead in worker processes; items are read lazily.

    Raises:
        UserError: a worker process was killed.
    """
    try:
        yield from DataLoader(function, batch_size=None, sampler=items, num_workers=workers, collate_fn=_as_it_is)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker ("):  # its own words for a process that is gone
            raise
        why = "a process that reads photos was killed; mostly memory or /dev/shm is short"
        raise UserError(f"{why}: rerun to resume, with fewer --workers, or 0") from None


def _as_it_is(item: Any) -> Any:
    return item
