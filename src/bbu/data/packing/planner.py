"""Which samples make a pack, and which packs a step: full packs under hard budgets, ranks that finish together.

A plan is a function of (seed, epoch, lengths) alone. Needs no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bbu.errors import SampleError

if TYPE_CHECKING:
    from bbu.config import TrainingConfig

PACK_STREAM = 5  # of random numbers; 1 is the order's, 2 draws teachers, 3 is the augmentation's, 4 draws context
LEVELS = 1 << 14  # units that a pack's free room is counted in, at most (but for a cap of more photos)
SIZE_CLASS = 1.1  # samples of one size within 10 % come in random order

Pack = tuple[int, ...]


@dataclass(frozen=True)
class Budgets:
    """The most that a pack may hold; 0 = no limit.

    Args:
        tokens: text and image tokens.
        pixels: of all its photos, after the resize.
        images: photos.
    """

    tokens: int = 0
    pixels: int = 0
    images: int = 0

    @classmethod
    def of(cls, training: TrainingConfig) -> Budgets:
        """Those that a config sets."""
        return cls(training.pack_tokens, training.pack_pixels, training.pack_images)

    @property
    def limits(self) -> dict[str, int]:
        """Those that are set."""
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name)}


@dataclass(frozen=True)
class Lengths:
    """What samples take of the budgets, (R,) int64 each, and ``cost`` (R,) float64: their share of a step's time."""

    tokens: np.ndarray
    pixels: np.ndarray
    images: np.ndarray
    cost: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, places: np.ndarray) -> Lengths:
        """Those of some samples."""
        return Lengths(*(getattr(self, field.name)[places] for field in fields(self)))

    def joined(self, other: Lengths) -> Lengths:
        """These, then the others."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Lengths(*(np.concatenate(pair) for pair in pairs))


# ---------------------------------------------------------------- packs


def fill_packs(lengths: Lengths, budgets: Budgets, random: np.random.Generator) -> list[list[int]]:
    """Best fit, large samples first (Johnson 1974): each goes into the fullest pack that has room for it.

    A sample's size is the largest of its shares of the budgets. Sizes add up to at least what any one budget sees,
    so a pack within 1 is within all of them.

    Args:
        lengths: every sample fits into a pack of its own.
        random: order of samples of about the same size, so that packs differ from epoch to epoch.

    Returns:
        Packs of sample numbers; every sample is in exactly one.
    """
    if not len(lengths) or not budgets.limits:
        raise ValueError("a plan needs samples and at least one budget")
    whole = _units(budgets)
    parts = [-(-getattr(lengths, name) * whole // limit) for name, limit in budgets.limits.items()]  # rounded up
    sizes = np.maximum(np.max(parts, axis=0), 1)
    classes = np.floor(np.log(sizes) / np.log(SIZE_CLASS))
    order = np.lexsort((random.random(len(sizes)), -classes))
    return _best_fit(order.tolist(), sizes.tolist(), whole)


def _units(budgets: Budgets) -> int:
    """How many units a pack is counted in: small budgets must not lose by rounding up, 3 photos are 3 of 3."""
    if budgets.images:
        return budgets.images * max(1, LEVELS // budgets.images)
    return min(budgets.tokens or LEVELS, LEVELS)


def _best_fit(order: Sequence[int], sizes: Sequence[int], whole: int) -> list[list[int]]:
    """Packs are found by their free room: one bit for each, so a search is a shift and a lowest set bit."""
    packs: list[list[int]] = []
    by_room: list[list[list[int]]] = [[] for _ in range(whole + 1)]
    open_rooms = 0  # bit r: some pack has room r
    for sample in order:
        size = sizes[sample]
        bits = open_rooms >> size
        if bits:
            left = (bits & -bits).bit_length() - 1
            pack = by_room[size + left].pop()
            if not by_room[size + left]:
                open_rooms ^= 1 << size + left
        else:
            left, pack = whole - size, []
            packs.append(pack)
        pack.append(sample)
        if not by_room[left]:
            open_rooms |= 1 << left
        by_room[left].append(pack)
    return packs


# ---------------------------------------------------------------- steps


@dataclass(frozen=True)
class Plan:
    """Packs of sample numbers, in order.

    Args:
        packs: a whole number of steps; pack i is for rank i % ranks.
        left: samples of the packs that do not make a whole step.
    """

    packs: list[list[int]]
    left: list[int]


def plan_steps(
    lengths: Lengths, budgets: Budgets, *, ranks: int, accumulation: int, random: np.random.Generator, old: int = 0
) -> Plan:
    """Packs of all samples, dealt so that the ranks of a step have about the same cost.

    Packs of like cost make a step; within it every other round of ranks goes backwards. The steps come in random
    order. Up to ranks · accumulation - 1 packs are left, the emptiest.

    Args:
        old: how many samples, the first ones, were left by an earlier plan: they are the last to be left again.
    """
    packs = fill_packs(lengths, budgets, random)
    owner = np.empty(len(lengths), dtype=np.int64)
    owner[np.concatenate(packs)] = np.repeat(np.arange(len(packs)), [len(pack) for pack in packs])
    cost = np.bincount(owner, lengths.cost, minlength=len(packs))
    is_old = np.bincount(owner[:old], minlength=len(packs)) > 0
    per_step = ranks * accumulation
    spare = len(packs) % per_step
    ranked = np.lexsort((cost, is_old))  # the cheapest of the new ones are the emptiest
    left, kept = ranked[:spare], ranked[spare:]
    steps = kept[np.argsort(-cost[kept], kind="stable")].reshape(-1, accumulation, ranks)
    steps[:, 1::2] = steps[:, 1::2, ::-1].copy()
    steps = random.permutation(steps)
    return Plan([packs[number] for number in steps.ravel()], sorted(s for number in left for s in packs[number]))


class PackedRun:
    """The packs of a whole run: tuples of stream positions, ``ranks`` at a time, from the first step to the last.

    Epochs are planned one after the other as they are reached. The packs of an epoch that do not make a whole step
    are planned again with the next epoch, so every position comes exactly once, and late by at most one plan unless
    an epoch has less than a step. Read again from the start, and past what was trained on, it gives the same packs,
    as long as ``state`` is the same: that is what a checkpoint keeps.

    Args:
        epoch: first position of an epoch → lengths of its samples, which lie at the positions from there on.
        steps: of the run.
        name: photo at a position, for messages.
    """

    def __init__(
        self,
        epoch: Callable[[int], Lengths],
        budgets: Budgets,
        *,
        steps: int,
        ranks: int,
        accumulation: int,
        seed: int,
        name: Callable[[int], str] = str,
    ) -> None:
        self.epoch, self.budgets, self.name, self.seed = epoch, budgets, name, seed
        self.ranks, self.accumulation = ranks, accumulation
        self.packs = steps * accumulation * ranks
        self._first = self._lengths_from(0)  # also for the estimate of samples_per_pack

    def __len__(self) -> int:
        return self.packs

    def state(self) -> dict[str, int | str]:
        """All that the packs follow from, lengths as a SHA-256 of the first epoch's."""
        sizes = np.stack([self._first.tokens, self._first.pixels, self._first.images])
        return {
            "seed": self.seed,
            "processes": self.ranks,
            "training.gradient_accumulation": self.accumulation,
            **{f"training.pack_{what}": limit for what, limit in vars(self.budgets).items()},
            "lengths": hashlib.sha256(sizes.astype(np.int64).tobytes()).hexdigest(),
        }

    @cached_property
    def samples_per_pack(self) -> float:
        """Mean of the first epoch's packs."""
        random = np.random.default_rng((self.seed, PACK_STREAM, 0))
        return len(self._first) / len(fill_packs(self._first, self.budgets, random))

    def __iter__(self) -> Iterator[Pack]:
        """
        Raises:
            SampleError: a sample is larger than a pack.
        """
        given, number, start = 0, 0, 0
        positions, lengths = np.zeros(0, dtype=np.int64), self._first.take(np.zeros(0, dtype=np.int64))
        while given < self.packs:
            new = self._first if start == 0 else self._lengths_from(start)
            old = len(positions)
            positions = np.concatenate([positions, start + np.arange(len(new))])
            lengths = lengths.joined(new)
            random = np.random.default_rng((self.seed, PACK_STREAM, number))
            plan = plan_steps(
                lengths, self.budgets, ranks=self.ranks, accumulation=self.accumulation, random=random, old=old
            )
            for pack in plan.packs[: self.packs - given]:
                yield tuple(positions[pack].tolist())
            given += len(plan.packs)
            number, start = number + 1, start + len(new)
            left = np.array(plan.left, dtype=np.int64)
            positions, lengths = positions[left], lengths.take(left)

    def _lengths_from(self, start: int) -> Lengths:
        lengths = self.epoch(start)
        for what, limit in self.budgets.limits.items():
            sizes = getattr(lengths, what)
            if sizes.max() > limit:
                place = int(sizes.argmax())
                raise SampleError(
                    f"{self.name(start + place)}: the sample has up to {sizes[place]} {what}, which is over "
                    f"training.pack_{what} {limit}; raise it, lower data.max_pixels or show fewer teachers and "
                    "context photos"
                )
        return lengths
