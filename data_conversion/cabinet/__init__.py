"""Drawn cabinet photos: one module each for the brush, the kinds of part, the backdrop and the scene."""
