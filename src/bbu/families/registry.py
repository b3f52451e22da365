"""Backbone families. A new one is one file, one line here and its parity test (docs/add_a_backbone.md)."""

from bbu.families.base import Backbone
from bbu.families.qwen2_5_vl.backbone import Qwen25VL

BACKBONES: dict[str, type[Backbone]] = {
    Qwen25VL.family: Qwen25VL,
}
