"""The descriptions a model may give, as a prefix tree over their tokens, and how probabilities are read off it.

A description ends with the end token, so one may begin another ("screw", "screw/m4"). Probabilities of levels are
sums over whole descriptions that share the level's path: how the tokenizer cuts a "/" does not matter.

Shape legend: N inner nodes of the tree (what has been said so far, description not ended), K children of a node at
most, F descriptions, G levels of the longest description, C captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bbu.errors import UserError
from bbu.families.prompts import refuse_special_tokens
from bbu.jsonl import decode_json
from bbu.taxonomy import Children, Taxonomy, join_path, split_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bbu.data.chat_processor import ChatProcessor

DESCRIPTIONS_FILE = "descriptions.json"  # in a model folder: a list of the descriptions it was trained with


@dataclass(frozen=True)
class DescriptionVocabulary:
    """A tree of token ids whose every path from the root to an end token is a description.

    Args:
        descriptions: F different texts, sorted.
        child_tokens_NK: token of each child, 0 where there is none. Node 0 is the root; shallow nodes come first.
        children_NK: its node; N + f where it ends description f; −1 where there is none.
        nodes_at_depth: inner nodes after 0, 1, … tokens.
        paths_FG: for each description and level a number of the path down to that level; −1 below its last.
    """

    descriptions: tuple[str, ...]
    child_tokens_NK: torch.Tensor
    children_NK: torch.Tensor
    nodes_at_depth: tuple[int, ...]
    paths_FG: torch.Tensor

    @classmethod
    def build(
        cls, descriptions: Iterable[str], tokenizer: PreTrainedTokenizerBase, end_token_id: int, max_tokens: int
    ) -> DescriptionVocabulary:
        """
        Args:
            max_tokens: of the longest caption, its end token included.

        Raises:
            UserError: no description, or one that is too long or holds a special token.
        """
        texts = sorted({desc for desc in descriptions if split_path(desc)})
        if not texts:
            raise UserError("descriptions: there is none to choose from; name a file with one a line")
        by_ids: dict[tuple[int, ...], str] = {}  # texts that differ in Unicode form alone have the same tokens
        for text in texts:
            refuse_special_tokens(text, "descriptions: ")
            ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], end_token_id)
            if len(ids) > max_tokens:
                raise UserError(
                    f"descriptions: {text!r} has {len(ids)} tokens with its end, the model says at most {max_tokens}; "
                    "leave it out or train with a larger model.detection.caption_max_tokens"
                )
            by_ids.setdefault(ids, text)
        children, depths = _grow(list(by_ids))
        tokens_NK, nodes_NK = _tables(children)
        counts = tuple(depths.count(depth) for depth in range(max(depths) + 1))
        known = tuple(by_ids.values())
        return cls(known, tokens_NK, nodes_NK, counts, _number_paths(known))

    @property
    def nodes(self) -> int:
        """N, the decoder states that scoring every description takes."""
        return len(self.children_NK)

    def level_probabilities(self, probabilities_CF: torch.Tensor, chosen_C: torch.Tensor) -> torch.Tensor:
        """(C, G): how probable the first 1, 2, … levels of the chosen description are, whatever follows them.

        Below its last level they are 0. They never grow with the level.
        """
        paths_FG = self.paths_FG.to(chosen_C.device)
        levels = []
        for path_F in paths_FG.T:
            shared_CF = (path_F == path_F[chosen_C][:, None]) & (path_F >= 0)
            levels.append((probabilities_CF * shared_CF).sum(dim=1))
        return torch.stack(levels, dim=1).clamp(max=1)


def _grow(sequences: Sequence[tuple[int, ...]]) -> tuple[list[dict[int, int]], list[int]]:
    """Token → child of every inner node, breadth first, and the nodes' depths; a child below 0 ends sequence −1 − i."""
    children: list[dict[int, int]] = [{}]
    depths = [0]
    node_of = [0] * len(sequences)
    for depth in range(max(map(len, sequences))):
        for number, ids in enumerate(sequences):
            if depth >= len(ids):
                continue
            below = children[node_of[number]]
            if depth == len(ids) - 1:
                below[ids[depth]] = -1 - number
                continue
            if ids[depth] not in below:
                below[ids[depth]] = len(children)
                children.append({})
                depths.append(depth + 1)
            node_of[number] = below[ids[depth]]
    return children, depths


