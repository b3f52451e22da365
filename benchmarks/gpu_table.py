"""The figures that benchmarks/gpu.py is about, their aims, and their row in the table of docs/benchmarks/README.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bbu.jsonl import atomic_writer

NOTHING = "–"
NOT_MEASURED = "No row has been measured yet."
EMPTY_ROW = "| *not measured yet* |"  # how the template row starts
MODES = ("kept", "selective", "recomputed")  # as in gpu_model, which imports torch
OWN_KERNELS = ("packed", "compiled")  # arms with torch's kernels alone
PLAIN_CONFIG = "configs/bccd.yaml"  # whose steps a second have an aim
# One H100. Lowest or highest value of a figure of the headline.
AIMS: dict[str, tuple[str, float]] = {
    "mfu_selective": (">=", 0.40),
    "mfu_selective_flash_3": (">=", 0.45),
    "detection_share": ("<=", 0.06),
    "bccd_steps_a_second": (">=", 25),
    "speedup_vs_padded": (">=", 2.0),
    "activation_ratio": ("<=", 0.6),
    "syncs_outside_matcher": ("<=", 0),
}


def headline(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that matter; None where a part did not get that far.

    Comparisons are of the way to treat activations in which `packed` trains on most tokens a second and which was
    compared with transformers' class; other figures without a mode in their name of the fastest.
    """
    step, train = parts.get("step", {}), parts.get("train", {})
    modes = {name: step.get(name) or {} for name in MODES}
    rates: dict[str, float | None] = {name: _arm(mode, "packed", "tokens_a_second") for name, mode in modes.items()}
    best = max(MODES, key=lambda name: rates[name] or 0.0)
    with_padded = [name for name in MODES if "speedup_vs_padded" in modes[name]]
    compared = modes[max(with_padded, key=lambda name: rates[name] or 0.0)] if with_padded else {}
    waits = [(parts.get("syncs", {}).get(name) or {}).get("outside_matcher_a_step") for name in MODES]
    reached = [mfu for arm in OWN_KERNELS if (mfu := _arm(modes["selective"], arm, "mfu")) is not None]
    return {
        "no_bleed": parts.get("no_bleed", {}).get("passed"),
        "syncs_outside_matcher": None if None in waits else max(waits),
        "mfu": _arm(modes[best], "packed", "mfu"),
        "mfu_objective": _arm(modes[best], "objective", "mfu"),
        "mfu_selective": max(reached, default=None),
        "mfu_selective_flash_3": _arm(modes["selective"], "flash_3", "mfu"),
        "packed_equals_padded": step.get("packed_equals_padded"),
        "speedup_vs_padded": compared.get("speedup_vs_padded"),
        "speedup_vs_best_stock": compared.get("speedup_vs_best_stock"),
        "compiled_speedup_vs_best_stock": modes["selective"].get("compiled_speedup_vs_best_stock"),
        "activation_ratio": compared.get("activation_ratio"),
        "detection_share": modes["selective"].get("detection_share", modes[best].get("detection_share")),
        "samples_a_second": _arm(modes[best], "packed", "samples_a_second"),
        "tokens_a_second": rates[best],
        "bccd_steps_a_second": train.get("steps_a_second") if train.get("config") == PLAIN_CONFIG else None,
        "largest_pack_tokens": {name: (parts.get("largest_pack", {}).get(name) or {}).get("tokens") for name in MODES},
        "failed_arms": failed_arms(step),
        "all_parts_ended": all(part.get("ended") == "ok" for part in parts.values()),
    }


def _arm(mode: Mapping[str, Any], arm: str, key: str) -> Any:
    return ((mode.get("arms") or {}).get(arm) or {}).get(key)


def failed_arms(step: Mapping[str, Any]) -> list[str]:
    """Arms of the step that ended with an error: one that does not fit, or whose package is missing, has not failed."""
    modes = {name: (step.get(name) or {}).get("arms") or {} for name in MODES}
    return [
        f"{arm} ({mode})" for mode, arms in modes.items() for arm, found in arms.items() if "error" in (found or {})
    ]


