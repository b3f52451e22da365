"""Arrange parts in a photo: units with screws and ports, ground bars with lugs, baffles, stickers, cable bends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from data_conversion.cabinet import backdrop, cables, fittings, panels
from data_conversion.cabinet.brush import Brush, Point, Pose, Sprite, bounds, settle
from data_conversion.cabinet.catalogue import CPRI, GROUND, SCREW

SHORTEST, LONGEST = 224, 448  # sides of a photo
MOST = 16  # parts per photo
GAP = 4  # pixels between parts that are not attached to each other
EDGE = 3  # pixels between a part and the photo's edge

# Kind → its states: (cumulative fraction of the kind, state, what draws it).
# Every state stays above 3 % of all parts, so that 600 photos teach it.
STATES: dict[str, list[tuple[float, str, Callable[..., Brush]]]] = {
    SCREW: [(0.26, "未拧紧", fittings.loose_screw), (1, "连接正确", fittings.tight_screw)],
    GROUND: [(0.25, "露铜", fittings.bare_lug), (0.5, "生锈", fittings.rusty_lug), (1, "连接正确", fittings.sound_lug)],
    CPRI: [(0.36, "连接错误", fittings.half_out_plug), (1, "连接正确", fittings.seated_plug)],
    "BBU品牌": [(0.48, "中兴", panels.zte_unit), (1, "华为", panels.huawei_unit)],
    "挡风板": [(0.42, "缺失", panels.missing_baffle), (1, "安装正确", panels.fitted_baffle)],
    "标签": [(0.34, "无法识别", panels.illegible_label), (1, "可识别", panels.legible_label)],
    "线缆": [(0.48, "铠装", cables.spiral_armour), (1, "蛇形管", cables.corrugated_tube)],
}


@dataclass(frozen=True)
class Part:
    """A drawn part: raw label, geometry in displayed pixels, and image.

    Args:
        points: two corners of a box, four corners of a Quad, or the vertices of a line.
    """

    label: str
    points: tuple[Point, ...]
    sprite: Sprite

    @property
    def box(self) -> tuple[float, float, float, float]:
        """xyxy around ``points``."""
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass
class Scene:
    """A photo being arranged.

    Args:
        rng: random stream of the layout.
        looks: seed of the backdrop, separate so that a scene can be composed again, part by part.
        width, height: displayed size in pixels.
        u: nominal width of screws, lugs and plugs.
        turn, shear: the camera's orientation.
    """

    rng: np.random.Generator
    looks: np.random.SeedSequence
    width: int
    height: int
    u: float
    turn: float
    shear: float
    parts: list[Part] = field(default_factory=list)
    fixtures: list[Sprite] = field(default_factory=list)  # drawn under the parts, not annotated
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    plug_ends: list[Point] = field(default_factory=list)

    def pose(self, x: float, y: float, turn: float = 0.0) -> Pose:
        return Pose(x, y, self.turn + turn, self.shear)

    def free(self, region: Sequence[float], gap: float = GAP) -> bool:
        """Whether an xyxy region lies inside the photo and clear of all placed parts."""
        x1, y1, x2, y2 = region
        if x1 < EDGE or y1 < EDGE or x2 > self.width - EDGE or y2 > self.height - EDGE:
            return False
        return all(x2 + gap <= a or c + gap <= x1 or y2 + gap <= b or d + gap <= y1 for a, b, c, d in self.taken)

    def find(self, half_width: float, half_height: float, turn: float = 0.0) -> Pose | None:
        """A free pose for a part of this extent in photo pixels, or None after 40 attempts."""
        for _ in range(40):
            pose = self.pose(self.rng.uniform(0, self.width), self.rng.uniform(0, self.height), turn)
            if self.free(bounds(half_width, half_height, pose)):
                return pose
        return None

    def add(self, kind: str, pose: Pose, *size: Any, local: Sequence[Point] = ()) -> None:
        """Draw and place a part in one of its states.

        Args:
            size: what the drawing function takes besides the random stream.
            local: points of the part's geometry in part pixels; none: the box of its pixels.
        """
        chance = self.rng.random()
        state, draw = next((state, draw) for share, state, draw in STATES[kind] if chance < share)
        sprite = settle(draw(self.rng, *size), pose)
        x1, y1, x2, y2 = sprite.box
        points = tuple(pose.points(local)) if local else ((float(x1), float(y1)), (float(x2), float(y2)))
        self.parts.append(Part(f"{kind}/{state}", points, sprite))
        self.taken.append((x1, y1, x2, y2))


def _place_unit(scene: Scene, budget: int) -> int:
    """A BBU with screws on its ears and plugs in its port row; returns the number of parts placed."""
    rng, u = scene.rng, scene.u
    width = min(scene.width * rng.uniform(0.68, 0.94), 15 * u)
    height = rng.uniform(2.5, 3.4) * u
    hang = 1.3 * u  # the plugs reach below the unit
    pose = scene.find(width / 2, height / 2 + hang)
    if pose is None:
        return 0
    pose = pose.child(0, -hang)
    ear = 1.2 * u
    scene.add("BBU品牌", pose, width, height, ear, 0.95 * u)
    spots = [(side * (width - ear) / 2, level * height * 0.26) for side in (-1, 1) for level in (-1, 1)]
    screws = min(int(rng.choice(5, p=[0.34, 0.22, 0.24, 0.1, 0.1])), budget - 1)
    for index in rng.permutation(4)[:screws]:
        x, y = spots[index]
        scene.add(SCREW, pose.child(x, y, rng.uniform(-0.1, 0.1)), u)
    room = int((width - 2 * ear) / (1.25 * u))
    plugs = min(int(rng.choice(5, p=[0.17, 0.25, 0.28, 0.18, 0.12])), room, budget - 1 - screws)
    for index in rng.permutation(room)[:plugs]:
        x = (index - (room - 1) / 2) * (width - 2 * ear) / room
        plug = pose.child(x, height / 2 + 0.15 * u, rng.uniform(-0.05, 0.05))
        scene.add(CPRI, plug, u)
        scene.plug_ends.extend(plug.points([(0.0, 0.9 * u)]))
    return 1 + screws + plugs


def _place_baffle(scene: Scene, budget: int) -> int:
    rng = scene.rng
    width = min(scene.width * rng.uniform(0.34, 0.75), 9 * scene.u)
    height = rng.uniform(1.1, 1.6) * scene.u
    pose = scene.find(width / 2, height / 2)
    if pose is None:
        return 0
    scene.add("挡风板", pose, width, height)
    return 1


def _place_ground_bar(scene: Scene, budget: int) -> int:
    """A bar with one to four lugs side by side."""
    rng, u = scene.rng, scene.u
    count = min(int(rng.integers(1, 5)), budget)
    width, pitch = count * 1.25 * u, 1.25 * u
    pose = scene.find(width / 2, 1.2 * u)
    if pose is None:
        return 0
    bar = settle(panels.ground_bar(rng, width + 0.3 * u, 1.3 * u), pose.child(0, -0.6 * u))
    scene.fixtures.append(bar)
    for index in range(count):
        x = (index - (count - 1) / 2) * pitch
        scene.add(GROUND, pose.child(x, 0, rng.uniform(-0.08, 0.08)), u)
    return count


def _place_label(scene: Scene, budget: int) -> int:
    rng = scene.rng
    width, height = rng.uniform(1.9, 3.0) * scene.u, rng.uniform(1.0, 1.35) * scene.u
    pose = scene.find(width / 2, height / 2, rng.uniform(-0.26, 0.26))
    if pose is None:
        return 0
    corners = [(sx * width / 2, sy * height / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    scene.add("标签", pose, width, height, local=corners)
    return 1


def _place_cable(scene: Scene, budget: int) -> int:
    rng = scene.rng
    thick = rng.uniform(0.4, 0.5) * scene.u
    points = cables.arc(rng, rng.uniform(1.0, 1.7) * scene.u)
    xs, ys = zip(*points, strict=True)
    pose = scene.find(max(xs) + thick / 2, max(ys) + thick / 2)
    if pose is None:
        return 0
    scene.add("线缆", pose, points, thick, local=points)
    return 1


def _place_screw(scene: Scene, budget: int) -> int:
    pose = scene.find(0.55 * scene.u, 0.55 * scene.u, scene.rng.uniform(-0.1, 0.1))
    if pose is None:
        return 0
    scene.add(SCREW, pose, scene.u)
    return 1


PLACERS: dict[Callable[[Scene, int], int], float] = {  # with the probability of each attempt after the unit
    _place_baffle: 0.27,
    _place_ground_bar: 0.19,
    _place_label: 0.2,
    _place_cable: 0.22,
    _place_screw: 0.1,
}


def arrange(seed: np.random.SeedSequence) -> Scene:
    """A new scene of 1 to MOST parts; the same seed gives the same scene.

    Raises:
        RuntimeError: no part fits (cannot happen with the present sizes).
    """
    layout, looks = seed.spawn(2)
    rng = np.random.default_rng(layout)
    width, height = (int(rng.integers(SHORTEST, LONGEST + 1)) for _ in range(2))
    u = float(np.clip(min(width, height) * rng.uniform(0.088, 0.115), 28, 44))
    scene = Scene(rng, looks, width, height, u, rng.uniform(-0.07, 0.07), rng.uniform(-0.06, 0.06))
    wanted = int(np.clip(round(rng.gamma(3.8, 2.05)), 1, MOST))
    placed = _place_unit(scene, wanted) if rng.random() < 0.84 else 0
    chances = np.array(list(PLACERS.values()))
    for _ in range(60):
        if placed >= wanted:
            break
        place = list(PLACERS)[rng.choice(len(PLACERS), p=chances / chances.sum())]
        placed += place(scene, wanted - placed)
    if not scene.parts:
        raise RuntimeError(f"no part fits a {width}x{height} photo; widen SHORTEST or lessen the parts' sizes")
    return scene


def _shadow(image: Image.Image, sprite: Sprite, drop: tuple[float, float]) -> None:
    """Draw a soft shadow beside a part."""
    alpha = sprite.image.getchannel("A")
    padded = Image.new("L", (alpha.width + 8, alpha.height + 8))
    padded.paste(alpha.point([round(value * 0.45) for value in range(256)]), (4, 4))
    soft = padded.filter(ImageFilter.GaussianBlur(2))
    image.paste((10, 10, 12), (sprite.left - 4 + round(drop[0]), sprite.top - 4 + round(drop[1])), soft)


def compose(scene: Scene, *, only: Sequence[int] | None = None, shadows: bool = True) -> Image.Image:
    """The scene as RGB, before the camera's effects.

    Args:
        only: indices of the parts to draw, all by default; with ``shadows`` off, tests measure a part's extent by it.
    """
    rng = np.random.default_rng(scene.looks)
    image = backdrop.backdrop(rng, scene.width, scene.height, scene.turn)
    drop = (rng.uniform(-2, 2), rng.uniform(1, 3))
    backdrop.loose_wires(rng, image, scene.plug_ends)
    drawn = [part.sprite for i, part in enumerate(scene.parts) if only is None or i in only]
    for sprite in [*scene.fixtures, *drawn]:
        if shadows:
            _shadow(image, sprite, drop)
        image.paste(sprite.image, (sprite.left, sprite.top), sprite.image)
    return image
