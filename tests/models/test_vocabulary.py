"""A vocabulary of descriptions: exact scores, beam search and pruning, probabilities of levels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.config import DetectionConfig
from bbu.errors import UserError
from bbu.inference.postprocess import known_captions
from bbu.models import caption_decoder
from bbu.models.caption_decoder import CaptionDecoder
from bbu.models.checkpoint import BACKBONE_FOLDER, FACTS_FILE, HEAD_FILE
from bbu.models.manifest import seal
from bbu.models.vocabulary import (
    DESCRIPTIONS_FILE,
    DescriptionVocabulary,
    choose_vocabulary,
    known_descriptions,
    level_ends,
)
from bbu.taxonomy import LevelRule, Taxonomy, prefix, split_path
from bbu.training.recovery import publish
from tests.tiny import DEFAULT, FAMILIES, tiny_processor, tiny_tokenizer

END, MAX_TOKENS = 0, 9
SPECIAL_TOKENS = ("<turn>", "<end>")


class Pieces:
    """A tokenizer of given pieces, longest first; any letters can be one token, "/" in their midst too."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = sorted({*pieces, *"abc/"}, key=lambda piece: (-len(piece), piece))

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        ids = []
        while text:
            number, piece = next((n, p) for n, p in enumerate(self.pieces, start=1) if text.startswith(p))
            ids.append(number)
            text = text[len(piece) :]
        return {"input_ids": ids}

    def batch_decode(self, all_ids: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        return ["".join(self.pieces[number - 1] for number in ids) for ids in all_ids]


def build(descriptions: Sequence[str], *pieces: str) -> DescriptionVocabulary:
    tokenizer: Any = Pieces(*pieces)
    return DescriptionVocabulary.build(descriptions, tokenizer, END, MAX_TOKENS, SPECIAL_TOKENS)


REGION = {"caption_region_cells": 3, "caption_max_tokens": MAX_TOKENS}


class Speaker:
    """A random float64 decoder with the inputs of a few captions."""

    def __init__(self, seed: int, captions: int = 3, layers: int = 1) -> None:
        torch.manual_seed(seed)
        self.decoder = CaptionDecoder(DetectionConfig(16, heads=2, caption_layers=layers, **REGION), 12).double()
        self.embedding, self.head = torch.nn.Embedding(14, 12).double(), torch.randn(14, 12).double()
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        self.queries = torch.randn(captions, 16).double() * 2
        self.regions = torch.randn(captions, 9, 16).double()

    def score(
        self, vocabulary: DescriptionVocabulary, width: int | None = None, pruned_mass: float = 0
    ) -> torch.Tensor:
        inputs = self.queries, self.regions, self.embedding, self.head
        return self.decoder.score_descriptions(*inputs, vocabulary, width, pruned_mass)

    def one_by_one(self, vocabulary: DescriptionVocabulary, *pieces: str) -> torch.Tensor:
        """Teacher forcing, description by description."""
        columns = []
        for desc in vocabulary.descriptions:
            ids = torch.tensor([*Pieces(*pieces)(desc)["input_ids"], END]).repeat(len(self.queries), 1)
            with torch.no_grad():
                states = self.decoder(self.queries, self.regions, self.embedding, ids)
                log_probs = (states @ self.head.T).log_softmax(-1)
            columns.append(log_probs.gather(2, ids[:, :, None]).sum(dim=(1, 2)))
        return torch.stack(columns, dim=1)


descriptions = st.lists(st.text("abc/", max_size=MAX_TOKENS - 1).filter(split_path), min_size=1, max_size=12)
seeds = st.integers(0, 10_000)
PIECES = ("a/b", "/c", "b/", "cc")


# ---------------------------------------------------------------- scores of descriptions


@given(texts=descriptions, seed=seeds, pieces=st.sampled_from([(), PIECES]), layers=st.sampled_from([1, 2]))
def test_scores_of_all_descriptions_equal_teacher_forcing_one_by_one(
    texts: list[str], seed: int, pieces: tuple[str, ...], layers: int
) -> None:
    vocabulary, speaker = build(texts, *pieces), Speaker(seed, layers=layers)
    assert set(vocabulary.descriptions) == set(texts)
    expected = speaker.one_by_one(vocabulary, *pieces)
    torch.testing.assert_close(speaker.score(vocabulary), expected, rtol=0, atol=1e-9)


@given(texts=descriptions, seed=seeds, width=st.integers(1, 4))
def test_a_beam_reaches_fewer_descriptions_but_scores_them_exactly(texts: list[str], seed: int, width: int) -> None:
    vocabulary, speaker = build(texts), Speaker(seed)
    exact, beam = speaker.score(vocabulary), speaker.score(vocabulary, width)
    reached = beam > -torch.inf
    assert reached.any(dim=1).all()
    torch.testing.assert_close(beam[reached], exact[reached], rtol=0, atol=1e-9)
    torch.testing.assert_close(speaker.score(vocabulary, len(texts)), exact, rtol=0, atol=1e-9)


@given(texts=descriptions, seed=seeds, pruned_mass=st.sampled_from([1e-6, 1e-3, 0.3]))
def test_pruned_descriptions_hold_no_more_mass_than_allowed(texts: list[str], seed: int, pruned_mass: float) -> None:
    vocabulary, speaker = build(texts), Speaker(seed)
    everything, some = speaker.score(vocabulary), speaker.score(vocabulary, pruned_mass=pruned_mass)
    reached = some > -torch.inf
    torch.testing.assert_close(some[reached], everything[reached], rtol=0, atol=1e-9)
    missing = everything.softmax(dim=1).masked_fill(reached, 0).sum(dim=1)
    assert float(missing.max()) <= pruned_mass
    if pruned_mass <= 1e-3:  # then the best of twelve descriptions cannot be missing
        assert torch.equal(some.argmax(dim=1), everything.argmax(dim=1))


def test_improbable_prefixes_are_pruned() -> None:
    vocabulary = build([f"{a}{b}{c}" for a in "abc" for b in "abc" for c in "abc"])
    speaker = Speaker(4, captions=1)
    assert bool((speaker.score(vocabulary, pruned_mass=0.5) == -torch.inf).any())
    assert torch.isfinite(speaker.score(vocabulary)).all()


def test_a_narrow_beam_can_miss_the_best_description() -> None:
    texts = [f"{a}{b}{c}" for a in "abc" for b in "abc" for c in "abc"]
    vocabulary = build(texts)
    speakers = [Speaker(seed) for seed in range(10)]
    lost = [speaker.score(vocabulary).amax(1) - speaker.score(vocabulary, 1).amax(1) for speaker in speakers]
    assert min(float(each.min()) for each in lost) > -1e-9
    assert max(float(each.max()) for each in lost) > 0.01
    assert bool((speakers[0].score(vocabulary, 1) == -torch.inf).any())


def test_a_large_tree_is_searched_with_a_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, speaker = build(["aa", "ab", "ba", "bb", "cab"]), Speaker(1)
    monkeypatch.setattr(caption_decoder, "EXACT_NODES", vocabulary.nodes)
    assert torch.isfinite(speaker.score(vocabulary)).all()
    monkeypatch.setattr(caption_decoder, "EXACT_NODES", vocabulary.nodes - 1)
    monkeypatch.setattr(caption_decoder, "BEAM_WIDTH", 1)
    assert torch.equal(speaker.score(vocabulary), speaker.score(vocabulary, 1))


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_scores_of_a_caption_do_not_depend_on_the_batch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, speaker = build(["a/b", "a/c", "b", "b/cc", "c/a/b"]), Speaker(3, captions=7)
    whole = speaker.score(vocabulary)
    monkeypatch.setattr(caption_decoder, "ROWS_AT_ONCE", rows)
    torch.testing.assert_close(speaker.score(vocabulary), whole, rtol=0, atol=1e-12)


def test_zero_captions_give_empty_results() -> None:
    vocabulary = build(["a", "b/c"])
    assert Speaker(0, captions=0).score(vocabulary).shape == (0, 2)
    assert known_captions(torch.zeros(0, 2), vocabulary).texts == []


# ---------------------------------------------------------------- the chosen description and its levels


def shares(vocabulary: DescriptionVocabulary, weights: torch.Tensor, levels: int, start: str) -> torch.Tensor:
    """Share of the descriptions whose first levels are ``start``, grouped by text, (C,)."""
    inside = [len(split_path(d)) >= levels and prefix(d, levels) == start for d in vocabulary.descriptions]
    return weights[:, torch.tensor(inside)].sum(dim=1)


@given(texts=descriptions, seed=seeds, pieces=st.sampled_from([(), PIECES]))
def test_the_most_probable_description_is_chosen_with_the_probabilities_of_its_levels(
    texts: list[str], seed: int, pieces: tuple[str, ...]
) -> None:
    vocabulary, speaker = build(texts, *pieces), Speaker(seed)
    log_probs = speaker.one_by_one(vocabulary, *pieces)
    captions = known_captions(speaker.score(vocabulary), vocabulary)
    for caption, (text, levels) in enumerate(zip(captions.texts, captions.levels, strict=True)):
        assert text in texts
        torch.testing.assert_close(captions.log_probs[caption], log_probs[caption].max(), rtol=0, atol=1e-9)
        within = log_probs[caption : caption + 1].softmax(dim=1)
        expected = [float(shares(vocabulary, within, d, prefix(text, d))) for d in range(1, len(split_path(text)) + 1)]
        assert levels == pytest.approx(expected, abs=1e-9)
        assert list(levels) == sorted(levels, reverse=True)
        assert min(levels) >= 0 and max(levels) <= 1


@given(texts=descriptions, seed=seeds)
def test_probabilities_of_all_continuations_sum_to_that_of_the_path(texts: list[str], seed: int) -> None:
    """Ending there counts as a continuation."""
    vocabulary = build(texts)
    within = Speaker(seed, captions=1).score(vocabulary).softmax(dim=1)
    everyone = torch.arange(len(vocabulary.descriptions))
    levels = vocabulary.level_probabilities(within.expand(len(everyone), -1), everyone)
    paths = [split_path(desc) for desc in vocabulary.descriptions]
    found = {path[: d + 1]: float(levels[row, d]) for row, path in enumerate(paths) for d in range(len(path))}
    for parent in {(), *found}:
        ends = sum(float(within[0, row]) for row, path in enumerate(paths) if path == parent)
        children = sum(share for path, share in found.items() if path[:-1] == parent)
        assert ends + children == pytest.approx(found.get(parent, 1.0), abs=1e-9)


def test_the_best_whole_description_wins_over_the_best_first_level() -> None:
    """a is the more probable first level (0.6), but none of its descriptions is as probable as b/c."""
    vocabulary = build(["a/a", "a/b", "b/c"])
    weights = {"a/a": 0.3, "a/b": 0.3, "b/c": 0.4}
    captions = known_captions(torch.tensor([[weights[desc] for desc in vocabulary.descriptions]]).log(), vocabulary)
    assert captions.texts == ["b/c"]
    assert captions.levels[0] == pytest.approx((0.4, 0.4), abs=1e-6)


def test_a_description_that_is_a_prefix_of_others_shares_its_level_with_them() -> None:
    vocabulary = build(["a", "a/b", "c"])
    captions = known_captions(torch.tensor([[0.05, 0.02, 0.01]]).log(), vocabulary)
    assert captions.texts == ["a"]
    assert captions.levels[0] == pytest.approx((7 / 8,), abs=1e-6)
    assert captions.log_probs.exp().item() == pytest.approx(0.05), "the probability as free text, not among these three"


def test_a_single_description_has_certain_levels_but_keeps_its_free_text_probability() -> None:
    captions = known_captions(Speaker(2).score(vocabulary := build(["a/b/c"])), vocabulary)
    assert captions.texts == ["a/b/c"] * 3
    assert captions.levels == [(1.0, 1.0, 1.0)] * 3
    assert float(captions.log_probs.max()) < -1


def test_levels_do_not_depend_on_how_the_tokenizer_splits_the_separator() -> None:
    weights = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    plain = build(["a/b", "a/bc", "ab", "c/b"])
    for pieces in (("a/b",), ("/b",), ("a/",), ("a/bc", "c/b")):
        other = build(plain.descriptions, *pieces)
        assert known_captions(weights, other).levels == known_captions(weights, plain).levels
    assert known_captions(weights, plain).levels[0] == pytest.approx((0.7, 0.4), abs=1e-6)


# ---------------------------------------------------------------- levels of free text


@given(text=st.text("abc/", min_size=1, max_size=12), pieces=st.sampled_from([(), PIECES, ("a/b/c", "//")]))
def test_a_level_ends_where_its_separator_is_said(text: str, pieces: tuple[str, ...]) -> None:
    tokenizer: Any = Pieces(*pieces)
    ids = tokenizer(text)["input_ids"]
    said, ends = level_ends(ids, tokenizer)
    levels = split_path(text)
    assert said == text
    assert len(ends) == len(levels)
    assert ends == sorted(ends)
    assert not ends or ends[-1] == len(ids), "the last level ends with the end token"
    for number, end in enumerate(ends[:-1], start=1):
        before, upto = tokenizer.batch_decode([ids[:end], ids[: end + 1]], True)
        assert split_path(upto.rpartition("/")[0])[:number] == levels[:number]
        assert split_path(before.rpartition("/")[0])[:number] != levels[:number]


def test_the_real_tokenizer_has_the_separator_inside_its_tokens() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("screw/tight", add_special_tokens=False)["input_ids"]
    place = next(n for n, piece in enumerate(tokenizer.convert_ids_to_tokens(ids)) if "/" in piece)
    assert tokenizer.convert_ids_to_tokens(ids)[place] != "/"
    assert level_ends(ids, tokenizer) == ("screw/tight", [place, len(ids)])
    assert level_ends([], tokenizer) == ("", [])
    assert level_ends(tokenizer("标签/完整")["input_ids"], tokenizer)[0] == "标签/完整"


# ---------------------------------------------------------------- building


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "there are none to choose from"),
        (["", " / "], "there are none to choose from"),
        (["a" * MAX_TOKENS], f"has {MAX_TOKENS + 1} tokens with its end; the model can write {MAX_TOKENS}"),
        ([f"a/{SPECIAL_TOKENS[0]}"], "marks turns"),
    ],
)
def test_descriptions_the_model_cannot_write_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build(texts)
    assert "\n" not in str(error.value)


