"""Run a trained model: on photos from Python, or on many files."""

from bbu.inference.model_folder import DetectionResult, ImageLike, Inference, TextResult

__all__ = ["DetectionResult", "ImageLike", "Inference", "TextResult"]
