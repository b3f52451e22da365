"""The first losses of a fixed tiny run equal stored numbers: a change that should not alter the maths does not.

Where one should, write the new numbers down with

    PYTHONPATH=src:. python -m tests.training.test_golden_curve

and say in the commit why they moved.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from bbu.data.dataset import TrainingStream
from bbu.losses.weighting import TERMS
from tests.tiny import FAMILIES, build_tiny, tiny_config, tiny_processor, tiny_trainer, write_samples

STORED = Path(__file__).with_name("golden_curve.json")
STEPS = 5


def curve(family: str, folder: Path) -> list[dict[str, float]]:
    """Loss and weighted components of the first steps, in float32 on one thread."""
    torch.set_num_threads(1)
    config = tiny_config(
        model={"family": family}, training={"max_steps": STEPS, "batch_size": 2, "schedule": "constant"}
    )
    processor = tiny_processor(family, folder)
    samples = write_samples(folder, 6, seed=40)
    stream = TrainingStream(samples, processor, length=2 * STEPS, seed=config.seed)
    trainer = tiny_trainer(config, folder / "run", stream, processor, build_tiny(config, shake=0.02))
    trainer.train()
    names = ["loss", *(f"loss/{term}" for term in TERMS)]
    return [{name: log[name] for name in names} for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_losses_are_the_stored_ones(family: str, tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))[family]
    found = curve(family, tmp_path)
    assert len(found) == len(stored) == STEPS
    for step, (ours, theirs) in enumerate(zip(found, stored, strict=True), start=1):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), f"step {step}"


if __name__ == "__main__":
    curves = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            curves[name] = curve(name, Path(place))
    STORED.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {STORED}")
