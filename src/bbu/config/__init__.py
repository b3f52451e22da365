"""Typed configuration: YAML + dotted overrides → dataclasses, checked.

schema.py: every key, its default and meaning. checks.py: ranges and choices. load.py: reading.
"""

from bbu.config.checks import AT_LEAST_ONE, CHOICES, FRACTIONS, NOT_NEGATIVE, all_keys, check_values, value_at
from bbu.config.load import load_config
from bbu.config.schema import (
    COMPILED_PARTS,
    GROUP_NAMES,
    AugmentConfig,
    Config,
    CurriculumConfig,
    DataConfig,
    DetectionConfig,
    EpisodesConfig,
    EvaluationConfig,
    LearningRates,
    LoraConfig,
    LossConfig,
    ModelConfig,
    SamplingConfig,
    SourceConfig,
    TrainingConfig,
)

__all__ = [
    "AT_LEAST_ONE",
    "CHOICES",
    "COMPILED_PARTS",
    "FRACTIONS",
    "GROUP_NAMES",
    "NOT_NEGATIVE",
    "AugmentConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "DetectionConfig",
    "EpisodesConfig",
    "EvaluationConfig",
    "LearningRates",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "SamplingConfig",
    "SourceConfig",
    "TrainingConfig",
    "all_keys",
    "check_values",
    "load_config",
    "value_at",
]
