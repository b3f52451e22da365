"""Planned packs, and the sample lengths that they are planned from."""
