"""A training step asks the device for nothing but the matching costs: every other number it needs is on the host.

Shown on a CPU, where each operation that hands a tensor's values to Python, or whose result's size depends on them,
passes the dispatcher; on a GPU each of them would wait for the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from bbu.families.feature_cache import FeatureCache
from bbu.families.ovis2_5 import backbone as ovis2_5
from bbu.families.qwen2_5_vl import backbone as qwen2_5_vl
from bbu.families.qwen3_vl import backbone as qwen3_vl
from bbu.layers import attention
from bbu.layers.transfer import HostCopy
from bbu.losses import matcher
from bbu.models.build import freeze
from bbu.training import objective as objective_module
from bbu.training.objective import DetectionObjective
from tests.tiny import DEFAULT, FAMILIES, build_tiny, mixed_samples, pack, tiny_config, tiny_processor, tiny_trainer

WAITING = {
    "aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::equal",
    "aten::repeat_interleave.Tensor", "aten::unique_dim", "aten::_unique2", "aten::is_nonzero",
    "aten::unique_consecutive", "aten::bincount",  # the sizes of their results depend on values
    "aten::masked_scatter_backward",  # is a masked_select, which the dispatcher does not show apart
}  # fmt: skip
# Not among them, because torch's kernels keep their counts on the device: the backward passes of embedding,
# embedding_bag and of indexing by numbers. They sort the indices; since torch 2 and CUDA 11.7 the number of distinct
# ones stays there (as far as is known of torch's kernels; not measured).


# What a family reckons from the photos' grids, from host numbers to host numbers.
ON_THE_HOST = {
    "qwen2_5_vl": [(qwen2_5_vl, "_plan_of")],
    "qwen3_vl": [(qwen3_vl, "_plan_of")],
    "ovis2_5": [(ovis2_5, "_plan_of")],
    "toy": [],
}


class Watch(TorchDispatchMode):
    """Names of the operations that would synchronise with a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.excused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        overload = f"{name}.{func._schema.overload_name}".rstrip(".")
        masked = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if (masked or name in WAITING or overload in WAITING) and not self.excused:
            self.found.append(overload)
        return func(*args, **(kwargs or {}))


def excuse(monkeypatch: pytest.MonkeyPatch, watch: Watch, owner: Any, name: str) -> None:
    """Exempt a function that a step on a GPU runs on the host or not at all."""
    function = getattr(owner, name) if not isinstance(owner, dict) else owner[name]

    def excused(*args: Any, **kwargs: Any) -> Any:
        watch.excused += 1
        try:
            return function(*args, **kwargs)
        finally:
            watch.excused -= 1

    if isinstance(owner, dict):
        monkeypatch.setitem(owner, name, excused)
    else:
        monkeypatch.setattr(owner, name, excused)


def run_step(
    monkeypatch: pytest.MonkeyPatch, family: str, transfers: list[int], features: Path | None = None
) -> list[str]:
    """Forward and backward of a pack under watch; sizes of the tables that matching fetched go to ``transfers``.

    Args:
        features: a folder in which the features of all photos lie before the step.
    """
    objective = DetectionObjective(build_tiny(tiny_config(model={"family": family})), tiny_config().loss)
    batch = pack(objective.model, mixed_samples(tiny_processor(family, name_photos=features is not None)))
    if features is not None:
        freeze(objective.model, ["vision"])
        objective.model.backbone.feature_cache = FeatureCache(features)
        objective(**batch)
    watch = Watch()
    excuse(
        monkeypatch, watch, attention.ATTENTION_BACKENDS, "sdpa"
    )  # reads the boundaries, which a GPU's kernels do on the device
    excuse(monkeypatch, watch, FeatureCache, "get")  # reads a file; what it gives is on the host
    for owner, name in ON_THE_HOST[family]:
        excuse(monkeypatch, watch, owner, name)
    monkeypatch.setitem(matcher.SAMPLES_AT_ONCE, "cpu", 100)  # all samples together, as on a GPU

    class Counted(HostCopy):
        def __init__(self, tensor: torch.Tensor) -> None:
            transfers.append(tensor.numel())
            super().__init__(tensor)

    monkeypatch.setattr(matcher, "HostCopy", Counted)
    with watch:
        sums = objective(**batch)
        torch.stack(list(sums.values())).sum().backward()
    return watch.found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_waits_for_the_device_once_for_the_matching_costs(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    transfers: list[int] = []
    assert run_step(monkeypatch, family, transfers) == []
    assert len(transfers) == 1 and transfers[0] > 0


def test_the_costs_are_on_their_way_before_the_language_loss_and_awaited_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a GPU has the language loss to compute while the host solves the matching."""
    events: list[str] = []

    def noted(owner: Any, name: str, event: str) -> None:
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (events.append(event), function(*args))[1])

    noted(HostCopy, "__init__", "copy")
    noted(HostCopy, "wait", "wait")
    noted(matcher, "_solve", "solve")
    noted(objective_module, "answer_loss_sum", "language loss")
    noted(DetectionObjective, "_caption_sum", "captions")
    run_step(monkeypatch, DEFAULT, [])
    assert events == ["copy", "language loss", "language loss", "wait", "solve", "solve", "captions"]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_features_cause_no_synchronisation(monkeypatch: pytest.MonkeyPatch, family: str, tmp_path: Path) -> None:
    assert run_step(monkeypatch, family, [], tmp_path) == []
    assert len(list(tmp_path.glob("*/*"))) == 11


def test_the_check_detects_synchronising_operations() -> None:
    values = torch.tensor([1.0, 0.0, 2.0])
    with Watch() as watch:
        values[values > 0]
        values.sum().item()
        values.nonzero()
        values[torch.tensor([0, 2])]  # a gather of known size does not
    assert watch.found == ["aten::index.Tensor", "aten::_local_scalar_dense", "aten::nonzero"]


def test_the_check_detects_them_in_the_backward_pass() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    is_place = torch.tensor([True, False, True])
    for operation in (lambda: rows.new_zeros(3, 3).masked_scatter(is_place[:, None], rows), lambda: rows[is_place[:2]]):
        outcome = operation().sum()
        with Watch() as watch:
            outcome.backward()
        assert watch.found in (["aten::masked_scatter_backward"], ["aten::index_put"])


@pytest.mark.parametrize("clip", [1.0, 0.0], ids=["clipped", "not clipped"])
def test_a_whole_step_of_the_trainer_waits_no_more_often(
    clip: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From one step's begin to the next's end, with the check that loss and gradient are finite."""
    config = tiny_config(training={"max_steps": 3, "log_every": 10, "max_grad_norm": clip})
    processor = tiny_processor(DEFAULT)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor) * 2, processor)
    watch = Watch()
    excuse(monkeypatch, watch, attention.ATTENTION_BACKENDS, "sdpa")
    for owner, name in ON_THE_HOST[DEFAULT]:
        excuse(monkeypatch, watch, owner, name)

    class OneStep(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                watch.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                watch.__exit__(None, None, None)

    trainer.add_callback(OneStep())
    trainer.train()
    assert watch.found == []
