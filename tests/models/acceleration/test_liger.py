"""Liger kernels are asked for in the right words. What they compute needs CUDA and is not shown here."""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from bbu.errors import ConfigError
from bbu.models.acceleration.liger import use_liger
from tests.tiny import FAMILIES, tiny_model

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for the package, with the parameters of version 0.6; records what its functions were given."""
    calls: list[dict[str, Any]] = []

    def apply(
        rope: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        model: Any = None,
    ) -> None:
        layers = getattr(model, "language_model", model).layers
        assert layers, "where the package looks for them"
        calls.append(dict(locals()))
        vars(sys.modules[type(model).__module__])["torch"] = None

    package, functions = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    package.__spec__ = importlib.machinery.ModuleSpec("liger_kernel", None)
    for family in FAMILIES:
        setattr(functions, f"apply_liger_kernel_to_{family}", apply)
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", functions)
    return calls


@every_family
@pytest.mark.parametrize("requested", ["auto", "always"])
def test_norms_and_mlps_of_this_instance_and_nothing_else(family: str, requested: str, liger: list[Any]) -> None:
    backbone = tiny_model(family).backbone
    assert use_liger(backbone, requested, CUDA)
    (call,) = liger
    assert call["model"] is backbone.vlm.base_model and call["rms_norm"] and call["swiglu"]
    assert not (call["rope"] or call["cross_entropy"] or call["fused_linear_cross_entropy"])
    assert vars(sys.modules[type(backbone.vlm.base_model).__module__])["torch"] is torch, "later models are changed too"


@every_family
def test_nothing_is_touched_where_it_is_off_or_cannot_run(family: str, liger: list[Any]) -> None:
    backbone = tiny_model(family).backbone
    assert not use_liger(backbone, "none", CUDA) and not use_liger(backbone, "auto", CPU)
    assert liger == []


@every_family
def test_what_is_asked_for_and_not_there_is_an_error(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_model(family).backbone
    with pytest.raises(ConfigError, match=r"model\.liger: .* needs CUDA, this run has cpu"):
        use_liger(backbone, "always", CPU)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"model\.liger: .* is not installed"):
        use_liger(backbone, "always", CUDA)
    assert not use_liger(backbone, "auto", CUDA)


@every_family
def test_a_family_that_the_package_does_not_know(
    family: str, liger: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_model(family).backbone
    monkeypatch.setattr(type(backbone), "family", "another")
    assert not use_liger(backbone, "auto", CUDA)
    with pytest.raises(ConfigError, match="apply_liger_kernel_to_another"):
        use_liger(backbone, "always", CUDA)
