"""Equal and nearly equal photos, within and between splits, found without comparing all pairs.

If two 64-bit hashes differ in at most 4 bits, at least one of their four 16-bit pieces differs in at most one. So only
photos that share a piece up to one flipped bit are compared (multi-index hashing, Norouzi, Punjani & Fleet 2012).

Shapes: B samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bbu.config import EpisodesConfig
from bbu.data.sampling.similarity import HASH_BITS
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.photos import PhotoFacts
from bbu.doctor.reading import LEARNT, Sample

NEAR_DUPLICATE_BITS = EpisodesConfig.near_duplicate_bits  # of 64, as in the choice of teachers
PIECE_BITS = 16
PIECES = HASH_BITS // PIECE_BITS
BLOCK = 4_000_000  # candidate pairs compared at a time: about 100 MB


@dataclass
class Copies:
    """Photos and their partners, by code of the finding."""

    pairs: dict[str, list[tuple[Sample, Sample]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def all_pairs(self) -> list[tuple[Sample, Sample]]:
        """Every pair once, in either order."""
        known: dict[frozenset[int], tuple[Sample, Sample]] = {}
        for one, other in (pair for pairs in self.pairs.values() for pair in pairs):
            known.setdefault(frozenset((id(one), id(other))), (one, other))
        return list(known.values())

    def findings(self) -> list[Finding]:
        order = ("copy_across_splits", "near_copy_across_splits", "copy_within_split", "near_copy_within_split")
        return [
            finding(code, [_example(*pair) for pair in self.pairs[code]], bits=NEAR_DUPLICATE_BITS)
            for code in order
            if self.pairs.get(code)
        ]


def _example(one: Sample, other: Sample) -> Example:
    return Example(one.where, one.name, detail=f"like {other.name} ({other.where})")


def find_copies(samples: Sequence[Sample], facts: Mapping[str, PhotoFacts]) -> Copies:
    """For every photo one equal photo, or else one nearly equal, in its own split and in the splits that are learnt."""
    hashes = np.array([facts[sample.name].hash for sample in samples], dtype=np.uint64)
    distinct, group_B = np.unique(hashes, return_inverse=True)
    neighbours: dict[int, list[int]] = defaultdict(list)
    for a, b in near_pairs(distinct):
        neighbours[a].append(b)
        neighbours[b].append(a)
    index = _Index(samples, facts, group_B)
    copies = Copies()
    for number, sample in enumerate(samples):
        groups = [int(group_B[number]), *neighbours[int(group_B[number])]]
        for code, partner in index.partners(number, sample, groups):
            copies.pairs[code].append((sample, samples[partner]))
    return copies


class _Index:
    """The first two photos of each kind: enough to find a partner that is not the photo itself."""

    def __init__(self, samples: Sequence[Sample], facts: Mapping[str, PhotoFacts], group_B: np.ndarray) -> None:
        self.digests = [facts[sample.name].digest for sample in samples]
        self.equal: dict[tuple[str, bytes], list[int]] = defaultdict(list)
        self.alike: dict[tuple[str, int], list[int]] = defaultdict(list)
        for number, sample in enumerate(samples):
            for split in {sample.split, "learnt" if sample.split in LEARNT else sample.split}:
                for kept in (self.equal[split, self.digests[number]], self.alike[split, int(group_B[number])]):
                    if len(kept) < 2:
                        kept.append(number)

    def partners(self, number: int, sample: Sample, groups: Sequence[int]) -> Iterator[tuple[str, int]]:
        """(code, number of the partner): at most one across splits and one within."""
        questions = [("within_split", sample.split)]
        if sample.split not in LEARNT:
            questions.append(("across_splits", "learnt"))
        for where, split in questions:
            for prefix, found in (
                ("copy", self.equal[split, self.digests[number]]),
                ("near_copy", [n for group in groups for n in self.alike[split, group]]),
            ):
                partner = next((other for other in found if other != number), None)
                if partner is not None:
                    yield f"{prefix}_{where}", partner
                    break


def near_pairs(hashes: np.ndarray, bits: int = NEAR_DUPLICATE_BITS) -> list[tuple[int, int]]:
    """Numbers i < j of distinct hashes, (n,) uint64, that differ in at most ``bits`` bits, each pair once."""
    radius = bits // PIECES  # some piece differs in no more
    if radius > 1:
        raise ValueError(f"{bits} bits would need pieces that differ in {radius} bits; at most {2 * PIECES - 1} work")
    masks = [0, *(1 << bit for bit in range(PIECE_BITS))] if radius else [0]
    found: set[tuple[int, int]] = set()
    for piece in range(PIECES):
        keys = (hashes >> np.uint64(PIECE_BITS * piece) & np.uint64(2**PIECE_BITS - 1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        for mask in masks:
            for one, other in _candidates(keys, order, mask):
                close = np.bitwise_count(hashes[one] ^ hashes[other]) <= bits
                found.update(zip(one[close].tolist(), other[close].tolist(), strict=True))
    return sorted(found)


def _candidates(keys: np.ndarray, order: np.ndarray, mask: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of pairs i < j whose keys are equal after the mask is laid over one of them."""
    ranked = keys[order]
    low = np.searchsorted(ranked, keys ^ mask, side="left")
    counts = np.searchsorted(ranked, keys ^ mask, side="right") - low
    edges = np.concatenate(([0], np.cumsum(counts)))
    start = 0
    while start < len(keys):
        stop = max(start + 1, int(np.searchsorted(edges, edges[start] + BLOCK, side="right")) - 1)
        one = np.repeat(np.arange(start, stop), counts[start:stop])
        within = np.arange(len(one)) - np.repeat(edges[start:stop] - edges[start], counts[start:stop])
        other = order[np.repeat(low[start:stop], counts[start:stop]) + within]
        yield one[one < other], other[one < other]
        start = stop
