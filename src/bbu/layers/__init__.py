"""Layers that blocks of any family may use."""
