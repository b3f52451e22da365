"""What is shown to the model, planned and made ready in worker processes, with only a few views in memory.

Photos of similar size share a pack, so that packs are even. What is in a pack depends on the list of photos alone, not
on what is done already: a resumed prediction gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.photo import Photo
from bbu.errors import ImageError, UserError
from bbu.geometry import displayed_size
from bbu.images import exif_orientation, load_image
from bbu.inference.predictor import Predictor, prepare
from bbu.inference.tiling import Size, View
from bbu.records import resolve_image

WINDOW = 512  # photos among which those of similar size are put together
HEADERS_AT_ONCE = 8  # files whose size is read at the same time


@dataclass(frozen=True)
class Look:
    """One view of one photo.

    Args:
        index: place of the photo in the input.
        group: photos that are predicted together.
        view: None where the photo cannot be read; ``problem`` says why.
    """

    index: int
    group: int
    name: str
    view: View | None
    problem: str = ""


Ready = tuple[Look, ChatProcessorOutput | str]  # a sample, or what is wrong with the photo


def plan_looks(
    names: Sequence[str], image_root: str, predictor: Predictor, is_done: Callable[[int], bool]
) -> Iterator[Look]:
    """The views of all photos, group by group; groups that are done are left out.

    Args:
        is_done: whether the photo at this place of the input needs no prediction any more.
    """
    size = predictor.options.batch_size
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        for start in range(0, len(names), WINDOW):
            window = range(start, min(start + WINDOW, len(names)))
            if all(map(is_done, window)):
                continue
            sizes = pool.map(lambda index: _size_or_problem(image_root, names[index]), window)
            looks = [_looks(index, names[index], size, predictor) for index, size in zip(window, sizes, strict=True)]
            looks.sort(key=lambda some: (_cost(some, predictor.processor.spec.max_pixels), some[0].index))
            for first in range(0, len(looks), size):
                group = looks[first : first + size]
                if not all(is_done(some[0].index) for some in group):
                    yield from (_in_group(look, start + first) for some in group for look in some)


def _looks(index: int, name: str, size: Size | str, predictor: Predictor) -> list[Look]:
    if isinstance(size, str):
        return [Look(index, 0, name, None, size)]
    return [Look(index, 0, name, view) for view in predictor.views(size)]


def _in_group(look: Look, group: int) -> Look:
    return Look(look.index, group, look.name, look.view, look.problem)


def _cost(looks: Sequence[Look], max_pixels: int) -> int:
    """About the pixels that the model sees of a photo."""
    return sum(min(look.view.size[0] * look.view.size[1], max_pixels) for look in looks if look.view)


def _size_or_problem(image_root: str, name: str) -> Size | str:
    try:
        return photo_size(resolve_image(image_root, name))
    except UserError as error:
        return str(error)


def photo_size(path: Path) -> Size:
    """Width and height as displayed, from the file's header where it tells.

    Raises:
        ImageError: the photo cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.format != "TIFF":  # Pillow turns these when it opens or when it loads them
                return displayed_size(*image.size, exif_orientation(image))
    except Exception:  # a header may be broken in any way; load_image says how
        pass
    return load_image(path).size


class Views(Dataset[Ready]):
    """Look → what the model takes. The photo read last is kept: its other views come next."""

    def __init__(self, processor: ChatProcessor, image_root: str, teachers: Sequence[Photo]) -> None:
        self.processor, self.image_root, self.teachers = processor, image_root, teachers
        self._last: Photo | None = None

    def __getitem__(self, look: Look) -> Ready:
        if look.view is None:
            return look, look.problem
        try:
            return look, prepare(self.processor, self._photo(look.name, look.view.photo), look.view, self.teachers)
        except UserError as error:
            return look, str(error)

    def _photo(self, name: str, size: Size) -> Photo:
        if self._last is None or self._last.name != name:
            self._last = None  # never two large photos at a time
            self._last = Photo(load_image(resolve_image(self.image_root, name)), name)
        if self._last.image.size != size:
            raise ImageError(f"{name}: its header says {size}, its pixels {self._last.image.size}; save it again")
        return self._last


def in_parallel(function: Dataset[Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """``function[item]`` for every item, in order, made ahead in worker processes; items are drawn as needed."""
    return iter(DataLoader(function, batch_size=None, sampler=items, num_workers=workers, collate_fn=_as_it_is))


def _as_it_is(item: Any) -> Any:
    return item
