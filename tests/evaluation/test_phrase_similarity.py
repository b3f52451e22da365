"""METEOR without its dictionaries: words, alignment and score, worked by hand and against every alignment there is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import UserError
from bbu.evaluation import phrase_similarity
from bbu.evaluation.phrase_similarity import Match, align, approximate_meteor, chunk_count, similarity, words

pytest.importorskip("snowballstemmer", reason="snowballstemmer is not installed")

PHRASES = st.lists(st.sampled_from(["a", "the", "dog", "dogs", "red", "car", "cars", "on"]), max_size=8)


def score(said: str, *references: str) -> float:
    (value,) = approximate_meteor([(said, references)])
    return value


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("phrase", "cut"),
    [
        ("A Red  dog.", "a red dog"),
        ("the man's T-shirt", "the mans tshirt"),  # as DenseCap prepares captions
        ("connect_point/screw,loose", "connect point screw loose"),
        ("silver／gray mouse - old", "silver gray mouse old"),
        ("螺丝连接点/BBU安装", "螺 丝 连 接 点 bbu 安 装"),
        ("ＢＢＵ，４ｃｍ", "bbu 4cm"),
        ("Größe café", "größe café"),
        ("???", ""),
    ],
)
def test_a_phrase_is_cut_into_words_and_chinese_into_characters(phrase: str, cut: str) -> None:
    assert " ".join(words(phrase)) == cut


# ---------------------------------------------------------------- score by hand


def test_equal_phrases_score_one_and_strange_ones_zero() -> None:
    assert score("a red dog", "a red dog") == pytest.approx(1)
    assert score("A RED DOG.", "a red dog") == pytest.approx(1)
    assert score("a red dog", "blue cars") == 0
    assert score("???", "a red dog") == score("a red dog", "???") == score("???", "???") == 0


def test_two_words_swapped_are_two_chunks_of_two_matches() -> None:
    # Precision and recall 1; penalty 0.6 · (2 / 2) ** 0.2 = 0.6.
    assert score("red dog", "dog red") == pytest.approx(0.4)


def test_a_function_word_weighs_a_third_of_another() -> None:
    # "a" matches: precision and recall 0.25 / (0.25 + 0.75); one chunk of one match: penalty 0.6.
    assert score("a dog", "a cat") == pytest.approx(0.25 * 0.4)
    # "dog" matches: 0.75 each way.
    assert score("a dog", "the dog") == pytest.approx(0.75 * 0.4)


def test_a_match_by_stem_counts_three_fifths() -> None:
    # (0.75 + 0.6 · 0.75) / 1.5 both ways; all matched in one chunk: no penalty.
    assert score("red dogs", "red dog") == pytest.approx(0.8)


def test_recall_weighs_more_than_precision() -> None:
    # Left out: precision 1, recall 1/2, mean 1 / (0.15 / 1 + 0.85 / 0.5) = 1 / 1.85. One chunk of one: penalty 0.6.
    assert score("dog", "red dog") == pytest.approx(0.4 / 1.85)
    # Added: precision 1/2, recall 1, mean 1 / (0.15 / 0.5 + 0.85) = 1 / 1.15.
    assert score("red dog", "dog") == pytest.approx(0.4 / 1.15)


def test_the_penalty_grows_with_the_chunks() -> None:
    # Five of six words match in two chunks: mean 5/6, penalty 0.6 · (2 / 5) ** 0.2.
    assert score("red dog near blue car door", "red dog under blue car door") == pytest.approx(
        5 / 6 * (1 - 0.6 * 0.4**0.2)
    )


def test_chinese_is_compared_by_character() -> None:
    # 安装正确 and 安装错误 share the first two of four characters, one chunk of two: penalty 0.6 · (1 / 2) ** 0.2.
    assert score("安装正确", "安装错误") == pytest.approx(0.5 * (1 - 0.6 * 0.5**0.2))
    assert score("螺丝/安装正确", "螺丝，安装正确") == pytest.approx(1)


def test_the_nearest_reference_counts() -> None:
    assert score("red dog", "blue car", "red dog", "dog") == pytest.approx(1)
    assert score("red dog") == 0  # nothing to agree with


# ---------------------------------------------------------------- alignment


def test_equal_words_go_before_equal_stems() -> None:
    assert align(["dog", "dogs"], ["dogs", "dog"]) == ((0, 1, True), (1, 0, True))


def test_of_two_equal_words_the_one_that_makes_fewer_chunks_is_taken() -> None:
    # "the" of the reference occurs twice; only the second goes on into "dog".
    assert align(["the", "dog"], ["the", "red", "the", "dog"]) == ((0, 2, True), (1, 3, True))
    # One chunk either way: the nearer.
    assert align(["dog"], ["dog", "dog"]) == ((0, 0, True),)


def every_alignment(said: Sequence[str], meant: Sequence[str]) -> Iterator[tuple[Match, ...]]:
    stem = phrase_similarity._stem
    for size in range(min(len(said), len(meant)) + 1):
        for ours in combinations(range(len(said)), size):
            for theirs in permutations(range(len(meant)), size):
                steps = list(zip(ours, theirs, strict=True))
                if all(stem(said[i]) == stem(meant[j]) for i, j in steps):
                    yield tuple((i, j, said[i] == meant[j]) for i, j in steps)


def worth(matches: Sequence[Match]) -> tuple[int, int, int]:
    credit = sum(2 if exact else 1 for *_, exact in matches)
    return credit, -chunk_count(matches), -sum(abs(i - j) for i, j, _ in matches)


@given(
    st.lists(st.sampled_from(["dog", "dogs", "red"]), max_size=5),
    st.lists(st.sampled_from(["dog", "dogs", "red"]), max_size=5),
)
def test_no_alignment_is_better_than_the_one_found(said: list[str], meant: list[str]) -> None:
    assert worth(align(said, meant)) == max(map(worth, every_alignment(said, meant)))


def test_a_word_repeated_many_times_takes_no_time() -> None:
    # 20! ** 2 ways to choose places; the beam keeps a few, the straight one among them.
    assert similarity(("dog", "red") * 20, ("dog", "red") * 20) == pytest.approx(1)


@given(PHRASES, PHRASES)
def test_scores_lie_between_zero_and_one_and_only_equal_phrases_reach_it(said: list[str], meant: list[str]) -> None:
    value = similarity(tuple(said), tuple(meant))
    assert 0 <= value <= 1 + 1e-12
    assert (value > 1 - 1e-9) == (said == meant and bool(said))
    shares_a_word = {phrase_similarity._stem(word) for word in said} & {phrase_similarity._stem(word) for word in meant}
    assert (value > 0) == bool(shares_a_word)


@given(PHRASES, st.lists(PHRASES, max_size=3), PHRASES)
def test_one_more_reference_never_lowers_a_score(said: list[str], references: list[list[str]], more: list[str]) -> None:
    texts = [" ".join(reference) for reference in references]
    assert score(" ".join(said), *texts, " ".join(more)) >= score(" ".join(said), *texts)


# ---------------------------------------------------------------- without the package


def test_a_missing_stemmer_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snowballstemmer", None)
    phrase_similarity._stemmer.cache_clear()
    with pytest.raises(UserError, match=r"snowballstemmer, which is not installed; pip install snowballstemmer"):
        score("unheard word", "of here")