def test_the_longest_description_that_fits_is_taken() -> None:
    assert torch.isfinite(Speaker(0).score(build(["a" * (MAX_TOKENS - 1), "b"]))).all()


def test_a_description_given_twice_counts_once() -> None:
    assert build(["a", "b", "a"]).descriptions == ("a", "b")


@given(texts=st.lists(st.sampled_from(["a/b", "a/b/c", "a/c", "c", "b/a", "b/aa"]), min_size=1))
@settings(max_examples=20)
def test_the_tree_does_not_depend_on_the_order_of_the_list(texts: list[str]) -> None:
    one, other = build(texts), build(texts[::-1])
    assert one.descriptions == other.descriptions
    assert torch.equal(one.children_NoCh, other.children_NoCh)


# ---------------------------------------------------------------- which descriptions there are

TREE: dict[str, Any] = {"screw": {"m4": {}, "m6": {"left": {}}}, "label": {}, "cable": None}


def test_a_hierarchy_adds_its_complete_paths() -> None:
    found = known_descriptions(["cable/red", "screw"], Taxonomy(hierarchy=TREE))
    assert found == ["cable/red", "label", "screw", "screw/m4", "screw/m6/left"]


def test_without_a_hierarchy_the_descriptions_seen_are_all() -> None:
    assert known_descriptions(["b", "a"], Taxonomy()) == ["a", "b"]


