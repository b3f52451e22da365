"""Hungarian matching: optimality, edge cases, one transfer to the host."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.loss.loss_for_object_detection import HungarianMatcher

from bbu.geometry import cxcywh_to_xyxy, giou
from bbu.losses import detection_loss, matcher
from bbu.losses.matcher import MatchCosts, Matches, PredictionSet, begin_matching, hungarian_matcher

COSTS = MatchCosts(5.0, 2.0, 2.0)


def random_boxes(generator: torch.Generator, *shape: int) -> torch.Tensor:
    centres = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 0.6 + 0.2
    sides = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 0.3 + 0.02
    return torch.cat((centres, sides), dim=-1)


def cost(box: torch.Tensor, logit: torch.Tensor, target: torch.Tensor, costs: MatchCosts = COSTS) -> float:
    """Matching cost of one prediction and one target."""
    l1 = float((box - target).abs().sum())
    overlap = float(giou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(target)))
    return costs.l1 * l1 - costs.giou * overlap - costs.objectness * float(logit.sigmoid())


def brute_force(table: np.ndarray) -> float:
    """The least total cost over all one-to-one assignments, by enumeration."""
    wide = table if table.shape[0] >= table.shape[1] else table.T
    rows, columns = wide.shape
    return min(
        sum(wide[row, column] for column, row in enumerate(chosen))
        for chosen in itertools.permutations(range(rows), columns)
    )


def columns(matches: Matches) -> list[torch.Tensor]:
    return [matches.layers, matches.samples, matches.predictions, matches.targets]


def pairs_of(matches: Matches, layer: int, sample: int) -> list[tuple[int, int]]:
    here = (matches.layers == layer) & (matches.samples == sample)
    return list(zip(matches.predictions[here].tolist(), matches.targets[here].tolist(), strict=True))


@given(
    seed=st.integers(0, 2**20),
    predictions=st.integers(1, 6),
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    layers=st.integers(1, 2),
    cut=st.booleans(),
    twins=st.booleans(),
)
def test_matching_is_the_brute_force_optimum(
    seed: int, predictions: int, counts: list[int], layers: int, cut: bool, twins: bool
) -> None:
    """Any numbers of predictions and targets, more targets than predictions, duplicate boxes."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, layers, len(counts), predictions)
    objectness = torch.randn(layers, len(counts), predictions, generator=generator, dtype=torch.float64)
    targets = random_boxes(generator, sum(counts))
    if twins and sum(counts):
        targets[:] = targets[0].clone()
    real = [max(1, predictions - number) for number in range(len(counts))] if cut else None
    (matches,) = hungarian_matcher([PredictionSet(boxes, objectness, real)], targets, counts, COSTS)
    first = 0
    for sample, count in enumerate(counts):
        rows = real[sample] if real else predictions
        for layer in range(layers):
            table = np.array(
                [
                    [
                        cost(boxes[layer, sample, q], objectness[layer, sample, q], targets[first + n])
                        for n in range(count)
                    ]
                    for q in range(rows)
                ]
            ).reshape(rows, count)
            found = pairs_of(matches, layer, sample)
            assert len(found) == min(rows, count)
            assert len({q for q, _ in found}) == len(found), "a prediction is matched twice"
            assert all(q < rows for q, _ in found), "padding is matched"
            assert all(first <= n < first + count for _, n in found), "a target of another photo"
            assert len({n for _, n in found}) == len(found), "a target is matched twice"
            total = sum(table[q, n - first] for q, n in found)
            best = brute_force(table) if count else 0.0
            assert total == pytest.approx(best, abs=1e-9)
        first += count


def test_matching_equals_that_of_detr_in_transformers() -> None:
    """With two classes, target and background, softmax of (logit, 0) is our sigmoid."""
    generator = torch.Generator().manual_seed(0)
    counts = [3, 0, 5, 1]
    boxes = random_boxes(generator, 1, 4, 7)
    objectness = torch.randn(1, 4, 7, generator=generator, dtype=torch.float64)
    targets = random_boxes(generator, sum(counts))
    (ours,) = hungarian_matcher([PredictionSet(boxes, objectness)], targets, counts, MatchCosts(5.0, 2.0, 1.0))
    wanted = [{"class_labels": torch.zeros(len(p), dtype=torch.long), "boxes": p} for p in targets.split(counts)]
    theirs = HungarianMatcher(class_cost=1.0, bbox_cost=5.0, giou_cost=2.0)(
        {"logits": torch.stack((objectness[0], torch.zeros_like(objectness[0])), -1), "pred_boxes": boxes[0]}, wanted
    )
    first = 0
    for sample, (queries, numbers) in enumerate(theirs):
        expected = sorted(zip(queries.tolist(), (numbers + first).tolist(), strict=True))
        assert sorted(pairs_of(ours, 0, sample)) == expected
        first += counts[sample]


