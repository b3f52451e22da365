"""Families by name, and ``auto``: that of the model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bbu.config import as_written, load_config
from bbu.errors import ConfigError
from bbu.families.registry import FAMILIES, family_named, family_of_folder
from tests.tiny import build_tiny, tiny_config


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
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