def _tables(children: Sequence[dict[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and nodes of the children, (N, K) each."""
    shape = len(children), max(map(len, children))
    tokens_NK, nodes_NK = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for node, below in enumerate(children):
        tokens_NK[node, : len(below)] = torch.tensor(list(below))
        nodes_NK[node, : len(below)] = torch.tensor([c if c >= 0 else len(children) - 1 - c for c in below.values()])
    return tokens_NK, nodes_NK


def _number_paths(descriptions: Sequence[str]) -> torch.Tensor:
    split = [split_path(desc) for desc in descriptions]
    numbers: dict[tuple[str, ...], int] = {}
    paths_FG = torch.full((len(split), max(map(len, split))), -1)
    for row, levels in enumerate(split):
        for depth in range(len(levels)):
            paths_FG[row, depth] = numbers.setdefault(levels[: depth + 1], len(numbers))
    return paths_FG


def level_ends(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """The text of a caption's tokens (end token left out), and the place of the token that ends each level.

    A level ends with the token that holds the "/" after it, the last level with the end token.
    """
    prefixes = [list(ids[: length + 1]) for length in range(len(ids))]
    texts = tokenizer.batch_decode(prefixes, skip_special_tokens=True) if prefixes else [""]
    levels = len(split_path(texts[-1]))
    ends: list[int] = []
    for place, text in enumerate(texts):
        closed = len(split_path(text[: text.rfind("/") + 1])) if "/" in text else 0
        ends += [place] * (min(closed, levels - 1) - len(ends))
    return texts[-1], ends + [len(ids)] * (levels - len(ends))


# ---------------------------------------------------------------- which descriptions there are


def known_descriptions(seen: Iterable[str], taxonomy: Taxonomy) -> list[str]:
    """The descriptions of a data set and the complete paths that its taxonomy spells out, sorted.

    Where anything may follow a term, only the descriptions seen say what does.
    """
    return sorted({*seen, *(join_path(path) for path in _complete_paths(taxonomy, taxonomy.hierarchy, ()))})


def _complete_paths(taxonomy: Taxonomy, below: Children, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Allowed paths that nothing may follow, by the hierarchy or by the rules of the levels."""
    if path and taxonomy.problem(join_path(path)) is None:
        further = join_path((*path, path[-1]))  # a term that the token map leaves alone
        if below == {} or (below is None and taxonomy.problem(further) is not None):
            yield path
    for term, children in (below or {}).items():
        yield from _complete_paths(taxonomy, children, (*path, term))


def choose_vocabulary(choice: str, folder: Path, processor: ChatProcessor) -> DescriptionVocabulary | None:
    """What ``--descriptions`` and ``evaluation.descriptions`` mean.

    Args:
        choice: ``free``: any words (None); ``known``: the list in the model folder; else a file of descriptions.

    Raises:
        UserError: the list is missing or malformed.
    """
    if choice == "free":
        return None
    path = folder / DESCRIPTIONS_FILE if choice == "known" else Path(choice)
    if choice == "known" and not path.is_file():
        raise UserError(f"{path}: is missing; pass a file of descriptions, one a line, instead of 'known'")
    descriptions = read_descriptions(path)
    return DescriptionVocabulary.build(
        descriptions, processor.tokenizer, processor.end_token_id, processor.caption_max_tokens
    )


def read_descriptions(path: Path) -> list[str]:
    """A JSON list of descriptions, or text with one a line; empty lines are skipped.

    Raises:
        UserError: names file and fix.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found: Any = decode_json(text, str(path)) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UserError(f"{path}: must be a JSON list of descriptions, or a text file (.txt) with one a line")
    descriptions = [item.strip() for item in found if item.strip()]
    if not descriptions:
        raise UserError(f"{path}: holds no description; write one a line")
    return descriptions
