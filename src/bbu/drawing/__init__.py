"""Boxes and descriptions on photos, fonts and palettes, and what all HTML pages share; imports no torch."""
