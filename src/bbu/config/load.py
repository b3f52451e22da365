"""YAML + dotted overrides → Config. An old key is an error with its new name, an unknown one with the nearest."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bbu.config.checks import all_keys, check_values, may_be_null, section_of
from bbu.config.phases import phase_configs
from bbu.config.schema import Config
from bbu.errors import ConfigError
from bbu.families.registry import AUTO, family_of_folder

RENAMED = {  # old key → new key
    "data.augment.curriculum.calm_end": "data.augment.curriculum.close_mosaic",
    "data.augment.paste_parts": "data.augment.paste_objects",
    "data.teachers_per_sample": "data.episodes.counts",
    "evaluation.alarms_per_photo": "evaluation.fppi",
    "evaluation.captions_per_photo": "evaluation.max_detections",
    "evaluation.duplicate_iou": "evaluation.nms_iou",
    "evaluation.resamples": "evaluation.bootstrap_samples",
}
REMOVED = {  # old key → why it is gone
    "data.source.image_max_pixels": "data.max_pixels limits photos; python -m data_conversion can shrink the files",
    "loss.denoising_groups": "loss.denoising_queries counts queries of a photo, not groups",
    "loss.proposals_per_object": "proposals are matched one to one",
}
OWN_KEY = re.compile(r"\$\{[A-Za-z_]\w*(\.\w+)*\}")  # ${training.max_steps}; no resolver, which has a colon


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply ``dotted.key=value`` overrides, check every key and value.

    Raises:
        ConfigError: one line with the file or override, the key, what is wrong and the nearest known key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(path)
    if path.exists() and not path.is_file():
        raise ConfigError(f"config {path} is no file; name a YAML file, e.g. configs/demo.yaml")
    if not path.is_file():
        shipped = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), shipped, n=1)
        raise ConfigError(f"config {path} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except Exception as error:
        raise ConfigError(f"{path}: is not valid YAML: {_one_line(error)}") from None
    if loaded is None or loaded == {}:
        raise ConfigError(f"{path}: is empty")
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values")
    _check_keys(loaded, Config, str(path))
    _check_references(loaded, str(path))
    try:
        merged = OmegaConf.merge(_schema(), OmegaConf.create(loaded))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None
    for override in overrides:
        merged = _apply_override(merged, override)
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # an override of an interpolation, which is followed only here
        raise ConfigError(f"{', '.join([str(path), *overrides])}: {_explain(error)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: keys refer to each other in a circle (${{...}})") from None
    assert isinstance(config, Config)
    config.references = tuple(_references(OmegaConf.to_container(merged)).items())
    config.name = config.name or path.stem
    config.output_dir = config.output_dir or f"outputs/{config.name}"
    if config.model.family == AUTO:
        config.model.family = family_of_folder(config.model.path)
    check_values(config)
    phase_configs(config)
    return config


@cache
def _schema() -> Any:
    """The types and defaults as OmegaConf knows them; merging leaves them as they are."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config)


def _apply_override(merged: Any, override: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write it as key=value, e.g. training.max_steps=10")
    try:
        if key.startswith("phases."):
            return _override_phase(merged, override)
        if value in ("", "null") and key in all_keys() and OmegaConf.is_dict(OmegaConf.select(merged, key)):
            value = "{}"
        change = OmegaConf.from_dotlist([f"{key}={value or repr('')}"])  # a shell eats the quotes
        values = OmegaConf.to_container(change)
        _check_keys(values, Config, f"override {override!r}")
        _check_references(values, f"override {override!r}")
        _check_sections(merged, key, override)
        for mapping in _given_whole(key, change):
            OmegaConf.update(merged, mapping, {}, merge=False)
        return OmegaConf.merge(merged, change)
    except OmegaConfBaseException as error:
        raise ConfigError(f"override {override!r}: {_explain(error)}") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"override {override!r}: {_one_line(error)}") from None
    except Exception as error:  # yaml's own errors share no base with omegaconf's
        raise ConfigError(f"override {override!r}: cannot be read: {_one_line(error)}") from None