@pytest.mark.parametrize("at_once", [2, 3, 5])
def test_samples_costed_together_match_as_each_alone(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU costs one sample at a time; other devices cost all at once, with padding."""
    generator = torch.Generator().manual_seed(at_once)
    counts, targets = [2, 0, 7, 1, 3], random_boxes(generator, 13)
    sets = [
        PredictionSet(random_boxes(generator, 3, 5, 6), torch.randn(3, 5, 6, generator=generator)),
        PredictionSet(random_boxes(generator, 1, 5, 9), torch.randn(1, 5, 9, generator=generator), [9, 5, 2, 7, 1]),
    ]
    alone = hungarian_matcher(sets, targets, counts, COSTS)
    monkeypatch.setitem(matcher.SAMPLES_AT_ONCE, "cpu", at_once)
    together = hungarian_matcher(sets, targets, counts, COSTS)
    for one, other in zip(alone, together, strict=True):
        assert len(one.targets) and all(torch.equal(a, b) for a, b in zip(columns(one), columns(other), strict=True))


def test_no_targets_give_no_matches() -> None:
    boxes = random_boxes(torch.Generator().manual_seed(0), 2, 3, 4)
    for entries in ([PredictionSet(boxes, boxes[..., 0])], [PredictionSet(boxes, boxes[..., 0])] * 2):
        for matches in hungarian_matcher(entries, torch.zeros(0, 4), [0, 0, 0], COSTS):
            assert all(len(index) == 0 for index in columns(matches))


def test_with_more_targets_than_predictions_the_best_fitting_targets_are_matched() -> None:
    targets = random_boxes(torch.Generator().manual_seed(2), 6)
    boxes = targets[[4, 1]][None, None]
    (matches,) = hungarian_matcher([PredictionSet(boxes, torch.zeros(1, 1, 2))], targets, [6], COSTS)
    assert sorted(pairs_of(matches, 0, 0)) == [(0, 4), (1, 1)]


def test_duplicate_targets_match_different_predictions() -> None:
    target = torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 3, dtype=torch.float64)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 5, dtype=torch.float64)[None, None]
    (matches,) = hungarian_matcher([PredictionSet(boxes, torch.zeros(1, 1, 5))], target, [3], COSTS)
    assert sorted(matches.targets.tolist()) == [0, 1, 2]
    assert len(set(matches.predictions.tolist())) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["box", "objectness", "target"])
def test_a_pair_whose_cost_is_not_finite_is_matched_so_that_the_loss_is_not_finite_either(
    where: str, bad: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, targets = random_boxes(generator, 1, 2, 3), random_boxes(generator, 3)
    objectness = torch.zeros(1, 2, 3)
    if where == "box":
        boxes[0, 1, 2, 0] = bad
    elif where == "objectness":
        objectness[0, 1, 2] = float("nan")
    else:
        targets[2, 3] = bad
    (matches,) = hungarian_matcher([PredictionSet(boxes, objectness)], targets, [2, 1], COSTS)
    (prediction,) = matches.predictions[matches.samples == 1].tolist()
    assert prediction == 2 or where == "target", "the pair that is not finite was passed over"
    assert matches.host.shape == (4, 3)
    sums = detection_loss.detection_sums(
        boxes, objectness, torch.rand(4, 4), torch.zeros(4), [2, 2], targets, [2, 1], costs=COSTS
    )
    assert not torch.stack([sums.bbox_l1, sums.bbox_giou, sums.objectness]).isfinite().all()


def test_non_finite_padding_is_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, targets = random_boxes(generator, 1, 2, 3), random_boxes(generator, 2)
    boxes[0, 1, 2] = float("nan")
    (matches,) = hungarian_matcher([PredictionSet(boxes, torch.zeros(1, 2, 3), counts=[3, 2])], targets, [1, 1], COSTS)
    assert len(matches.targets) == 2


def test_all_costs_cross_to_the_host_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where samples are costed together, as on a GPU."""
    monkeypatch.setitem(matcher.SAMPLES_AT_ONCE, "cpu", 4)
    calls = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self, *a, **k: (calls.append(self.shape), real(self, *a, **k))[1])
    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        if name == "numpy":
            continue  # of what .cpu() returned
        monkeypatch.setattr(torch.Tensor, name, lambda self, n=name: pytest.fail(f"Tensor.{n} waits for the device"))
    generator = torch.Generator().manual_seed(0)
    sets = [
        PredictionSet(random_boxes(generator, 3, 4, 6), torch.zeros(3, 4, 6)),
        PredictionSet(random_boxes(generator, 1, 4, 9), torch.zeros(1, 4, 9), counts=[9, 5, 2, 7]),
    ]
    found = hungarian_matcher(sets, random_boxes(generator, 5), [2, 0, 1, 2], COSTS)
    monkeypatch.undo()
    assert len(calls) == 1
    assert len(found[0].targets) == 3 * 5


def test_a_begun_matching_is_finished_later_with_the_same_pairs() -> None:
    generator = torch.Generator().manual_seed(4)
    boxes, targets = random_boxes(generator, 2, 2, 6), random_boxes(generator, 5)
    sets = [PredictionSet(boxes, torch.zeros(2, 2, 6))]
    pending = begin_matching(sets, targets, [3, 2], COSTS)
    boxes.mul_(0), targets.mul_(0)  # its costs are on their way
    (found,) = pending.finish()
    (again,) = hungarian_matcher(
        [PredictionSet(random_boxes(g := torch.Generator().manual_seed(4), 2, 2, 6), torch.zeros(2, 2, 6))],
        random_boxes(g, 5), [3, 2], COSTS,
    )  # fmt: skip
    assert found.host.tolist() == again.host.tolist()


def test_the_matcher_can_be_imported_from_the_detection_loss() -> None:
    assert detection_loss.hungarian_matcher is hungarian_matcher


def test_pairs_are_in_layer_and_sample_order_and_on_the_targets_device() -> None:
    generator = torch.Generator().manual_seed(1)
    (matches,) = hungarian_matcher(
        [PredictionSet(random_boxes(generator, 2, 2, 5), torch.zeros(2, 2, 5))],
        random_boxes(generator, 4),
        [1, 3],
        COSTS,
    )
    places = list(zip(matches.layers.tolist(), matches.samples.tolist(), strict=True))
    assert places == sorted(places) and len(places) == 8
    assert all(index.dtype == torch.int64 for index in columns(matches))
    assert torch.stack(columns(matches)).tolist() == matches.host.tolist()
