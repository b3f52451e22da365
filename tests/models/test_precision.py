"""bfloat16 is used for matrix products only; boxes and losses stay in full precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bbu.inference.predictor import Predictor
from bbu.losses.weighting import TERMS
from bbu.models.precision import use_bf16
from tests.tiny import (
    FAMILIES,
    build_tiny,
    mixed_samples,
    noise_photo,
    pack,
    run_model,
    tiny_config,
    tiny_processor,
    tiny_trainer,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_in_bf16_follows_training_in_full_precision(family: str, tmp_path: Path) -> None:
    processor = tiny_processor(family)
    found = []
    for bf16 in (False, True):
        config = tiny_config(model={"family": family}, training={"max_steps": 2, "batch_size": 3})
        samples = mixed_samples(processor) * 2
        trainer = tiny_trainer(config, tmp_path / str(bf16), samples[:6], processor, build_tiny(config), bf16=bf16)
        trainer.train()
        found.append([log for log in trainer.state.log_history if "loss" in log])
        model = trainer.unwrapped.model
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    for full, half in zip(*found, strict=True):
        assert half["loss"] == pytest.approx(full["loss"], rel=0.1)
        assert half["loss"] != full["loss"], "nothing was computed in bfloat16"
        for term in TERMS:
            assert half[f"loss/{term}"] == pytest.approx(full[f"loss/{term}"], rel=0.2, abs=0.02), term


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_are_in_full_precision_under_autocast(family: str) -> None:
    model = build_tiny(tiny_config(model={"family": family})).eval()
    batch = pack(model, mixed_samples(tiny_processor(family))[:2])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = run_model(model, batch)
    assert output.pred_boxes.dtype == output.pred_objectness.dtype == torch.float32
    assert output.proposals.boxes.dtype == torch.float32
    steps = output.pred_boxes.flatten().unique()
    assert not torch.equal(steps, steps.bfloat16().float()), "the boxes were rounded to bfloat16"
    for logits in (output.pred_objectness, output.proposals.objectness):
        assert not torch.equal(logits, logits.bfloat16().float()), "objectness was rounded to bfloat16"


@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_in_bf16_runs(family: str) -> None:
    model = build_tiny(tiny_config(model={"family": family}))
    predictor = Predictor(model, tiny_processor(family), autocast=torch.bfloat16, nms_iou=1.0)
    found = predictor.predict_photos([noise_photo(1), noise_photo(2, 84, 84)])
    assert [len(items) for items in found] == [10, 10]
    assert all(0 <= item.score <= 1 for items in found for item in items)


def test_full_precision_is_kept_when_asked_for() -> None:
    assert use_bf16("fp32", torch.device("cpu")) is False
    assert use_bf16("bf16", torch.device("cpu")) is True
    assert use_bf16("auto", torch.device("cpu")) in (True, False)