def aims(figures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each aim beside its figure, and whether it is met (None: not measured)."""
    return {
        name: {"aim": f"{sign} {limit:g}", "measured": figures.get(name), "met": _met(figures.get(name), sign, limit)}
        for name, (sign, limit) in AIMS.items()
    }


def _met(value: float | None, sign: str, limit: float) -> bool | None:
    if value is None:
        return None
    return value >= limit if sign == ">=" else value <= limit


def with_aims(beside: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines for a terminal."""
    said = {True: "met", False: "missed", None: "not measured"}
    return "\n".join(
        f"{name:24} {_said(each['measured'], '{:.3f}'.format):>8}   aim {each['aim']:8} {said[each['met']]}"
        for name, each in beside.items()
    )


# ---------------------------------------------------------------- the table


def add_row(found: Mapping[str, Any], measured: Path, template: Path) -> Path:
    """Add the row of what was found to the table beside its JSON; a folder without one starts from the template.

    Returns:
        The table's path.
    """
    path = measured.parent / "README.md"
    text = (path if path.exists() else template).read_text(encoding="utf-8")
    with atomic_writer(path) as file:
        file.write(with_row(text, row(found, measured.name)))
    return path


def with_row(text: str, new: str) -> str:
    """The page with a row more, or again; the first one takes the place of the template row and what is said of it."""
    same = new.partition(")")[0]  # the link to its JSON
    lines = text.replace(NOT_MEASURED, "").splitlines()
    lines = [line for line in lines if not line.startswith((EMPTY_ROW, same))]
    last = max(number for number, line in enumerate(lines) if line.startswith("|"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join([*lines[: last + 1], new, *lines[last + 1 :]])) + "\n"


def row(found: Mapping[str, Any], name: str) -> str:
    """A row of the table, in the order of its header."""
    parts, main = found["parts"], found["headline"]
    facts, step = (parts.get(part, {}) for part in ("facts", "step"))
    largest = main["largest_pack_tokens"]
    cells = [
        f"[{found['date']}]({name})" + (" (tiny)" if found["tiny"] else "") + (" (quick)" if found["quick"] else ""),
        facts.get("gpu"),
        f"{facts.get('torch', NOTHING)} / {facts.get('transformers', NOTHING)}",
        _no_bleed(parts.get("no_bleed", {})),
        _said(main["syncs_outside_matcher"], "{:g}".format),
        _each(step, lambda mode: _arm(mode, "packed", "mfu"), "{:.3f}".format),
        _each(step, lambda mode: _arm(mode, "compiled", "mfu"), "{:.3f}".format),
        _each(step, lambda mode: _arm(mode, "packed", "samples_a_second"), "{:.2f}".format),
        _each(step, lambda mode: mode.get("speedup_vs_padded"), "{:.2f}".format)
        + ("" if main["packed_equals_padded"] is not False else " **(states differ)**"),
        _each(step, lambda mode: mode.get("speedup_vs_best_stock"), "{:.2f}".format),
        _each(step, lambda mode: mode.get("activation_ratio"), "{:.2f}".format),
        _each(step, lambda mode: mode.get("detection_share"), "{:.1%}".format),
        _training(parts.get("train", {})),
        " / ".join(_said(largest[mode], "{:,}".format) for mode in MODES),
        _ended(parts, main["failed_arms"]),
    ]
    return f"| {' | '.join(str(cell) if cell is not None else NOTHING for cell in cells)} |"


def _ended(parts: Mapping[str, Any], arms: list[str]) -> str:
    """`all`, or the parts that did not end; and the arms that failed."""
    missing = ", ".join(name for name, part in parts.items() if part["ended"] != "ok")
    said = f"not {missing}" if missing else "all"
    return f"{said}; arms failed: {', '.join(arms)}" if arms else said


def _no_bleed(part: Mapping[str, Any]) -> str:
    """Whether packing changes a sample, and how many of the backends' own cases are not a plain softmax's."""
    parity = part.get("parity", {})
    failed = f"; {len(parity['failures'])} of {parity['ran']} backend cases differ" if parity.get("failures") else ""
    said = {True: "yes", False: "**no**", None: NOTHING}[part.get("passed")]
    return said + failed


def _said(value: Any, write: Callable[[Any], str]) -> str:
    return NOTHING if value is None else write(value)


def _each(part: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any], write: Callable[[Any], str]) -> str:
    """One figure for each of MODES."""
    return " / ".join(_said(read(part.get(name) or {}), write) for name in MODES)


def _training(part: Mapping[str, Any]) -> str:
    """Steps a second and AP50, and of which config where it is another one than the aim's."""
    if "steps_a_second" not in part:
        return NOTHING
    rate, found = (
        _said(part.get(key), write) for key, write in (("steps_a_second", "{:.1f}".format), ("AP50", "{:.3f}".format))
    )
    other = "" if part.get("config") == PLAIN_CONFIG else f" ({part.get('config')})"
    return f"{rate}, {found} in {part['train_seconds']:.0f} s{other}"