def test_level_rules_bind_the_paths_that_are_added() -> None:
    state = LevelRule("state", required=True, when={"type": ("screw",)})
    tree = {"screw": {"tight": {}, "loose": {}}, "label": None, "part": {"odd": {}}}
    taxonomy = Taxonomy(levels=("type", state), hierarchy=tree)
    found = known_descriptions([], taxonomy)
    assert found == ["label", "screw/loose", "screw/tight"], "a state stands below screw alone"
    assert all(taxonomy.problem(desc) is None for desc in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_model_brings_its_descriptions(family: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint" / BACKBONE_FOLDER).mkdir(parents=True)
    for name in (HEAD_FILE, FACTS_FILE):
        (tmp_path / "checkpoint" / name).touch()
    seal(tmp_path / "checkpoint")
    processor, known = tiny_processor(family), ["screw/loose", "标签/完整"]
    publish(tmp_path / "checkpoint", tmp_path / "model", known)
    vocabulary = choose_vocabulary("known", tmp_path / "model", processor)
    assert vocabulary is not None and vocabulary.descriptions == tuple(known)
    assert choose_vocabulary("free", tmp_path / "model", processor) is None
    publish(tmp_path / "checkpoint", tmp_path / "model")
    with pytest.raises(UserError, match=f"{DESCRIPTIONS_FILE}: is missing"):
        choose_vocabulary("known", tmp_path / "model", processor)


@pytest.mark.parametrize("name", ["list.txt", "list.json"])
def test_a_file_of_descriptions_is_read(name: str, tmp_path: Path) -> None:
    known = ["screw/loose", "标签/完整"]
    path = tmp_path / name
    path.write_text("\n".join([*known, "", " "]) if name.endswith("txt") else json.dumps(known), encoding="utf-8")
    vocabulary = choose_vocabulary(str(path), tmp_path, tiny_processor(DEFAULT))
    assert vocabulary is not None and vocabulary.descriptions == tuple(known)
