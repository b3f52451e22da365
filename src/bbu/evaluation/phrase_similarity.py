"""Phrase similarity in pure Python: METEOR without its dictionaries.

The formula and the English constants are those of METEOR 1.5's default task (Denkowski and Lavie 2014, "Meteor
Universal", WMT; ``-l en``, task "rank"), which dense-captioning papers use. Two words match if they are equal or have
the same stem (Snowball English). METEOR's synonyms (WordNet) and paraphrases (a table of 60 MB) are left out, and
FUNCTION_WORDS replaces its list of function words. Chinese is compared by character. docs/dense_captioning.md measures
the difference to METEOR itself (``meteor.py``).

A phrase is split into lower-case words of letters and digits. ``/``, ``,`` and other punctuation separate words; an
apostrophe or hyphen inside a word is removed, as in DenseCap's preparation: "man's t-shirt" → mans tshirt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from bbu.errors import UserError

# A predicted caption and its references; the best match counts.
CaptionPair = tuple[str, tuple[str, ...]]

PRECISION_SHARE = 0.15  # 1 - alpha of the paper: recall weighs 0.85
FRAGMENTATION_POWER = 0.2  # beta
FRAGMENTATION_WEIGHT = 0.6  # gamma
CONTENT_WEIGHT = 0.75  # delta; a function word weighs the rest
STEM_WEIGHT = 0.6  # of a match by stem; an exact one weighs 1
BEAM = 128  # alignments kept per word: exact unless words are repeated many times

# Closed-class words of English; METEOR gives them a third of the weight of content words.
_CLOSED_CLASS = """
    a an the this that these those of to in on at by for from with into over about after up out as and or but if so
    than when while who which what there not no is are was were be been being am has have had do does did will would
    can could may i you he she it we they his her its their our your my him them me us some all more other one two
    first last
"""
FUNCTION_WORDS = frozenset(_CLOSED_CLASS.split())

_JOINERS = re.compile(r"(?<=\w)['’\-](?=\w)")
_CHINESE = re.compile(r"([\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_WORDS = re.compile(r"[^\W_]+")

Match = tuple[int, int, bool]  # place in the one phrase, in the other, whether the words are equal
_NOWHERE = -2  # place of "the word before was not matched"; no place follows it
_State = tuple[int, int]  # last place matched, bits of the places that are used and could still be wanted
_Path = tuple[tuple[int, int, int], tuple[Match, ...]]  # (weight, -chunks, -distance) to be high; matches so far


@lru_cache(maxsize=1 << 17)
def words(phrase: str) -> tuple[str, ...]:
    """The lower-case words of a phrase, with full-width forms normalised; each Chinese character is a word."""
    plain = _JOINERS.sub("", unicodedata.normalize("NFKC", phrase).lower())
    return tuple(_WORDS.findall(_CHINESE.sub(r" \1 ", plain)))


def approximate_meteor(pairs: Sequence[CaptionPair]) -> list[float]:
    """Similarity in [0, 1] of each prediction to its closest reference; 0 without a word in common.

    Raises:
        UserError: the stemmer's package is missing.
    """
    return [max((similarity(words(said), words(text)) for text in texts), default=0.0) for said, texts in pairs]


@lru_cache(maxsize=1 << 18)
def similarity(said: tuple[str, ...], meant: tuple[str, ...]) -> float:
    """Predicted against annotated words → [0, 1]; 1 only for equal words in the same order.

    The weighted harmonic mean of precision and recall of the matched words, times 1 - penalty. The penalty grows with
    the number of chunks: runs of words matched in the same order.
    """
    matches = align(said, meant)
    if not matches:
        return 0.0
    precision = sum(_credit(said[i], exact) for i, _, exact in matches) / sum(map(_weight, said))
    recall = sum(_credit(meant[j], exact) for _, j, exact in matches) / sum(map(_weight, meant))
    mean = 1 / (PRECISION_SHARE / precision + (1 - PRECISION_SHARE) / recall)
    chunks = chunk_count(matches)
    if chunks == 1 and len(said) == len(matches) == len(meant):
        return mean
    return mean * (1 - FRAGMENTATION_WEIGHT * (chunks / len(matches)) ** FRAGMENTATION_POWER)


def _weight(word: str) -> float:
    return 1 - CONTENT_WEIGHT if word in FUNCTION_WORDS else CONTENT_WEIGHT


def _credit(word: str, exact: bool) -> float:
    return _weight(word) * (1 if exact else STEM_WEIGHT)


def chunk_count(matches: Sequence[Match]) -> int:
    """Number of runs of matches, sorted by their first place, that are contiguous in both phrases."""
    return bool(matches) + sum((i + 1, j + 1) != (k, m) for (i, j, _), (k, m, _) in pairwise(matches))


def align(said: Sequence[str], meant: Sequence[str]) -> tuple[Match, ...]:
    """METEOR's one-to-one alignment: most words (equal before stemmed), then fewest chunks, then least displacement.

    A beam search over the predicted words: it keeps the best alignment of each distinguishable state, at most BEAM.
    """
    stems = [_stem(word) for word in meant]
    # for each predicted word: (place, whether equal) of all reference words it may match
    choices = [[(j, word == meant[j]) for j, stem in enumerate(stems) if stem == _stem(word)] for word in said]
    wanted_later = [0] * (len(said) + 1)
    for i in reversed(range(len(said))):
        wanted_later[i] = wanted_later[i + 1] | sum(1 << j for j, _ in choices[i])
    states: dict[_State, _Path] = {(_NOWHERE, 0): ((0, 0, 0), ())}
    for i, places in enumerate(choices):
        states = _extend(states, i, places, wanted_later[i + 1])
    return max(states.values())[1]


def _extend(
    states: dict[_State, _Path], i: int, places: Sequence[tuple[int, bool]], wanted_later: int
) -> dict[_State, _Path]:
    following: dict[_State, _Path] = {}

    def keep(state: _State, path: _Path) -> None:
        following[state] = max(path, following.get(state, path))

    for (last, used), (value, matches) in states.items():
        keep((_NOWHERE, used & wanted_later), (value, matches))
        weight, chunks, distance = value
        for j, exact in places:
            if not used >> j & 1:
                better = (weight + (2 if exact else 1), chunks - (j != last + 1), distance - abs(i - j))
                keep((j, (used | 1 << j) & wanted_later), (better, (*matches, (i, j, exact))))
    if len(following) <= BEAM:
        return following
    return dict(sorted(following.items(), key=lambda item: item[1], reverse=True)[:BEAM])


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    """Snowball's English stem; a word in other letters is its own stem."""
    return _stemmer().stemWord(word) if word.isascii() else word


@lru_cache(maxsize=1)
def _stemmer():  # type: ignore[no-untyped-def]
    try:
        import snowballstemmer
    except ImportError:
        raise UserError(
            "comparing phrases needs the package snowballstemmer, which is not installed; pip install snowballstemmer"
        ) from None
    return snowballstemmer.stemmer("english")
