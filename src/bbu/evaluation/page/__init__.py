"""An evaluation as one HTML page that opens from disk: metrics, curves, and every photo with its boxes."""

from bbu.evaluation.page.render import PageSummary, write_report

__all__ = ["PageSummary", "write_report"]
