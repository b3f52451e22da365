"""The figures that benchmarks/gpu.py is about, and their row in the table of docs/benchmarks/README.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bbu.jsonl import atomic_writer, decode_json

NOTHING = "–"
NOT_MEASURED = "No row has been measured yet."
EMPTY_ROW = "| *not measured yet* |"  # how the template row starts
MODES = ("kept", "selective", "recomputed")  # as in gpu_model, which imports torch


def headline(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with an aim; None where a part did not get that far.

    Each is of the way to treat activations in which `packed` trains on most tokens a second, the comparisons with
    `padded` of the best one in which it fits.
    """
    step = parts.get("step", {})
    modes = {name: step.get(name) or {} for name in MODES}
    rates: dict[str, float | None] = {name: _arm(mode, "packed", "tokens_a_second") for name, mode in modes.items()}
    best = max(MODES, key=lambda name: rates[name] or 0.0)
    with_padded = [name for name in MODES if "speedup_vs_padded" in modes[name]]
    compared = modes[max(with_padded, key=lambda name: rates[name] or 0.0)] if with_padded else {}
    waits = [(parts.get("syncs", {}).get(name) or {}).get("outside_matcher_a_step") for name in MODES]
    return {
        "no_bleed": parts.get("no_bleed", {}).get("passed"),
        "syncs_outside_matcher": None if None in waits else max(waits),
        "mfu": _arm(modes[best], "packed", "mfu"),
        "mfu_objective": _arm(modes[best], "objective", "mfu"),
        "packed_equals_padded": step.get("packed_equals_padded"),
        "speedup_vs_padded": compared.get("speedup_vs_padded"),
        "activation_ratio": compared.get("activation_ratio"),
        "detection_share": modes[best].get("detection_share"),
        "samples_a_second": _arm(modes[best], "packed", "samples_a_second"),
        "tokens_a_second": rates[best],
        "largest_pack_tokens": {name: (parts.get("largest_pack", {}).get(name) or {}).get("tokens") for name in MODES},
        "all_parts_ended": all(part.get("ended") == "ok" for part in parts.values()),
    }


def _arm(mode: Mapping[str, Any], arm: str, key: str) -> Any:
    return ((mode.get("arms") or {}).get(arm) or {}).get(key)


# ---------------------------------------------------------------- the table


def add_row(measured: Path, template: Path) -> Path:
    """Add the row of a JSON to the table beside it; a folder without one starts from the template.

    Returns:
        The table's path.
    """
    found = decode_json(measured.read_text(encoding="utf-8"), str(measured))
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
    facts, step, published = (parts.get(part, {}) for part in ("facts", "step", "published"))
    largest = main["largest_pack_tokens"]
    cells = [
        f"[{found['date']}]({name})" + (" (tiny)" if found["tiny"] else ""),
        facts.get("gpu"),
        f"{facts.get('torch', NOTHING)} / {facts.get('transformers', NOTHING)}",
        _no_bleed(parts.get("no_bleed", {})),
        _said(main["syncs_outside_matcher"], "{:g}".format),
        _pair(step, lambda mode: _arm(mode, "packed", "mfu"), "{:.3f}".format),
        _pair(step, lambda mode: _arm(mode, "packed", "samples_a_second"), "{:.2f}".format),
        _pair(step, lambda mode: mode.get("speedup_vs_padded"), "{:.2f}".format)
        + ("" if main["packed_equals_padded"] is not False else " **(states differ)**"),
        _pair(step, lambda mode: mode.get("activation_ratio"), "{:.2f}".format),
        _pair(step, lambda mode: mode.get("detection_share"), "{:.1%}".format),
        _pair(published, lambda mode: mode.get("speedup_vs_padded"), "{:.2f}".format),
        _pair(published, _gigabytes_a_sample, str),
        " / ".join(_said(largest[mode], "{:,}".format) for mode in MODES),
        "all" if main["all_parts_ended"] else ", ".join(n for n, part in parts.items() if part["ended"] != "ok"),
    ]
    return f"| {' | '.join(str(cell) if cell is not None else NOTHING for cell in cells)} |"


def _no_bleed(part: Mapping[str, Any]) -> str:
    """Whether packing changes a sample, and how many of the backends' own cases are not a plain softmax's."""
    parity = part.get("parity", {})
    failed = f"; {len(parity['failures'])} of {parity['ran']} backend cases differ" if parity.get("failures") else ""
    said = {True: "yes", False: "**no**", None: NOTHING}[part.get("passed")]
    return said + failed


def _said(value: Any, write: Callable[[Any], str]) -> str:
    return NOTHING if value is None else write(value)


def _pair(part: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any], write: Callable[[Any], str]) -> str:
    """One figure for each of MODES."""
    return " / ".join(_said(read(part.get(name) or {}), write) for name in MODES)


def _gigabytes_a_sample(mode: Mapping[str, Any]) -> str | None:
    both = [_arm(mode, arm, "activation_bytes_a_sample") for arm in ("padded", "packed")]
    if both == [None, None]:
        return None
    return " → ".join(_said(value, lambda value: f"{value / 1e9:.1f}") for value in both)
