"""Planned packs: full packs within hard budgets, dealt to ranks so that they finish together.

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

PACK_STREAM = 5  # random stream; 1 is the order's, 2 the teachers', 3 the augmentation's, 4 the context's
LEVELS = 1 << 14  # most size units of a pack, unless the budget has more photos
SIZE_CLASS = 1.1  # samples in one 10 % size class are shuffled

Pack = tuple[int, ...]


@dataclass(frozen=True)
class Budgets:
    """Upper limits of a pack; 0 = no limit.

    Args:
        tokens: text and image tokens.
        pixels: sum over its photos, after the resize.
        images: photos.
    """

    tokens: int = 0
    pixels: int = 0
    images: int = 0

    @classmethod
    def of(cls, training: TrainingConfig) -> Budgets:
        """The budgets of a config."""
        return cls(training.pack_tokens, training.pack_pixels, training.pack_images)

    @property
    def limits(self) -> dict[str, int]:
        """The budgets that are set, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name)}


@dataclass(frozen=True)
class Lengths:
    """Sizes of samples, (R,) int64 for each budget, and their relative compute ``cost``, (R,) float64."""

    tokens: np.ndarray
    pixels: np.ndarray
    images: np.ndarray
    cost: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, places: np.ndarray) -> Lengths:
        """Lengths of the samples at these indices."""
        return Lengths(*(getattr(self, field.name)[places] for field in fields(self)))

    def joined(self, other: Lengths) -> Lengths:
        """These lengths followed by the others."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Lengths(*(np.concatenate(pair) for pair in pairs))


# ---------------------------------------------------------------- packs


def fill_packs(lengths: Lengths, budgets: Budgets, random: np.random.Generator) -> list[list[int]]:
    """Best-fit decreasing bin packing (Johnson 1974): each sample goes into the fullest pack with room for it.

    A sample's size is its largest fraction of any budget, so a pack whose sizes sum to at most 1 keeps every budget.

    Args:
        lengths: every sample must fit into a pack of its own.
        random: shuffles samples of similar size, so that packs differ from epoch to epoch.

    Returns:
        Packs of sample indices; every sample is in exactly one.
    """
    if not len(lengths) or not budgets.limits:
        raise ValueError("a plan needs samples and at least one budget")
    whole = _units(budgets)
    units = [-(-getattr(lengths, name) * whole // limit) for name, limit in budgets.limits.items()]  # rounded up
    sizes = np.maximum(np.max(units, axis=0), 1)
    classes = np.floor(np.log(sizes) / np.log(SIZE_CLASS))
    order = np.lexsort((random.random(len(sizes)), -classes))
    return _best_fit(order.tolist(), sizes.tolist(), whole)


def _units(budgets: Budgets) -> int:
    """Size units of a pack: rounding up must not waste small budgets, so 3 of 3 photos fill a pack exactly."""
    if budgets.images:
        return budgets.images * max(1, LEVELS // budgets.images)
    return min(budgets.tokens or LEVELS, LEVELS)


def _best_fit(order: Sequence[int], sizes: Sequence[int], whole: int) -> list[list[int]]:
    """Finds a pack by its free room in a bit mask: a search is a shift and a lowest set bit."""
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
    """Packs of sample indices, in order.

    Args:
        packs: a whole number of steps; pack i belongs to rank i % ranks.
        left: samples of the packs that do not fill a step.
    """

    packs: list[list[int]]
    left: list[int]


def plan_steps(
    lengths: Lengths, budgets: Budgets, *, ranks: int, accumulation: int, random: np.random.Generator, old: int = 0
) -> Plan:
    """Packs of all samples, dealt so that the ranks of a step have about the same cost.

    Packs of similar cost form a step and are dealt to its ranks in snake order. The steps are shuffled. Up to
    ranks · accumulation - 1 packs, the emptiest, are left over.

    Args:
        old: number of leading samples that an earlier plan left over; they are the last to be left over again.
    """
    packs = fill_packs(lengths, budgets, random)
    owner = np.empty(len(lengths), dtype=np.int64)
    owner[np.concatenate(packs)] = np.repeat(np.arange(len(packs)), [len(pack) for pack in packs])
    cost = np.bincount(owner, lengths.cost, minlength=len(packs))
    is_old = np.bincount(owner[:old], minlength=len(packs)) > 0
    per_step = ranks * accumulation
    spare = len(packs) % per_step
    ranked = np.lexsort((cost, is_old))  # the cheapest new packs are the emptiest
    left, kept = ranked[:spare], ranked[spare:]
    steps = kept[np.argsort(-cost[kept], kind="stable")].reshape(-1, accumulation, ranks)
    steps[:, 1::2] = steps[:, 1::2, ::-1].copy()
    steps = random.permutation(steps)
    return Plan([packs[number] for number in steps.ravel()], sorted(s for number in left for s in packs[number]))


class PackedRun:
    """The packs of a whole run: tuples of stream positions in training order, one pack for each rank in turn.

    Each epoch is planned when it is reached. Packs that do not fill a step are planned again with the next epoch, so
    every position comes exactly once, at most one plan late unless an epoch has less than a step. Re-iterating yields
    the same packs.

    Args:
        epoch: first position of an epoch → lengths of its samples, which lie at consecutive positions.
        steps: optimizer steps of the run.
        name: position → photo, for messages.
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

    @property
    def lengths_hash(self) -> str:
        """SHA-256 of the lengths of the first epoch's samples."""
        sizes = np.stack([self._first.tokens, self._first.pixels, self._first.images])
        return hashlib.sha256(sizes.astype(np.int64).tobytes()).hexdigest()

    @cached_property
    def samples_per_pack(self) -> float:
        """Mean over the packs of the first epoch."""
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
