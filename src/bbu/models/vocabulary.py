"""The descriptions a model may give, as a prefix tree over their tokens, and the probabilities of their levels.

A description ends with the end token, so it may be a prefix of another ("screw", "screw/m4"). The probability of a
level sums over the whole descriptions that share its path, so it does not matter how the tokenizer splits a "/".

Shapes: C captions, Ch children of a node, De descriptions of a vocabulary, Lv levels, No nodes of the description
tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from bbu.errors import UserError
from bbu.families.prompts import refuse_special_tokens
from bbu.taxonomy import Children, Taxonomy, join_path, split_path
from bbu.taxonomy_file import read_descriptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bbu.data.chat_processor import ChatProcessor

DESCRIPTIONS_FILE = "descriptions.json"  # in a model folder: a list of the descriptions it was trained with


@dataclass(frozen=True)
class DescriptionVocabulary:
    """Prefix tree of token ids: every path from the root to an end token is a description.

    Args:
        descriptions: De different texts, sorted.
        child_tokens_NoCh: token of each child of each inner node, 0 where there is none. Node 0 is the root; nodes are
            ordered by depth.
        children_NoCh: node of each child; No + i where it ends description i; −1 where there is none.
        nodes_at_depth: inner nodes after 0, 1, … tokens.
        paths_DeLv: for each description and level, the index of the path down to that level; −1 below its last level.
    """

    descriptions: tuple[str, ...]
    child_tokens_NoCh: torch.Tensor
    children_NoCh: torch.Tensor
    nodes_at_depth: tuple[int, ...]
    paths_DeLv: torch.Tensor

    @classmethod
    def build(
        cls,
        descriptions: Iterable[str],
        tokenizer: PreTrainedTokenizerBase,
        end_token_id: int,
        max_tokens: int,
        special_tokens: Iterable[str] = (),
    ) -> DescriptionVocabulary:
        """Build the tree.

        Args:
            max_tokens: tokens of the longest caption, its end token included.
            special_tokens: none of them may be in a description.

        Raises:
            UserError: no description, or one that is too long or holds a special token.
        """
        texts = sorted({desc for desc in descriptions if split_path(desc)})
        if not texts:
            raise UserError("descriptions: there are none to choose from; name a file with one per line")
        by_ids: dict[tuple[int, ...], str] = {}  # texts that differ only in Unicode form share tokens
        for text in texts:
            refuse_special_tokens(text, special_tokens, "descriptions: ")
            ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], end_token_id)
            if len(ids) > max_tokens:
                raise UserError(
                    f"descriptions: {text!r} has {len(ids)} tokens with its end; the model can write {max_tokens}; "
                    "leave it out or train with a larger model.detection.caption_max_tokens"
                )
            by_ids.setdefault(ids, text)
        children, counts = _grow(list(by_ids))
        tokens_NoCh = _table([list(below) for below in children], padding=0)
        nodes_NoCh = _table([list(below.values()) for below in children], padding=-1)
        known = tuple(by_ids.values())
        return cls(known, tokens_NoCh, nodes_NoCh, counts, _number_paths(known))

    @property
    def nodes(self) -> int:
        """No, the number of inner nodes: decoder states needed to score every description."""
        return len(self.children_NoCh)

    def level_probabilities(self, probabilities_CDe: torch.Tensor, chosen_C: torch.Tensor) -> torch.Tensor:
        """(C, Lv) probability of the first 1, 2, … levels of the chosen description, whatever follows them.

        It never grows with the level and is 0 below the last one.
        """
        paths_DeLv = self.paths_DeLv.to(chosen_C.device)
        levels = []
        for path_De in paths_DeLv.T:
            shared_CDe = (path_De == path_De[chosen_C][:, None]) & (path_De >= 0)
            levels.append((probabilities_CDe * shared_CDe).sum(dim=1))
        return torch.stack(levels, dim=1).clamp(max=1)


def _grow(sequences: Sequence[tuple[int, ...]]) -> tuple[list[dict[int, int]], tuple[int, ...]]:
    """Token → child of every inner node, breadth first, and how many nodes each depth has; No + i ends sequence i."""
    prefixes = (ids[:depth] for depth in range(max(map(len, sequences))) for ids in sequences if depth < len(ids))
    nodes = {prefix: number for number, prefix in enumerate(dict.fromkeys(prefixes))}
    children: list[dict[int, int]] = [{} for _ in nodes]
    for number, ids in enumerate(sequences):
        for depth, token in enumerate(ids):
            is_end = depth == len(ids) - 1
            children[nodes[ids[:depth]]][token] = len(nodes) + number if is_end else nodes[ids[: depth + 1]]
    return children, tuple(Counter(map(len, nodes)).values())


def _table(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def _number_paths(descriptions: Sequence[str]) -> torch.Tensor:
    numbers: dict[tuple[str, ...], int] = {}
    prefixes = ([path[: end + 1] for end in range(len(path))] for path in map(split_path, descriptions))
    return _table([[numbers.setdefault(prefix, len(numbers)) for prefix in row] for row in prefixes], padding=-1)


def level_ends(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """The text of a caption's tokens (without the end token), and the index of the token that ends each level.

    A level ends with the token that contains the "/" after it, the last level with the end token.
    """
    prefixes = [list(ids[: length + 1]) for length in range(len(ids))]
    texts = tokenizer.batch_decode(prefixes, skip_special_tokens=True) if prefixes else [""]
    levels = len(split_path(texts[-1]))
    ends: list[int] = []
    for index, text in enumerate(texts):
        closed = len(split_path(text[: text.rfind("/") + 1])) if "/" in text else 0
        ends += [index] * (min(closed, levels - 1) - len(ends))
    return texts[-1], ends + [len(ids)] * (levels - len(ends))


# ---------------------------------------------------------------- the known descriptions


def known_descriptions(seen: Iterable[str], taxonomy: Taxonomy) -> list[str]:
    """The descriptions of a data set and the complete paths of its taxonomy, sorted.

    Where the taxonomy lets anything follow a term, only the descriptions seen count.
    """
    return sorted({*seen, *(join_path(path) for path in _complete_paths(taxonomy, taxonomy.hierarchy, ()))})


def _complete_paths(taxonomy: Taxonomy, below: Children, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Allowed paths that nothing may follow, by the hierarchy or by the level rules."""
    if path and taxonomy.problem(join_path(path)) is None:
        further = join_path((*path, path[-1]))  # a term that the token map leaves alone
        if below == {} or (below is None and taxonomy.problem(further) is not None):
            yield path
    for term, children in (below or {}).items():
        yield from _complete_paths(taxonomy, children, (*path, term))


def choose_vocabulary(choice: str, folder: Path, processor: ChatProcessor) -> DescriptionVocabulary | None:
    """The vocabulary that ``--descriptions`` or ``evaluation.descriptions`` asks for.

    Args:
        choice: ``free`` for free text (None), ``known`` for the list in the model folder, else a file of descriptions.

    Raises:
        UserError: the list is missing or malformed.
    """
    if choice == "free":
        return None
    path = folder / DESCRIPTIONS_FILE if choice == "known" else Path(choice)
    if choice == "known" and not path.is_file():
        raise UserError(f"{path}: is missing; pass a file of descriptions, one per line, instead of 'known'")
    descriptions = read_descriptions(path)
    return DescriptionVocabulary.build(
        descriptions,
        processor.tokenizer,
        processor.end_token_id,
        processor.caption_max_tokens,
        processor.conversation.special_tokens,
    )
