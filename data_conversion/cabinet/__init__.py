"""Drawn cabinet photos: one module each for the brush, the kinds of parts, the backdrop and the scene.

A part is a piece of equipment in the cabinet, drawn and annotated as one object.
"""
