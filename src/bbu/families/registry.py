"""The supported families. A new one is a folder, a line here and its parity test (docs/add_a_backbone.md).

Imports torch only when a backbone class is requested.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from bbu.errors import ConfigError, RecordError
from bbu.families.ovis2_5.codec import Ovis25Options, Ovis25Sizes
from bbu.families.qwen2_5_vl.codec import Qwen25VLSizes
from bbu.families.qwen3_vl.codec import Qwen3VLSizes
from bbu.jsonl import decode_json

if TYPE_CHECKING:
    from bbu.families.base import Backbone


@dataclass
class NoOptions:
    """``model.options`` of a family that has none."""


@dataclass(frozen=True)
class Family:
    """A family's class, sizes and limits, known without its weights.

    Args:
        backbone: ``module:class``.
        sizes: dataclass of ``model.scratch``; every field has a default, and one is ``vocab_size``.
        min_pixels, max_pixels: limits of a resized photo's area, used if the config has 0.
        options: dataclass of ``model.options``; every field is a bool with a default.
    """

    backbone: str
    sizes: Any
    min_pixels: int
    max_pixels: int
    options: Any = NoOptions


FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": Family("bbu.families.qwen2_5_vl.backbone:Qwen25VL", Qwen25VLSizes, 56 * 56, 1280 * 28 * 28),
    "qwen3_vl": Family("bbu.families.qwen3_vl.backbone:Qwen3VL", Qwen3VLSizes, 64 * 64, 1280 * 32 * 32),
    "ovis2_5": Family(
        "bbu.families.ovis2_5.backbone:Ovis25", Ovis25Sizes, 448 * 448, 1792 * 1792, options=Ovis25Options
    ),
}
DEFAULT_FAMILY = "qwen2_5_vl"
AUTO = "auto"  # in place of a family's name: that of the model folder


def family_of_folder(path: str) -> str:
    """The family of a model folder: ``model_type`` of its config.json.

    Raises:
        ConfigError: the path is no local folder with a config.json, or the model is of no supported family.
    """
    names, where = ", ".join(FAMILIES), f"model.family={AUTO}: reads model_type in config.json of model.path"
    if not path:
        raise ConfigError(f"{where}, which is empty; name a model folder, or one of {names}")
    file = Path(path) / "config.json"
    try:
        values = decode_json(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise ConfigError(f"{where}; {file}: {error.strerror}; name a model folder, or one of {names}") from None
    except (UnicodeDecodeError, RecordError) as error:
        raise ConfigError(f"{where}; {file} is not JSON: {error}") from None
    found = values.get("model_type") if isinstance(values, dict) else None
    if found not in FAMILIES:
        raise ConfigError(f"{where}; {file} has {found!r}, which is not one of {names}")
    return str(found)


def family_named(name: str) -> Family:
    """Look up a family.

    Raises:
        ConfigError: unknown family.
    """
    if name not in FAMILIES:
        raise ConfigError(f"model.family: {name!r} is not {AUTO} or one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def backbone_class(name: str) -> type[Backbone]:
    """Import the backbone class of a family.

    Raises:
        ConfigError: unknown family.
    """
    return resolve_name(family_named(name).backbone)  # type: ignore[no-any-return]


def scratch_sizes(name: str, options: Mapping[str, Any]) -> Any:
    """``model.scratch`` as the family's sizes; missing keys take their defaults.

    Raises:
        ConfigError: unknown family or key, or an invalid value.
    """
    sizes = family_named(name).sizes
    known = {item.name: item for item in dataclasses.fields(sizes)}
    for key, value in options.items():
        _check_known("model.scratch", key, known, f"a size of {name}")
        several = known[key].default_factory is not dataclasses.MISSING
        values = value if several and isinstance(value, list) else [value]
        least = 0 if several else 1
        if not all(type(size) is int and size >= least for size in values) or isinstance(value, list) != several:
            wanted = "a list of whole numbers" if several else "a whole number"
            raise ConfigError(f"model.scratch.{key}: must be {wanted}, at least {least}, is {value!r}")
    return sizes(**options)


def family_options(name: str, options: Mapping[str, Any]) -> Any:
    """``model.options`` as the family's options; missing keys take their defaults.

    Raises:
        ConfigError: unknown family or key, or a value that is not true or false.
    """
    kind = family_named(name).options
    known = [item.name for item in dataclasses.fields(kind)]
    for key, value in options.items():
        _check_known("model.options", key, known, f"an option of {name}")
        if type(value) is not bool:
            raise ConfigError(f"model.options.{key}: must be true or false, is {value!r}")
    return kind(**options)


def _check_known(where: str, key: str, known: Collection[str], what: str) -> None:
    if key in known:
        return
    near = difflib.get_close_matches(str(key), known, n=1)
    others = f"keys here are {', '.join(known)}" if known else "it has none"
    raise ConfigError(f"{where}.{key}: is not {what}; " + (f"did you mean {near[0]}?" if near else others))
