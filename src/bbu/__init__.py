"""BBU: detect every object in a photo, describe its state in words, and score it."""

__version__ = "0.1.0"
