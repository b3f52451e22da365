"""Caption accuracy on matched boxes, false positives, and descriptions outside the vocabulary.

Matching is one to one within a photo and greedy by confidence: each detection takes the free object with the highest
IoU of at least 0.5. This is COCO's rule, so ``matched_boxes`` agrees with the recall of AP50_agnostic. Caption
accuracy uses class-agnostic matches ranked by objectness, with no score threshold: a model cannot raise it by
dropping the boxes it finds hard.

Shapes: Gt ground-truth objects, Dt detections, De descriptions of a vocabulary, U IoU thresholds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from operator import eq
from typing import Any

import numpy as np

from bbu.evaluation.matching import MATCH_IOU, Matched

MAX_LEVELS = 6  # a remark may contain slashes; deeper levels are only compared as a whole

Pair = tuple[str, str | None]  # annotated description, predicted description (None: no box matched)
PairCounts = Mapping[Pair, int]


def prefix(desc: str, level: int) -> str:
    """The first ``level`` levels of a slash path; a shorter path is its own prefix."""
    return "/".join(desc.split("/")[:level])


def level_count(descs: Collection[str]) -> int:
    """Levels of the deepest path, at most MAX_LEVELS; 0 without descriptions."""
    return min(max((desc.count("/") + 1 for desc in descs), default=0), MAX_LEVELS)


def greedy_match(iou_DtGt: np.ndarray, ranking_Dt: np.ndarray) -> np.ndarray:
    """Match the detections of one photo to its objects, most confident first.

    Returns:
        (Gt,) index of the detection matched to each object, -1 for none.
    """
    matched_Gt = np.full(iou_DtGt.shape[1], -1)
    able_Dt = iou_DtGt.max(axis=1, initial=0) >= MATCH_IOU
    for m in np.argsort(-ranking_Dt, kind="stable"):
        if not able_Dt[m]:
            continue
        free_Gt = np.where(matched_Gt < 0, iou_DtGt[m], -1.0)
        n = free_Gt.size - 1 - int(free_Gt[::-1].argmax())  # COCO gives a tie to the last box
        if free_Gt[n] >= MATCH_IOU:
            matched_Gt[n] = m
    return matched_Gt


def description_pairs(class_agnostic: Matched) -> PairCounts:
    """The description of every object with that of the detection matched to it, class-agnostic, counted."""
    flat = class_agnostic.ranking.flat
    words = (*flat.vocabulary, None)  # the last: no detection
    said_Gt = np.full(len(flat.truth_desc_Gt), len(words) - 1)
    places = np.flatnonzero(class_agnostic.right_Dt)
    said_Gt[class_agnostic.match_UDt[0, places]] = flat.desc_Dt[class_agnostic.ranking.prediction_Dt[places]]
    codes, counts = np.unique(flat.truth_desc_Gt * np.int64(len(words)) + said_Gt, return_counts=True)
    truth, said = np.divmod(codes, len(words))
    return {
        (flat.vocabulary[a], words[b]): count
        for a, b, count in zip(truth.tolist(), said.tolist(), counts.tolist(), strict=True)
    }


def description_scores(pairs: PairCounts, majority: str | None) -> dict[str, Any]:
    """Caption accuracy (exact match) on matched boxes, beside the majority baseline.

    Args:
        majority: the constant prediction of the baseline; None when no description is known.

    Returns:
        Fractions in [0, 1], None where no box is matched. The macro average is over the annotated descriptions that
        have a matched box. Level k compares the first k levels of the paths; levels are reported when annotated paths
        have several.
    """
    matched = {(truth, said): count for (truth, said), count in pairs.items() if said is not None}
    boxes = sum(matched.values())
    scores: dict[str, Any] = {
        "matched_boxes": boxes,
        "missed_boxes": sum(pairs.values()) - boxes,
        "description_accuracy": _accuracy(matched, eq),
        "description_macro_accuracy": _macro_accuracy(matched, eq),
        "majority_description": majority,
        "majority_baseline": None,
        "majority_macro_baseline": None,
    }
    if majority is not None:
        scores["majority_baseline"] = _accuracy(matched, lambda truth, _: truth == majority)
        scores["majority_macro_baseline"] = _macro_accuracy(matched, lambda truth, _: truth == majority)
    levels = level_count({truth for truth, _ in pairs})
    for level in range(1, levels + 1) if levels > 1 else ():
        same = partial(_same_levels, level=level)
        scores[f"description_accuracy_level{level}"] = _accuracy(matched, same)
    return scores


def description_table(pairs: PairCounts, ap50: Mapping[str, float | None]) -> dict[str, dict[str, Any]]:
    """Annotated description → truth, matched and correct counts, accuracy on matched boxes and AP50.

    Most frequent first; equal counts in alphabetical order.
    """
    truth = description_counts(pairs.items())
    matched = description_counts(item for item in pairs.items() if item[0][1] is not None)
    return {
        desc: {
            "truth": count,
            "matched": matched[desc],
            "correct": pairs.get((desc, desc), 0),
            "accuracy": ratio(pairs.get((desc, desc), 0), matched[desc]),
            "AP50": ap50[desc],
        }
        for desc, count in sorted(truth.items(), key=lambda item: (-item[1], item[0]))
    }


def description_counts(pairs: Iterable[tuple[Pair, int]]) -> Counter[str]:
    """Annotated description → its objects, of pairs with their counts."""
    counts: Counter[str] = Counter()
    for (truth, _), count in pairs:
        counts[truth] += count
    return counts


def most_frequent(counts: Mapping[str, int]) -> str | None:
    """The most frequent description, the alphabetically first of equals; None when there is none."""
    return min(counts, key=lambda desc: (-counts[desc], desc), default=None)


def false_positive_scores(
    described: Matched, score_threshold: float, train_descriptions: Collection[str] | None
) -> dict[str, Any]:
    """False positives and unknown descriptions among the detections at or above ``score_threshold``.

    A false positive matches no object of its own description: wrong place, wrong caption, or a second box on one
    object. COCO tools ignore descriptions without ground truth; here they count. The training keys are None when
    ``train_descriptions`` is None, the rates when no detection reaches the threshold.
    """
    ranking, flat = described.ranking, described.ranking.flat
    confident_Dt = ranking.confidence_Dt >= score_threshold
    said_De = np.bincount(flat.desc_Dt[ranking.prediction_Dt[confident_Dt]], minlength=len(flat.vocabulary))
    said, wrong = int(said_De.sum()), int((confident_Dt & ~described.right_Dt).sum())
    strange = int((ranking.category_Dt[confident_Dt] >= len(ranking.categories)).sum())
    unknown = None
    if train_descriptions is not None:
        unknown = sum(
            int(count) for desc, count in zip(flat.vocabulary, said_De, strict=True) if desc not in train_descriptions
        )
    return {
        "predictions_at_threshold": said,
        "false_positives": wrong,
        "false_positives_per_image": ratio(wrong, len(flat.names)),
        "out_of_vocabulary_predictions": strange,
        "out_of_vocabulary_rate": ratio(strange, said),
        "unknown_to_training_predictions": unknown,
        "unknown_to_training_rate": None if unknown is None else ratio(unknown, said),
    }


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None when the whole is 0."""
    return part / whole if whole else None


def _same_levels(truth: str, said: str, level: int) -> bool:
    return prefix(truth, level) == prefix(said, level)


def _accuracy(matched: Mapping[tuple[str, str], int], right: Callable[[str, str], bool]) -> float | None:
    return ratio(sum(count for pair, count in matched.items() if right(*pair)), sum(matched.values()))


def _macro_accuracy(matched: Mapping[tuple[str, str], int], right: Callable[[str, str], bool]) -> float | None:
    total = description_counts(matched.items())
    correct = description_counts(item for item in matched.items() if right(*item[0]))
    # sorted, so the sum rounds alike whatever the order of the boxes
    return ratio(sum(correct[desc] / total[desc] for desc in sorted(total)), len(total))
