"""Are the words right where the box is right, and what is said that should not be.

Matching is one to one within a photo and greedy, most confident prediction first; each takes the free annotated
box it overlaps most, at IoU ≥ 0.5. This is COCO's rule, so ``matched_boxes`` agrees with AP50_agnostic's recall.
For description accuracy the ranking is objectness, words play no part, and there is no threshold besides
``max_detections``: a model cannot raise its accuracy by saying nothing about the boxes it finds hard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from bbu.evaluation.matching import MATCH_IOU, Matched

MAX_LEVELS = 6  # a remark may contain slashes; deeper paths are compared as a whole only

Pair = tuple[str, str | None]  # annotated description, predicted description (None: no box matched)


def prefix(desc: str, level: int) -> str:
    """The first ``level`` levels of a slash path; a shorter path is its own prefix."""
    return "/".join(desc.split("/")[:level])


def level_count(descs: Collection[str]) -> int:
    """Levels of the deepest path, at most MAX_LEVELS; 0 without descriptions."""
    return min(max((desc.count("/") + 1 for desc in descs), default=0), MAX_LEVELS)


def greedy_match(iou_MN: np.ndarray, ranking_M: np.ndarray) -> np.ndarray:
    """Match predictions to annotated boxes, most confident first.

    Returns:
        (N,) index of the prediction matched to each annotated box, -1 for none.
    """
    matched_N = np.full(iou_MN.shape[1], -1)
    if iou_MN.size == 0:
        return matched_N
    able_M = iou_MN.max(axis=1) >= MATCH_IOU
    for m in np.argsort(-ranking_M, kind="stable"):
        if not able_M[m]:
            continue
        free_N = np.where(matched_N < 0, iou_MN[m], -1.0)
        n = free_N.size - 1 - int(free_N[::-1].argmax())  # COCO gives a tie to the last box
        if free_N[n] >= MATCH_IOU:
            matched_N[n] = m
    return matched_N


def pairs_of(bare: Matched) -> list[Pair]:
    """For every annotated box: its description and that of the prediction matched to it.

    Args:
        bare: boxes matched whatever their words.
    """
    album = bare.ranking.album
    said: list[str | None] = [None] * len(album.truth_desc_G)
    for place in np.flatnonzero(bare.right_D):
        said[bare.match_TD[0, place]] = album.vocabulary[album.desc_D[bare.ranking.prediction_D[place]]]
    return [(album.vocabulary[code], words) for code, words in zip(album.truth_desc_G, said, strict=True)]


def description_scores(pairs: Sequence[Pair], majority: str | None) -> dict[str, Any]:
    """Accuracy of the words at matched boxes, beside what one constant guess would score there.

    Args:
        majority: the constant guess; None when no description is known.

    Returns:
        Fractions in [0, 1], None where no box is matched. A macro accuracy is the mean over the annotated
        descriptions that have a matched box, so that a rare one weighs as much as a common one. Level k compares
        the first k levels of the paths; levels are reported when annotated paths have several.
    """
    matched = [(truth, said) for truth, said in pairs if said is not None]
    scores: dict[str, Any] = {
        "matched_boxes": len(matched),
        "missed_boxes": len(pairs) - len(matched),
        "description_accuracy": _accuracy(matched),
        "description_macro_accuracy": _macro_accuracy(matched),
        "majority_description": majority,
        "majority_baseline": None,
        "majority_macro_baseline": None,
    }
    if majority is not None:
        guessed = [(truth, majority) for truth, _ in matched]
        scores["majority_baseline"] = _accuracy(guessed)
        scores["majority_macro_baseline"] = _macro_accuracy(guessed)
    levels = level_count({truth for truth, _ in pairs})
    for level in range(1, levels + 1) if levels > 1 else ():
        scores[f"description_accuracy_level{level}"] = _accuracy(
            [(prefix(truth, level), prefix(said, level)) for truth, said in matched]
        )
    return scores


def description_table(pairs: Sequence[Pair], ap50: Mapping[str, float | None]) -> dict[str, dict[str, Any]]:
    """Annotated description → truth, matched and correct counts, accuracy at matched boxes and AP50.

    Most frequent first; descriptions of equal count in alphabetical order.
    """
    truth = Counter(desc for desc, _ in pairs)
    matched = Counter(desc for desc, said in pairs if said is not None)
    correct = Counter(desc for desc, said in pairs if said == desc)
    return {
        desc: {
            "truth": count,
            "matched": matched[desc],
            "correct": correct[desc],
            "accuracy": ratio(correct[desc], matched[desc]),
            "AP50": ap50[desc],
        }
        for desc, count in sorted(truth.items(), key=lambda item: (-item[1], item[0]))
    }


def most_frequent(counts: Mapping[str, int]) -> str | None:
    """The commonest description, the alphabetically first of equals; None when there is none."""
    return min(counts, key=lambda desc: (-counts[desc], desc), default=None)


def alarm_scores(
    described: Matched, score_threshold: float, train_descriptions: Collection[str] | None
) -> dict[str, Any]:
    """What the predictions at or above ``score_threshold`` say wrongly.

    A false alarm is such a prediction that matches no annotated box of its own description: wrong place, wrong
    words, or a second box on one part. COCO tools ignore words that no annotated box has; here they count.
    The training keys are None when ``train_descriptions`` is None, the rates when no prediction is confident.
    """
    ranking, album = described.ranking, described.ranking.album
    confident_D = ranking.confidence_D >= score_threshold
    said_V = np.bincount(album.desc_D[ranking.prediction_D[confident_D]], minlength=len(album.vocabulary))
    said, alarms = int(said_V.sum()), int((confident_D & ~described.right_D).sum())
    strange = int((ranking.category_D[confident_D] >= len(ranking.categories)).sum())
    unknown = None
    if train_descriptions is not None:
        unknown = sum(
            int(count) for desc, count in zip(album.vocabulary, said_V, strict=True) if desc not in train_descriptions
        )
    return {
        "predictions_at_threshold": said,
        "false_alarms": alarms,
        "false_alarms_per_photo": ratio(alarms, len(album.names)),
        "out_of_vocabulary_predictions": strange,
        "out_of_vocabulary_rate": ratio(strange, said),
        "unknown_to_training_predictions": unknown,
        "unknown_to_training_rate": None if unknown is None else ratio(unknown, said),
    }


def ratio(part: float, whole: float) -> float | None:
    """part / whole, None when the whole is empty: an undefined share is neither good nor bad."""
    return part / whole if whole else None


def _accuracy(pairs: Sequence[tuple[str, str]]) -> float | None:
    return ratio(sum(truth == said for truth, said in pairs), len(pairs))


def _macro_accuracy(pairs: Sequence[tuple[str, str]]) -> float | None:
    total = Counter(truth for truth, _ in pairs)
    correct = Counter(truth for truth, said in pairs if truth == said)
    # Sorted, so that the sum rounds alike whatever order the boxes came in.
    return ratio(sum(correct[desc] / total[desc] for desc in sorted(total)), len(total))
