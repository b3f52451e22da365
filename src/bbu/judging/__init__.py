"""Verdicts on groups of photos, by rules over detections; from files, without weights: docs/verdicts.md."""
