"""The labels of drawn photos as annotators write them: raw label → (English label, geometry)."""

from __future__ import annotations

BOX, QUAD, LINE = "ExtentPolygon", "Quad", "LineString"

SCREW = "连接点（螺丝）/BBU安装螺丝"
GROUND = "连接点（螺丝）/地排处螺丝"
CPRI = "连接点（螺丝）/CPRI光缆和BBU连接点"

# The taxonomy's token map later turns 连接点（螺丝） into 螺丝连接点, and so on.
LABELS: dict[str, tuple[str, str]] = {
    f"{SCREW}/连接正确": ("connection_point/install_screw/install_screw_true", BOX),
    f"{SCREW}/未拧紧": ("connection_point/install_screw/install_screw_loose", BOX),
    f"{GROUND}/连接正确": ("connection_point/ground_screw/ground_screw_true", BOX),
    f"{GROUND}/露铜": ("connection_point/ground_screw/ground_screw_copper_exposed", BOX),
    f"{GROUND}/生锈": ("connection_point/ground_screw/ground_screw_rusty", BOX),
    f"{CPRI}/连接正确": ("connection_point/cpri/cpri_true", BOX),
    f"{CPRI}/连接错误": ("connection_point/cpri/cpri_false", BOX),
    "BBU品牌/华为": ("bbu_brand/huawei", BOX),
    "BBU品牌/中兴": ("bbu_brand/zte", BOX),
    "挡风板/安装正确": ("bbu_shield/shield_true", BOX),
    "挡风板/缺失": ("bbu_shield/shield_missing", BOX),
    "标签/可识别": ("label/legible", QUAD),
    "标签/无法识别": ("label/illegible", QUAD),
    "线缆/蛇形管": ("cable/corrugated_tube", LINE),
    "线缆/铠装": ("cable/armoured", LINE),
}
