"""Runs with DeepSpeed on the CPU, in a process of their own; used by test_deepspeed_resume.py.

``python -m tests.training.deepspeed_run FOLDER``: FOLDER/whole is never stopped, FOLDER/broken is, and resumed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

from bbu import stages
from bbu.errors import CheckpointError
from bbu.jsonl import write_jsonl
from bbu.models.manifest import seal
from bbu.training.recovery import check_checkpoint, weights_only
from tests.tiny import write_samples
from tests.training.test_recovery import FORMS, Payload
from tests.training.test_resume import PowerCutError, pull_the_plug, run_config

ZERO = str(Path(__file__).resolve().parents[2] / "configs" / "zero2.json")
STEPS = {"training__max_steps": 3, "training__save_every": 2, "training__deepspeed": ZERO}


def main(folder: Path) -> None:
    records = folder / "records"
    records.mkdir()
    samples = write_samples(records, 5)
    write_jsonl(records / "train.jsonl", [sample.to_json() for sample in samples])
    write_jsonl(records / "teacher.jsonl", [sample.student.to_json() for sample in samples[:2]])
    stages.train(run_config(records, folder / "whole", **STEPS))
    broken = run_config(records, folder / "broken", **STEPS)
    with pytest.MonkeyPatch.context() as context, pytest.raises(PowerCutError):
        pull_the_plug(context, after=2)
        stages.train(broken)
    broken.training.resume = True
    stages.train(broken)
    _compare(folder)
    _poison(folder / "broken" / "checkpoint-2", folder / "ran")


def _compare(folder: Path) -> None:
    """The files of both last checkpoints hold the same bits."""
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        paths = [folder / run / "checkpoint-3" / "global_step3" / name for run in ("whole", "broken")]
        one, other = (_tensors(torch.load(path, weights_only=False)) for path in paths)
        assert one.keys() == other.keys() and len(one) > 5, (name, len(one))
        assert all(torch.equal(one[key], other[key]) for key in one), name
        print("equal", name, len(one))


def _tensors(value: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: tensor for at, item in items for key, tensor in _tensors(item, f"{name}.{at}").items()}


def _poison(checkpoint: Path, ran: Path) -> None:
    """Payloads in DeepSpeed's files, under a manifest of their own; DeepSpeed's loader must not run them either."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    for path in sorted(checkpoint.glob("global_step*/*.pt")):
        before = path.read_bytes()
        for write in FORMS:
            write(path, {"module": {}, "more": Payload(ran)})
            seal(checkpoint)
            with pytest.raises(CheckpointError, match=f"{path.name}: is not loaded"):
                check_checkpoint(checkpoint)
            with weights_only(checkpoint), pytest.raises(Exception, match=r"(?i)weights.only|magic|TorchScript"):
                TorchCheckpointEngine().load(str(path), map_location="cpu")
            assert not ran.exists()
            print("refused", path.name, write.__name__)
        path.write_bytes(before)
    seal(checkpoint)
    check_checkpoint(checkpoint)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
