"""The newer BBU label scheme: one key per question → one slash path.

In the table a question belongs to an object type and its answer to a level. Answers of one level are joined by commas
in table order; ``special_situation`` is a free remark and comes last.

    {"connect_point_type": "地排处螺丝", "connect_point_situation": ["未拧紧", "生锈"]}
        → connect_point/地排处螺丝/未拧紧,生锈
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bbu.errors import RecordError
from bbu.taxonomy import ATTRIBUTE_SEPARATOR, SEPARATOR

# question key → (object type, None for any; level of the answer, where level 0 is the type)
QUESTIONS: dict[str, tuple[str | None, int]] = {
    "bbu_brand": ("bbu", 1),
    "bbu_stituation": ("bbu", 2),  # spelt so by the annotation tool
    "bbu_situation": ("bbu", 2),
    "bbu_equipment": ("bbu", 2),
    "connect_point_type": ("connect_point", 1),
    "connect_point_situation": ("connect_point", 2),
    "connect_point_check": ("connect_point", 2),
    "fiber_protection": ("fiber", 1),
    "fiber_bend_radius": ("fiber", 2),
    "special_situation": (None, 3),
}


def unknown_questions(content: Mapping[str, Any]) -> list[str]:
    """Answered keys that are not in the table."""
    return [key for key, value in content.items() if key not in QUESTIONS and key != "label" and value]


def answers_to_path(content: Mapping[str, Any], object_type: str, where: str, field: str) -> str:
    """Answers of one object → its slash path; "" if no question is answered.

    Args:
        object_type: the type if the source names it, or "" to take it from the questions.

    Raises:
        RecordError: an answer that is not text, or questions of two object types in one object.
    """
    levels: dict[int, list[str]] = {}
    types: dict[str, None] = {}
    for key, (question_type, level) in QUESTIONS.items():
        answers = _answers(content.get(key), where, f"{field}.{key}")
        if answers:
            levels.setdefault(level, []).extend(answers)
            if question_type:
                types[question_type] = None
    if len(types) > 1:
        raise RecordError(where, field, f"answers questions of several object types: {', '.join(types)}")
    head = object_type or next(iter(types), "")
    tail = [ATTRIBUTE_SEPARATOR.join(levels[level]) for level in sorted(levels)]
    return SEPARATOR.join(part for part in (head, *tail) if part)


def _answers(value: Any, where: str, field: str) -> list[str]:
    """One or several answers; none for an unanswered question."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    for item in items:
        if not isinstance(item, str):
            raise RecordError(where, field, f"must be text or a list of texts, is {value!r}")
    return [item.strip() for item in items if item.strip()]
