"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923)."""
