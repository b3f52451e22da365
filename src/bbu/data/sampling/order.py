"""How often each training photo is seen: evenly, or rare descriptions more often. Needs no torch.

Position i of a run → epoch and photo, from the seed alone. An epoch has as many positions as the method makes it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bbu.config import SamplingConfig
from bbu.records import Row
from bbu.taxonomy import prefix

ORDER_STREAM = 1  # of random numbers; 2 draws teachers, 3 is the augmentation's, 4 draws context
NO_PARTS = ""  # the class of a photo without parts


def class_of(desc: str, level: int) -> str:
    """The first ``level`` levels of a description; 0 = the whole."""
    return prefix(desc, level) if level else desc


def expected_views(rows: Sequence[Row], config: SamplingConfig) -> np.ndarray:
    """(Ph,) how often a photo is seen in an epoch, on average; their sum is the epoch's mean length.

    - uniform: once.
    - repeat_factor (LVIS, Gupta et al. 2019, arXiv:1908.03195): max over the photo's classes c of
      max(1, sqrt(threshold / f_c)), with f_c the share of photos that hold c; a photo without parts once.
    - class_aware: N draws of a class, each as likely, then of a photo that holds it, each as likely. Photos
      without parts are a class of their own.
    """
    held = [_classes(row, config.level) for row in rows]
    photos = Counter(name for names in held for name in names)  # class → photos that hold it
    if config.method == "repeat_factor":
        factors = {name: max(1.0, (config.threshold * len(rows) / count) ** 0.5) for name, count in photos.items()}
        factors[NO_PARTS] = 1.0
        return np.array([max(factors[name] for name in names) for names in held])
    if config.method == "class_aware":
        draws = len(rows) / max(len(photos), 1)  # of each class
        return np.array([sum(draws / photos[name] for name in names) for names in held])
    return np.ones(len(rows))


def _classes(row: Row, level: int) -> list[str]:
    """The different classes in a photo, in an order of their own."""
    return sorted({class_of(item.desc, level) for item in row.objects}) or [NO_PARTS]


@dataclass(frozen=True)
class Draw:
    """One position of a run.

    Args:
        photo: number of the row.
        number: tells this view of the photo from the others of its epoch, for what is drawn at random beside it;
            the first view has the photo's own number.
    """

    epoch: int
    photo: int
    number: int


class EpochOrder:
    """Which photo is at which position; a function of (seed, position), however the positions are asked for.

    Args:
        rows: training photos.
        seed: run seed.
    """

    def __init__(self, rows: Sequence[Row], config: SamplingConfig, seed: int) -> None:
        self.config, self.seed, self.photos = config, seed, len(rows)
        self.views = expected_views(rows, config)
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for photo, row in enumerate(rows):
            for name in _classes(row, config.level):
                holders[name].append(photo)
        self._holders = [holders[name] for name in sorted(holders)]  # photos of each class
        self._edges = [0]  # positions at which epochs begin, as far as asked for
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None  # of the epoch being read

    @property
    def epoch_length(self) -> float:
        """Mean number of positions of an epoch."""
        return float(self.views.sum())

    def at(self, position: int) -> Draw:
        """What is shown at a position of the run, counted from 0."""
        if self.config.method != "repeat_factor":
            epoch, place = divmod(position, self.photos)
        else:
            epoch = self._epoch_of(position)
            place = position - self._edges[epoch]
        if self._last is None or self._last[0] != epoch:
            order = self._order(epoch)
            self._last = (epoch, order, order + self.photos * _occurrences(order))
        return Draw(epoch, int(self._last[1][place]), int(self._last[2][place]))

    def _epoch_of(self, position: int) -> int:
        """Epochs of repeated photos differ in length, so they are counted from the run's beginning, once."""
        while self._edges[-1] <= position:
            repeats = self._repeats(np.random.default_rng((self.seed, ORDER_STREAM, len(self._edges) - 1)))
            self._edges.append(self._edges[-1] + int(repeats.sum()))
        return int(np.searchsorted(self._edges, position, side="right")) - 1

    def _order(self, epoch: int) -> np.ndarray:
        """Numbers of the photos of one epoch, in order."""
        random = np.random.default_rng((self.seed, ORDER_STREAM, epoch))
        if self.config.method == "repeat_factor":
            return random.permutation(np.repeat(np.arange(self.photos), self._repeats(random)))
        if self.config.method == "class_aware":
            classes = random.integers(0, len(self._holders), self.photos)
            places = random.random(self.photos)
            drawn = (self._holders[c] for c in classes)
            return np.array([held[int(place * len(held))] for held, place in zip(drawn, places, strict=True)])
        return random.permutation(self.photos)

    def _repeats(self, random: np.random.Generator) -> np.ndarray:
        """(Ph,) whole repeats of an epoch: the fraction of a factor is the chance of one more."""
        whole = np.floor(self.views)
        return (whole + (random.random(self.photos) < self.views - whole)).astype(np.int64)


def _occurrences(order: np.ndarray) -> np.ndarray:
    """0 where a photo comes for the first time, then 1, 2, …"""
    seen: Counter[int] = Counter()
    found = np.empty(len(order), dtype=np.int64)
    for place, photo in enumerate(order.tolist()):
        found[place] = seen[photo]
        seen[photo] += 1
    return found


# ---------------------------------------------------------------- what it does to the balance


@dataclass(frozen=True)
class Balance:
    """One class: photos and objects that have it, and its share of all objects seen, evenly and as sampled."""

    name: str
    photos: int
    objects: int
    share_before: float
    share_after: float


def effective_balance(rows: Sequence[Row], config: SamplingConfig) -> list[Balance]:
    """Every description at ``config.level``, the rarest first: its expected share of the objects that are seen."""
    views = expected_views(rows, config)
    photos, objects = Counter[str](), Counter[str]()
    seen: defaultdict[str, float] = defaultdict(float)
    for row, times in zip(rows, views.tolist(), strict=True):
        names = [class_of(item.desc, config.level) for item in row.objects]
        photos.update(set(names))
        objects.update(names)
        for name in names:
            seen[name] += times
    total, total_seen = sum(objects.values()), sum(seen.values())
    found = [
        Balance(name, photos[name], objects[name], objects[name] / total, seen[name] / total_seen) for name in objects
    ]
    return sorted(found, key=lambda item: (item.objects, item.name))


def balance_table(balance: Sequence[Balance], limit: int = 6) -> str:
    """The rarest and the commonest classes as lines: photos, objects, share of seen objects before and after."""
    shown = list(balance) if len(balance) <= limit else [*balance[: limit - 2], *balance[-2:]]
    lines = ["photos objects  share → sampled"]
    lines += [
        f"{item.photos:6d} {item.objects:7d} {item.share_before:6.2%} → {item.share_after:6.2%}  {item.name}"
        for item in shown
    ]
    if len(shown) < len(balance):
        lines.insert(-2, f"       … {len(balance) - len(shown)} more …")
    return "\n".join(lines)
