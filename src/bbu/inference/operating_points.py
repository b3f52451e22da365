"""Score thresholds for each description, as ``bbu thresholds`` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.errors import UserError
from bbu.jsonl import decode_json
from bbu.records import PredictedObject


@dataclass(frozen=True)
class OperatingPoints:
    """A threshold for each description.

    Args:
        default: for descriptions without one of their own.
    """

    thresholds: Mapping[str, float]
    default: float

    @classmethod
    def load(cls, path: str | Path) -> OperatingPoints:
        """Read ``{"points": {description: {"threshold"}}, "default": {"threshold"}}``; other keys are ignored.

        Raises:
            UserError: missing, not JSON, or a threshold is not a number in [0, 1].
        """
        try:
            value = decode_json(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}; write it with `bbu thresholds`") from None
        points = value.get("points") if isinstance(value, dict) else None
        if not isinstance(points, dict) or "default" not in value:
            raise UserError(f"{path}: needs 'points' and 'default'; write it with `bbu thresholds`")
        thresholds = {desc: _threshold(path, f"points[{desc!r}]", point) for desc, point in points.items()}
        return cls(thresholds, _threshold(path, "default", value["default"]))

    def passed(self, items: Iterable[PredictedObject]) -> tuple[PredictedObject, ...]:
        """The predictions that reach the threshold of their description."""
        return tuple(item for item in items if item.score >= self.thresholds.get(item.desc, self.default))


def _threshold(path: str | Path, name: str, point: Any) -> float:
    found = point.get("threshold") if isinstance(point, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise UserError(f"{path}: {name}.threshold must be a number in [0, 1], is {found!r}; write it again")
    return float(found)