def _override_phase(merged: Any, override: str) -> Any:
    """``phases.<name>.<key>=value``: a key of one phase."""
    from omegaconf import OmegaConf

    key, _, value = override.partition("=")
    names = [phase.name for phase in merged.phases]
    _, name, *rest = key.split(".", 2)
    if name not in names or not rest:
        listed = f"phases here are {', '.join(names)}" if names else "this config has no phases"
        raise ConfigError(f"override {override!r}: write phases.<name>.<key>=value; {listed}")
    change = OmegaConf.create({"value": OmegaConf.from_dotlist([f"value={value or repr('')}"]).value})
    place, _, inner = rest[0].partition(".")
    phase = merged.phases[names.index(name)]
    if inner:
        before: Any = OmegaConf.to_container(phase[place])
        OmegaConf.update(phase, place, before | {inner: change.value}, merge=False)
    else:
        OmegaConf.update(phase, place, change.value, merge=False)
    return merged


def as_written(config: Config) -> str:
    """A config as YAML that gives the same config again; a ``${key}`` stays what it was in the file."""
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(config)))
    for key, value in config.references:
        OmegaConf.update(tree, key, value)
    return OmegaConf.to_yaml(tree)


def _check_sections(merged: Any, key: str, override: str) -> None:
    """A key of a section that is null would bring the section back, all other keys at their defaults."""
    from omegaconf import OmegaConf

    names = key.split(".")
    for section in (".".join(names[:count]) for count in range(1, len(names))):
        if OmegaConf.select(merged, section) is None:
            raise ConfigError(
                f"override {override!r}: {section} is null, so it has no keys; leave it out, or write "
                f"{section}={{}} before it"
            )


def _references(values: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key → text, for every text of a config that refers to other keys."""
    if isinstance(values, str):
        return {prefix: values} if "${" in values else {}
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found: dict[str, str] = {}
    for key, value in items:
        found |= _references(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _check_references(values: Any, where: str) -> None:
    """A config may refer to its own keys and to nothing else: a resolver could read the environment or files."""
    for key, text in _references(values).items():
        if "${" in OWN_KEY.sub("", text):
            raise ConfigError(
                f"{where}: {key}: {text!r}: only keys of the config can be referred to, as in ${{name}}; give other "
                f'values on the command line: {key}="$VARIABLE"'
            )


def _given_whole(key: str, change: Any) -> list[str]:
    """Keys whose value is a mapping that an override of ``key`` gives as a whole, so that it replaces the old one."""
    from omegaconf import OmegaConf

    names = [name for name in all_keys() if f"{name}.".startswith(f"{key}.")]
    return [name for name in names if OmegaConf.is_dict(OmegaConf.select(change, name))]


def _check_keys(values: Any, schema: type, where: str, prefix: str = "") -> None:
    """Every key must be a field of the schema; a section must be a mapping."""
    known = {item.name: item for item in dataclasses.fields(schema)}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in RENAMED:
            raise ConfigError(f"{where}: {name} is now {RENAMED[name]}")
        if name in REMOVED:
            raise ConfigError(f"{where}: {name} is gone: {REMOVED[name]}")
        if key not in known:
            near = difflib.get_close_matches(name, all_keys(), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; keys here are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {name}{hint}")
        if section := section_of(known[key]):
            if value is None and may_be_null(known[key]):
                continue
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {name} is a section with keys of its own, not {value!r}")
            _check_keys(value, section, where, f"{name}.")
        else:
            _check_container(known[key], value, f"{where}: {name}")


def _check_container(item: dataclasses.Field[Any], value: Any, where: str) -> None:
    """OmegaConf merges no list into a mapping, nor the reverse, and does not say which key it was."""
    default = None if item.default_factory is dataclasses.MISSING else item.default_factory()
    for kind, other, wanted in ((dict, list, "a mapping of names to values"), (list, dict, "a list")):
        if isinstance(default, kind) and isinstance(value, other):
            raise ConfigError(f"{where}: must be {wanted}, is {value!r}")


def _explain(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    message = _one_line(error)
    return f"{key}: {message}" if key else message


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    full_key:")[0].split())
