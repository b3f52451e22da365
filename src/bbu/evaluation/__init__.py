"""Offline evaluation of saved predictions: records in, metrics out; needs no weights and imports no torch."""

from bbu.evaluation.metrics import evaluate
from bbu.evaluation.report import summary_table

__all__ = ["evaluate", "summary_table"]
