"""Matching of 6 decoder layers x 16 photos against transformers' HungarianMatcher, called as its DETR loss calls it.

    python benchmarks/matcher.py [--repeats 15] [--threads 1] [--quick]

Theirs runs once per layer (`ImageLoss` in transformers.loss.loss_for_object_detection), costs every prediction against
the targets of all photos and crosses to the host each time; ours costs each photo's own targets and crosses once. There
are 300 predictions and 10 to 30 targets per photo; half of the predictions lie near a target, as those of a trained
model do. Inputs are random in every run, in float32. The pairs are checked equal (in float64, where rounding breaks no
ties) before anything is timed; the two alternate. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable
from typing import Any

import torch
from harness import interleaved_medians, last_line
from transformers.loss.loss_for_object_detection import HungarianMatcher

from bbu.losses.matcher import MatchCosts, Matches, PredictionSet, hungarian_matcher

COSTS = MatchCosts()
Pairs = set[tuple[int, int, int, int]]  # layer, photo, prediction, target of the photo


def random_boxes(*shape: int) -> torch.Tensor:
    """(..., 4) cxcywh inside the photo, float64."""
    sides = torch.rand(*shape, 2, dtype=torch.float64) * 0.3 + 0.02
    centres = sides / 2 + torch.rand(*shape, 2, dtype=torch.float64) * (1 - sides)
    return torch.cat((centres, sides), dim=-1)


def random_inputs(layers: int, photos: int, queries: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """(layers, photos, queries, 4) boxes, their logits and the targets of each photo, float64."""
    boxes = random_boxes(layers, photos, queries)
    targets = [random_boxes(int(count)) for count in torch.randint(10, 31, (photos,))]
    near = queries // 2
    for photo, theirs in enumerate(targets):
        chosen = theirs[torch.randint(len(theirs), (layers, near))]
        boxes[:, photo, :near] = (chosen + 0.02 * torch.randn_like(chosen)).clamp(0.01, 0.99)
    return boxes, torch.randn(layers, photos, queries, dtype=torch.float64), targets


def make_arms(
    boxes: torch.Tensor, logits: torch.Tensor, targets: list[torch.Tensor]
) -> tuple[Callable[[], list[Any]], Callable[[], Matches]]:
    """Theirs and ours. With two classes, target and background, the softmax of (logit, 0) is our sigmoid."""
    stock = HungarianMatcher(class_cost=COSTS.objectness, bbox_cost=COSTS.l1, giou_cost=COSTS.giou)
    labels = [{"class_labels": torch.zeros(len(one), dtype=torch.long), "boxes": one} for one in targets]
    classes = torch.stack((logits, torch.zeros_like(logits)), dim=-1)
    together, counts = torch.cat(targets), [len(one) for one in targets]

    def theirs() -> list[Any]:
        return [
            stock({"logits": some, "pred_boxes": layer}, labels) for some, layer in zip(classes, boxes, strict=True)
        ]

    def ours() -> Matches:
        return hungarian_matcher([PredictionSet(boxes, logits)], together, counts, COSTS)[0]

    return theirs, ours


def their_pairs(found: list[Any]) -> Pairs:
    return {
        (layer, photo, query, target)
        for layer, photos in enumerate(found)
        for photo, (queries, numbers) in enumerate(photos)
        for query, target in zip(queries.tolist(), numbers.tolist(), strict=True)
    }


def our_pairs(found: Matches, targets: list[torch.Tensor]) -> Pairs:
    first = torch.tensor([0, *(len(one) for one in targets)]).cumsum(0)
    columns = (found.layers, found.samples, found.predictions, found.targets - first[found.samples])
    return set(zip(*(column.tolist() for column in columns), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="2 layers x 3 photos x 40 predictions, twice")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(secrets.randbits(32))
    layers, photos, queries = (2, 3, 40) if arguments.quick else (6, 16, 300)
    boxes, logits, targets = random_inputs(layers, photos, queries)
    theirs, ours = make_arms(boxes, logits, targets)
    if their_pairs(theirs()) != our_pairs(ours(), targets):
        raise SystemExit("the two matchers do not agree")
    theirs, ours = make_arms(boxes.float(), logits.float(), [one.float() for one in targets])
    arms = {"transformers": theirs, "ours": ours}
    seconds = interleaved_medians(arms, 2 if arguments.quick else arguments.repeats)
    total = sum(map(len, targets))
    print(f"{layers} layers x {photos} photos x {queries} predictions, {total} targets; pairs are equal")
    for name, value in seconds.items():
        print(f"{name:<13} {1000 * value:8.2f} ms")
    last_line("matcher", speedup_vs_hf=seconds["transformers"] / seconds["ours"])


if __name__ == "__main__":
    main()
