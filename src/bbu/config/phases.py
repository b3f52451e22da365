"""A run in phases: consecutive trainings that differ in who learns, for how long, at which rates and on what.

Each is a config of its own, derived from the whole one, that starts from the model of the phase before.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from bbu.config.checks import all_keys, check_values, value_at
from bbu.config.schema import DETECTION_GROUPS, GROUP_NAMES, Config, PhaseConfig
from bbu.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# What a run writes into its own folder, where the folders of its phases lie
TAKEN = ("data", "model", "pictures", "baselines", "profile", "stacks", "wandb", "tensorboard", "not_finite")
# Keys and sections that all phases share, and what a phase says in words of its own
SHARED = (
    "name", "output_dir", "seed", "data.source", "data.image_root", "model.family", "model.path", "model.tokenizer",
    "model.trust_remote_code", "model.scratch", "model.detection", "model.publish", "evaluation", "phases",
    "training.resume", "training.overwrite", "training.report_to", "training.deepspeed",
)  # fmt: skip
OWN_WORDS = {"training.max_steps": "steps", "model.freeze": "train", "model.last_blocks": "last_blocks",
             "training.learning_rates": "rates", "model.start": "the order of the phases"}  # fmt: skip


def phase_configs(config: Config) -> list[Config]:
    """The config of each phase, in order; empty without phases. Each is checked like any other.

    A phase writes into ``<output_dir>/<its name>`` and starts from ``<output_dir>/<the one before>/model``, the first
    one from model.start, if there is one.

    Raises:
        ConfigError: one line with the phase, what is wrong and the fix.
    """
    configs: list[Config] = []
    names: set[str] = set()
    for number, phase in enumerate(config.phases):
        _check_phase(phase, number, names, config)
        names.add(phase.name.lower())
        start = str(Path(configs[-1].output_dir) / "model") if configs else config.model.start
        configs.append(_config_of(config, phase, start))
    return configs


def final_config(config: Config) -> Config:
    """The config by which the finished model is scored: the last phase's, in the folder of the whole run."""
    if not config.phases:
        return config
    final = phase_configs(config)[-1]
    final.output_dir, final.phases, final.references = config.output_dir, config.phases, config.references
    return final


def schedule_table(config: Config) -> str:
    """The phases, a line each, and below it the keys that it sets."""
    rows = [("phase", "steps", "learns", "rates")]
    sets: list[list[str]] = [[]]
    for phase in config.phases:
        last = [f"last {count} of {group}" for group, count in phase.last_blocks.items()]
        rates = [f"{group} {rate:g}" for group, rate in phase.rates.items()]
        sets.append([f"    {key}: {value}" for key, value in phase.set.items()])
        learns = ", ".join([*phase.train, *last])
        rows.append((phase.name, str(phase.steps), learns, ", ".join(rates) or "training.learning_rates"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(line for first, more in zip(lines, sets, strict=True) for line in (first, *more))


def _check_phase(phase: PhaseConfig, number: int, names: set[str], config: Config) -> None:
    where = f"phases[{number}]"
    if not NAME.fullmatch(phase.name) or phase.name.startswith("checkpoint"):
        raise ConfigError(
            f"{where}.name: {phase.name!r} names a folder: letters, digits, - and _ alone, and not checkpoint…"
        )
    if phase.name.lower() in names or phase.name in TAKEN:
        whose = "another phase" if phase.name.lower() in names else "the run itself"
        raise ConfigError(f"{where}.name: {phase.name} is the folder of {whose} in {config.output_dir}; rename it")
    where = f"phases: {phase.name}"
    if not phase.train and not phase.last_blocks:
        raise ConfigError(f"{where}: names no group, so nothing would learn; list some of {', '.join(GROUP_NAMES)}")
    for key in ("train", "rates", "last_blocks"):
        for group in getattr(phase, key):
            _check_group(f"{where}: {key}", group, config)
    for group in phase.last_blocks:
        if group in phase.train:
            raise ConfigError(f"{where}: last_blocks: all of {group} learns (train); leave it out of one of them")
    for group in phase.rates:
        if group not in (*phase.train, *phase.last_blocks):
            raise ConfigError(
                f"{where}: rates: {group} does not learn in this phase; add it to train, or drop its rate"
            )
    for key in phase.set:
        _check_set(f"{where}: set", key)


def _check_group(where: str, group: str, config: Config) -> None:
    if group not in GROUP_NAMES:
        raise ConfigError(f"{where}: {group!r} is not one of {', '.join(GROUP_NAMES)}")
    if config.model.detection is None and group in DETECTION_GROUPS:
        raise ConfigError(f"{where}: {group} belongs to detection, and model.detection is null; leave it out")


def _check_set(where: str, key: str) -> None:
    def among(names: Any) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in names)

    if key not in all_keys():
        raise ConfigError(f"{where}: unknown key {key}")
    if among(SHARED):
        raise ConfigError(f"{where}: {key} is the same in all phases; set it outside of them")
    for name, word in OWN_WORDS.items():
        if among([name]):
            raise ConfigError(f"{where}: {key} follows from {word}; use that")


def _config_of(config: Config, phase: PhaseConfig, start: str) -> Config:
    made = copy.deepcopy(config)
    made.phases, made.references = [], ()
    made.output_dir = str(Path(config.output_dir) / phase.name)
    made.training.max_steps, made.model.start = phase.steps, start
    absent = () if config.model.detection else DETECTION_GROUPS
    made.model.freeze = [group for group in GROUP_NAMES if group not in (*phase.train, *absent)]
    made.model.last_blocks = dict(phase.last_blocks)
    for group, rate in phase.rates.items():
        setattr(made.training.learning_rates, group, rate)
    try:
        made = _with(made, phase.set)
        check_values(made)
    except ConfigError as error:
        raise ConfigError(f"phases: {phase.name}: {error}") from None
    return made


def _with(config: Config, values: dict[str, Any]) -> Config:
    """A config with some dotted keys set, of the types that the keys have."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not values:
        return config
    tree: Any = OmegaConf.structured(config)
    for key, value in values.items():
        try:
            OmegaConf.update(tree, key, value, merge=not isinstance(value_at(config, key), dict))
        except OmegaConfBaseException as error:
            raise ConfigError(f"set: {key}: {str(error).splitlines()[0]}") from None
    made = OmegaConf.to_object(tree)
    assert isinstance(made, Config)
    return made
