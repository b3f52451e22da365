"""Families by name, and ``auto``: that of the model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bbu.config import as_written, load_config
from bbu.config.phases import phase_configs
from bbu.errors import ConfigError
from bbu.families.registry import FAMILIES, family_named, family_of_folder, family_options
from tests.tiny import build_tiny, tiny_config


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "ovis2_5"])
def test_auto_is_the_family_of_the_folder(family: str, tmp_path: Path) -> None:
    build_tiny(tiny_config(model={"family": family})).backbone.save(tmp_path / "folder")
    assert family_of_folder(str(tmp_path / "folder")) == family
    file = tmp_path / "job.yaml"
    file.write_text(f"model: {{family: auto, path: {tmp_path / 'folder'}}}\n", encoding="utf-8")
    config = load_config(file)
    assert config.model.family == family
    file.write_text(as_written(config), encoding="utf-8")
    assert load_config(file, ["model.path="]).model.family == family, "a run's config says what it was"
    assert OmegaConf.load(file).model.family == family


def test_a_folder_whose_family_is_not_known_is_named(tmp_path: Path) -> None:
    known = ", ".join(FAMILIES)
    with pytest.raises(ConfigError, match=rf"model\.path, which is empty; name a model folder, or one of {known}"):
        family_of_folder("")
    with pytest.raises(ConfigError, match=rf"{tmp_path}/config\.json: No such file or directory; name a model folder"):
        family_of_folder(str(tmp_path))
    llava = '{"model_type": "llava"}'
    for text, message in (("{", "is not JSON"), ("[]", "has None, which"), (llava, "has 'llava', which")):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"model\.family=auto: .*{tmp_path}/config\.json {message}"):
            family_of_folder(str(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.family: 'qwen4' is not auto or one of "):
        family_named("qwen4")


def test_options_are_checked_against_the_familys_own() -> None:
    assert family_options("ovis2_5", {}).tower_rotary
    assert not family_options("ovis2_5", {"tower_rotary": False}).tower_rotary
    for family, options, message in (
        ("ovis2_5", {"tower_rotari": False}, "tower_rotari: is not an option of ovis2_5; did you mean tower_rotary"),
        ("ovis2_5", {"x": False}, "x: is not an option of ovis2_5; keys here are tower_rotary"),
        ("ovis2_5", {"tower_rotary": 0}, "tower_rotary: must be true or false, is 0"),
        ("qwen2_5_vl", {"tower_rotary": False}, "tower_rotary: is not an option of qwen2_5_vl; it has none"),
    ):
        with pytest.raises(ConfigError, match=rf"model\.options\.{message}"):
            family_options(family, options)


def test_an_option_can_be_set_in_the_config_and_in_a_phase(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "model: {family: ovis2_5}\nphases: [{name: first, steps: 1, train: [llm], "
        "set: {model.options: {tower_rotary: false}}}, {name: second, steps: 1, train: [llm]}]\n",
        encoding="utf-8",
    )
    config = load_config(file)
    assert [phase.model.options for phase in phase_configs(config)] == [{"tower_rotary": False}, {}]
    assert load_config(file, ["model.options.tower_rotary=false"]).model.options == {"tower_rotary": False}
    with pytest.raises(ConfigError, match=r"model\.options\.tower: is not an option"):
        load_config(file, ["model.options.tower=false"])
