"""Typed configuration: YAML + dotted overrides → dataclasses, checked.

schema.py: every key with its default, range or choices, and meaning. checks.py: checking. load.py: reading, old keys.
"""

from bbu.config.checks import all_keys, check_values, value_at
from bbu.config.load import REMOVED, RENAMED, as_written, load_config
from bbu.config.phases import final_config, phase_configs, schedule_table
from bbu.config.schema import (
    COMPILED_PARTS,
    GROUP_NAMES,
    AnswersConfig,
    AugmentConfig,
    ClosingConfig,
    Config,
    CurriculumConfig,
    DataConfig,
    DetectionConfig,
    EarlyStoppingConfig,
    EpisodesConfig,
    EvaluationConfig,
    LearningRates,
    LoraConfig,
    LossConfig,
    ModelConfig,
    PhaseConfig,
    ReplayConfig,
    SamplingConfig,
    SourceConfig,
    TrainingConfig,
)

__all__ = [
    "COMPILED_PARTS",
    "GROUP_NAMES",
    "REMOVED",
    "RENAMED",
    "AnswersConfig",
    "AugmentConfig",
    "ClosingConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "DetectionConfig",
    "EarlyStoppingConfig",
    "EpisodesConfig",
    "EvaluationConfig",
    "LearningRates",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "PhaseConfig",
    "ReplayConfig",
    "SamplingConfig",
    "SourceConfig",
    "TrainingConfig",
    "all_keys",
    "as_written",
    "check_values",
    "final_config",
    "load_config",
    "phase_configs",
    "schedule_table",
    "value_at",
]
