"""The photos that the training log watches, and what the current weights predict for them.

Shapes: N training targets, Q queries of one sample, S image tokens.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bbu.config.schema import VAL_METRICS
from bbu.data.photo import open_photo
from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.inference.postprocess import model_inputs
from bbu.inference.predictor import Predictor, Shown
from bbu.losses.matcher import MatchCosts, PredictionSet, hungarian_matcher
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from bbu.records import PredictionRow, Row
from bbu.training.objective import target_boxes

UNMATCHED = -1  # there are more targets than queries


@dataclass(frozen=True)
class Seen:
    """The result of one look.

    Args:
        predictions: one row per probe photo, in their order.
        queries: per photo the (N,) query matched to each target, UNMATCHED where none is left; None where the photo
            could not be read. See ``query_names``.
        metrics: VAL_METRICS of the probe photos; None = undefined.
        seconds: duration of the look.
    """

    predictions: list[PredictionRow]
    queries: list[list[int] | None]
    metrics: dict[str, float | None]
    seconds: float


class Probe:
    """Predicts the same photos at every look and leaves the training run untouched.

    Works on the unwrapped model, so no collective runs: one rank can look while the others wait.

    Args:
        predictor: of the model that is being trained.
        rows: the annotated photos.
        shown: teachers and context of each photo.
    """

    def __init__(
        self,
        predictor: Predictor,
        rows: Sequence[Row],
        image_root: str,
        costs: MatchCosts,
        *,
        shown: Shown | None = None,
    ) -> None:
        self.predictor, self.rows, self.image_root, self.costs = predictor, list(rows), image_root, costs
        self.shown = shown

    def look(self) -> Seen:
        """Predict and match every photo.

        Raises:
            UserError: this rank does not hold the weights as a whole.
        """
        started, model = time.monotonic(), self.predictor.model
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise UserError("training.visual_every: ZeRO-3 shares out the weights; use ZeRO-2, or set it to 0")
        with undisturbed(model):
            names = [row.images[0] for row in self.rows]
            predictions = list(self.predictor.predict_files(names, self.image_root, shown=self.shown))
            model.eval()
            queries = [self._matched(row) for row in self.rows]
        metrics = evaluate(self.rows, predictions, bootstrap_samples=0)
        return Seen(predictions, queries, {name: metrics[name] for name in VAL_METRICS}, time.monotonic() - started)

    @torch.no_grad()
    def _matched(self, row: Row) -> list[int] | None:
        """The query that the training matcher gives each target of a photo, in the last layer."""
        model, processor = self.predictor.model, self.predictor.processor
        try:
            teachers, context = self.shown(row.images[0]) if self.shown else ((), ())
            sample = processor.process_photos(
                teachers, open_photo(self.image_root, row), context=context, with_answer=True
            )
        except UserError:  # its prediction row says why
            return None
        batch = self.predictor.collator([sample])
        with self.predictor.precision():
            output = model(**model_inputs(batch, next(model.parameters()).device))
        return matched_queries(output, torch.from_numpy(target_boxes(batch)), self.costs)


def matched_queries(output: DetectionOutput, target_boxes_N4: torch.Tensor, costs: MatchCosts) -> list[int]:
    """(N,) names of the queries matched to the targets of one sample, in the last layer."""
    last = PredictionSet(output.pred_boxes[None], output.pred_objectness[None])
    boxes_N4 = target_boxes_N4.to(output.pred_boxes)
    (matches,) = hungarian_matcher([last], boxes_N4, [len(boxes_N4)], costs)
    names_Q = query_names(output)
    matched = dict(zip(matches.targets.tolist(), matches.predictions.tolist(), strict=True))
    return [names_Q[matched[target]] if target in matched else UNMATCHED for target in range(len(boxes_N4))]


def query_names(output: DetectionOutput) -> list[int]:
    """(Q,) identity of each query of one sample: the image token it starts from; S and above for learned queries.

    Queries are image tokens sorted by objectness (``DetectionHead._choose``). The rank changes from look to look; the
    token is the same place of the photo every time.
    """
    (tokens_S,) = output.proposals.objectness.split(output.proposal_counts)
    queries = output.pred_boxes.shape[1]
    taken = min(len(tokens_S), queries)
    chosen: list[int] = tokens_S.topk(taken).indices.tolist()
    return chosen + [len(tokens_S) + number for number in range(taken, queries)]


def match_stability(before: Sequence[list[int] | None], now: Sequence[list[int] | None]) -> float | None:
    """Share of targets matched to the same query as at the previous look; None without a target to compare.

    It is 1 - the instability of DN-DETR (Li et al. 2022, arXiv:2203.01305, section 3.2).
    """
    pairs = [
        pair
        for old, new in zip(before, now, strict=True)
        if old is not None and new is not None
        for pair in zip(old, new, strict=True)
    ]
    return sum(old == new != UNMATCHED for old, new in pairs) / len(pairs) if pairs else None


def choose_probes(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """A diverse choice: each photo adds the most descriptions that no photo before it has, weighted by rarity.

    A description weighs 1 / (photos that have it). Ties are broken by seed. Once all descriptions are covered, the
    choice starts over.
    """
    left = [row for row in rows if row.objects]
    random.Random(seed).shuffle(left)
    descs = {id(row): {item.desc for item in row.objects} for row in left}
    photos = Counter(desc for row in left for desc in descs[id(row)])
    chosen: list[Row] = []
    covered: set[str] = set()
    while left and len(chosen) < count:
        if covered >= set().union(*(descs[id(row)] for row in left)):
            covered = set()
        best = max(left, key=lambda row: sum(1 / photos[desc] for desc in descs[id(row)] - covered))
        left.remove(best)
        chosen.append(best)
        covered |= descs[id(best)]
    return chosen


@contextlib.contextmanager
def undisturbed(model: DetectionVLM) -> Iterator[None]:
    """Restore all random states and every module's training mode on exit."""
    modes = [(module, module.training) for module in model.modules()]
    python, arrays = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        for module, mode in modes:
            module.training = mode
