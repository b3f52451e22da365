"""Ovis2.5: image tokens are soft choices from a visual vocabulary."""
