"""Which samples of a run are conversations of data.replay, and which conversation. Needs no torch.

Position i of a run → training photo or conversation, from the seed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MIXTURE_STREAM, REPLAY_STREAM = 6, 7  # random streams; 1 to 5 are the order's, teachers', views', context's and packs'
BLOCK = 64  # positions; each block has the share of conversations, so that no step is far from it


@dataclass(frozen=True)
class Place:
    """What stands at a position.

    Args:
        photos: training photos at the positions before.
        conversation: index of the conversation; None = a training photo stands here.
    """

    photos: int
    conversation: int | None = None


class Mixture:
    """Photos and conversations at random places: a function of (seed, position), in whatever order positions are read.

    Every block of positions has the share of conversations, rounded so that the whole run keeps it. They come in
    random order, all of them once before any comes again.

    Args:
        share: of the positions; 0 = photos alone.
        conversations: their number.
        seed: run seed.
    """

    def __init__(self, share: float, conversations: int, seed: int) -> None:
        self.share, self.conversations, self.seed = share, conversations, seed
        self._block: tuple[int, np.ndarray] | None = None  # caches of the block and of the round being read
        self._round: tuple[int, np.ndarray] | None = None

    def at(self, position: int) -> Place:
        """What stands at a position of the run, counted from 0."""
        if not self.share:
            return Place(position)
        block, offset = divmod(position, BLOCK)
        is_replay = self._places(block)
        replayed = self._before(block) + int(is_replay[:offset].sum())
        return Place(position - replayed, self._conversation(replayed) if is_replay[offset] else None)

    def _before(self, block: int) -> int:
        """Conversations in all earlier blocks."""
        return math.floor(block * BLOCK * self.share)

    def _places(self, block: int) -> np.ndarray:
        """(BLOCK,) whether each position of a block is a conversation's."""
        if self._block is None or self._block[0] != block:
            count = self._before(block + 1) - self._before(block)
            random = np.random.default_rng((self.seed, MIXTURE_STREAM, block))
            self._block = (block, random.permutation(BLOCK) < count)
        return self._block[1]

    def _conversation(self, number: int) -> int:
        """Index of the ``number``-th conversation of the run."""
        turn, place = divmod(number, self.conversations)
        if self._round is None or self._round[0] != turn:
            random = np.random.default_rng((self.seed, REPLAY_STREAM, turn))
            self._round = (turn, random.permutation(self.conversations))
        return int(self._round[1][place])
