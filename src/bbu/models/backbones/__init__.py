"""Backbone families. A new one is one file, one line here and its parity test (docs/add_a_backbone.md)."""

from bbu.models.backbones.base import Backbone
from bbu.models.backbones.qwen2_5_vl import Qwen25VL

BACKBONES: dict[str, type[Backbone]] = {
    Qwen25VL.family: Qwen25VL,
}
