"""How often each training photo is shown: uniformly, or rare descriptions more often. Needs no torch.

Position i of a run → epoch and photo, from the seed alone. The sampling method decides the length of an epoch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bbu.config import SamplingConfig
from bbu.records import Row
from bbu.taxonomy import prefix

ORDER_STREAM = 1  # random stream; 2 is the teachers', 3 the augmentation's, 4 the context's
NO_OBJECTS = ""  # the class of a photo without objects


def class_of(desc: str, level: int) -> str:
    """The first ``level`` levels of a description; 0 = all of it."""
    return prefix(desc, level) if level else desc


def expected_views(rows: Sequence[Row], config: SamplingConfig) -> np.ndarray:
    """(Ph,) expected views of each photo (or tile) in an epoch; their sum is the expected length of the epoch.

    - uniform: 1.
    - repeat_factor (LVIS, Gupta et al. 2019, arXiv:1908.03195): max over the photo's classes c of
      max(1, sqrt(threshold / f_c)), with f_c the fraction of photos with c; 1 for a photo without objects.
    - class_aware: Ph draws of a class, uniformly, each then of a photo with that class, uniformly. Photos without
      objects are a class of their own.

    But for class_aware, a tile without objects has ``config.empty_tiles`` times as many views.
    """
    held = [_classes(row, config.level) for row in rows]
    photos = Counter(name for names in held for name in names)  # class → number of photos with it
    if config.method == "repeat_factor":
        factors = {name: max(1.0, (config.threshold * len(rows) / count) ** 0.5) for name, count in photos.items()}
        factors[NO_OBJECTS] = 1.0
        return np.array([max(factors[name] for name in names) for names in held]) * _empty_shares(rows, config)
    if config.method == "class_aware":
        draws = len(rows) / max(len(photos), 1)  # of each class
        return np.array([sum(draws / photos[name] for name in names) for names in held])
    return _empty_shares(rows, config)


def _empty_shares(rows: Sequence[Row], config: SamplingConfig) -> np.ndarray:
    """(Ph,) config.empty_tiles for a tile without objects, else 1."""
    return np.array([config.empty_tiles if row.tile and not row.objects else 1.0 for row in rows])


def _classes(row: Row, level: int) -> list[str]:
    """The distinct classes of a photo, sorted."""
    return sorted({class_of(item.desc, level) for item in row.objects}) or [NO_OBJECTS]


@dataclass(frozen=True)
class Draw:
    """One position of a run.

    Args:
        photo: index of the row.
        number: identifies this view within its epoch and seeds its other random draws; a photo's first view has the
            photo's own index.
    """

    epoch: int
    photo: int
    number: int


class EpochOrder:
    """Which photo is at which position: a function of (seed, position), in whatever order positions are read.

    Args:
        rows: training photos.
        seed: run seed.
    """

    def __init__(self, rows: Sequence[Row], config: SamplingConfig, seed: int) -> None:
        self.config, self.seed, self.photos = config, seed, len(rows)
        self.views = expected_views(rows, config)
        # a photo's number of views is drawn anew for each epoch, so epochs differ in length
        self._drawn = config.method == "repeat_factor" or (config.method == "uniform" and bool((self.views != 1).any()))
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for photo, row in enumerate(rows):
            for name in _classes(row, config.level):
                holders[name].append(photo)
        self._holders = [holders[name] for name in sorted(holders)]  # photos with each class
        self._starts = [0]  # first position of each epoch, extended on demand
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None  # cache of the epoch being read

    @property
    def epoch_length(self) -> float:
        """Expected number of positions in an epoch."""
        return float(self.views.sum())

    def at(self, position: int) -> Draw:
        """The photo at a position of the run, counted from 0."""
        if not self._drawn:
            epoch, place = divmod(position, self.photos)
        else:
            epoch = self._epoch_of(position)
            place = position - self._starts[epoch]
        if self._last is None or self._last[0] != epoch:
            order = self._order(epoch)
            self._last = (epoch, order, order + self.photos * _occurrences(order))
        return Draw(epoch, int(self._last[1][place]), int(self._last[2][place]))

    def _epoch_of(self, position: int) -> int:
        """Starts of epochs that differ in length are accumulated from the first epoch on."""
        while self._starts[-1] <= position:
            repeats = self._repeats(np.random.default_rng((self.seed, ORDER_STREAM, len(self._starts) - 1)))
            self._starts.append(self._starts[-1] + int(repeats.sum()))
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def _order(self, epoch: int) -> np.ndarray:
        """Indices of the photos of one epoch, in order."""
        random = np.random.default_rng((self.seed, ORDER_STREAM, epoch))
        if self._drawn:
            return random.permutation(np.repeat(np.arange(self.photos), self._repeats(random)))
        if self.config.method == "class_aware":
            classes = random.integers(0, len(self._holders), self.photos)
            places = random.random(self.photos)
            drawn = (self._holders[c] for c in classes)
            return np.array([held[int(place * len(held))] for held, place in zip(drawn, places, strict=True)])
        return random.permutation(self.photos)

    def _repeats(self, random: np.random.Generator) -> np.ndarray:
        """(Ph,) repeats in an epoch: the expected views, stochastically rounded."""
        whole = np.floor(self.views)
        return (whole + (random.random(self.photos) < self.views - whole)).astype(np.int64)


def _occurrences(order: np.ndarray) -> np.ndarray:
    """0 at a photo's first occurrence, then 1, 2, …"""
    seen: Counter[int] = Counter()
    found = np.empty(len(order), dtype=np.int64)
    for place, photo in enumerate(order.tolist()):
        found[place] = seen[photo]
        seen[photo] += 1
    return found


# ---------------------------------------------------------------- class balance


@dataclass(frozen=True)
class Balance:
    """One class: photos and objects with it, and its fraction of all objects shown, uniformly and as sampled."""

    name: str
    photos: int
    objects: int
    share_before: float
    share_after: float


def effective_balance(rows: Sequence[Row], config: SamplingConfig) -> list[Balance]:
    """The classes at ``config.level``, rarest first, with their expected fractions of the objects shown."""
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
    """The rarest and the most frequent classes as text: photos, objects, fraction of shown objects before and after."""
    shown = list(balance) if len(balance) <= limit else [*balance[: limit - 2], *balance[-2:]]
    lines = ["photos objects  share → sampled"]
    lines += [
        f"{item.photos:6d} {item.objects:7d} {item.share_before:6.2%} → {item.share_after:6.2%}  {item.name}"
        for item in shown
    ]
    if len(shown) < len(balance):
        lines.insert(-2, f"       … {len(balance) - len(shown)} more …")
    return "\n".join(lines)
