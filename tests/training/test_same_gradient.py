"""However a step is cut into packs, accumulation and ranks, every loss term gives the same gradient."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bbu.losses.weighting import LANGUAGE_TERMS, TERMS
from bbu.training.objective import DetectionObjective
from tests.jobs import start_ranks
from tests.tiny import FAMILIES, PAIR, build_tiny, pack, tiny_config, tiny_processor
from tests.training.cuts import CAPTION_WEIGHTS, CUTS, WEIGHTS, four_samples, gradients_of_cut
from tests.training.one_run import finish


@cache
def expected_gradients(family: str) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, float]]]:
    """Computed without the trainer: each sample alone, Σ weight · (Σ sums) / (Σ counts)."""
    model = build_tiny(tiny_config(model={"family": family}), torch.float64)
    objective = DetectionObjective(model, tiny_config().loss)
    samples = four_samples(tiny_processor(family, caption_weights=CAPTION_WEIGHTS))
    targets = sum(len(sample.ground_truth_objects) for sample in samples)
    counts = {
        "teacher_lm": sum(b - a for sample in samples for a, b in sample.teacher_spans),
        "student_lm": sum(sample.student_span[1] - sample.student_span[0] for sample in samples if sample.detects),
        "replay_lm": sum(b - a for sample in samples for a, b in sample.replay_spans),
        "bbox_l1": targets,
        "bbox_giou": targets,
        "objectness": targets,
        "caption": sum(len(item.caption_ids) for sample in samples for item in sample.ground_truth_objects),
    }
    alone = [objective(**pack(model, [sample])) for sample in samples]
    sums = {term: torch.stack([found[term].double() for found in alone]).sum() for term in TERMS}
    named = dict(objective.named_parameters())
    gradients, logs = [], []
    for weights in WEIGHTS:
        components = {term: weights[term] * sums[term] / counts[term] for term in TERMS}
        total = torch.stack(list(components.values())).sum()
        found = torch.autograd.grad(total, list(named.values()), retain_graph=True, materialize_grads=True)
        gradients.append(dict(zip(named, found, strict=True)))
        answers, tokens = (sum(values[term] for term in LANGUAGE_TERMS) for values in (sums, counts))
        logs.append(
            {f"loss/{term}": value.item() for term, value in components.items()}
            | {"loss": total.item(), "lm_loss": answers.item() / tokens}
        )
    return gradients, logs


def check(found: dict[str, Any], family: str, cut: str) -> None:
    gradients, logs = expected_gradients(family)
    assert len(found["gradients"]) == len(found["logs"]) == len(WEIGHTS)
    for number, (ours, theirs) in enumerate(zip(found["gradients"], gradients, strict=True)):
        term = TERMS[number] if number < len(TERMS) else "all terms"
        assert set(ours) == set(theirs), "a parameter took no part"
        scale = max(float(gradient.abs().max()) for gradient in theirs.values())
        assert scale > 0, f"{term} teaches nothing here"
        for name, gradient in theirs.items():
            torch.testing.assert_close(
                ours[name] / scale,
                gradient / scale,
                rtol=1e-9,
                atol=1e-9,
                msg=lambda text, t=term, n=name: f"{cut}, gradient of {t} for {n}: {text}",
            )
        for name, value in logs[number].items():
            assert found["logs"][number][name] == pytest.approx(value, rel=1e-6, abs=1e-12), f"{cut}, {term}: {name}"


@pytest.mark.parametrize("cut", [name for name, cut in CUTS.items() if cut.ranks == 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_the_same_however_a_step_is_cut(family: str, cut: str, tmp_path: Path) -> None:
    check(gradients_of_cut(CUTS[cut], tmp_path, family), family, cut)


@pytest.mark.parametrize("family", PAIR)
def test_gradient_is_the_same_on_two_ranks(family: str, tmp_path: Path) -> None:
    """Two processes of the real trainer under DistributedDataParallel with gloo."""
    ended = finish(start_ranks(["-m", "tests.training.ranks", str(tmp_path), family]))
    assert [status for status, _ in ended] == [0, 0], "\n".join(output[-3000:] for _, output in ended)
    for name, cut in CUTS.items():
        if cut.ranks > 1:
            check(torch.load(tmp_path / f"{name}.pt"), family, name)
