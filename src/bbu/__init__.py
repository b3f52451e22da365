"""BBU: find every part in a photo, describe its state in words, and say how sure it is."""

__version__ = "0.1.0"
