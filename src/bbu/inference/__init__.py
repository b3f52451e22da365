"""Use a trained model: one photo from Python, or many into a file."""

from bbu.inference.model_folder import DetectionResult, ImageLike, Inference, TextResult

__all__ = ["DetectionResult", "ImageLike", "Inference", "TextResult"]
