"""Damage for files, drawn by seed, and a tally of what became of it: refused in one line, read, or neither."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bbu.errors import UserError

SEED = int(os.environ.get("BBU_FUZZ_SEED", "0"))  # another seed: other damage
CASES = float(os.environ.get("BBU_FUZZ_CASES", "1"))  # times as many cases
PATIENCE = 60  # seconds after which one file counts as a hang

DIGITS = 10**400  # a whole number that no float holds
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e-320, 1e308, -1e308, DIGITS, -DIGITS, 2**31, 2**63,
    float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "7", "1e999", "nan", "9" * 400, "\0", "\ud800", "\ufeff", "a\nb", "é" * 300, "x" * 5000,
    "../../secret", "/etc/passwd", "${oc.env:HOME}", "${x", "???", "<b>&amp;",
    [], {}, [[]], [None], {"": {}}, {"x": 1}, [1, 2, 3], [True, False, True, False], [0.1] * 4, ["1", "2", "3", "4"],
    [1e308, 1e308, -1e308, 1e308],
)  # fmt: skip
TOKENS = (
    b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"nan", b"-inf", b"1e999", b"9" * 400, b"9" * 5000,
    b"[" * 20_000, b"{}", b"null", b"true", b'"', b"'", b",", b"\r", b"\n\n", b"\t", b"<", b"&x;", b"../../secret",
    b"\\ud800", b"\xed\xa0\x80", b"1 1 1 1 1", b": : -", b"&a [*a]", b"!!python/object:os.system x",
)  # fmt: skip


NUMBERS = (b"-1", b"0", b"0.5.5", b"1e308", b"1,5", b"1e-320", b"7")
KINDS = ("word",) * 5 + ("cut", "flip", "flips", "token", "line", "lines", "zeros", "encoding", "swap", "empty")
WORD = re.compile(rb"[\w.+-]+")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all nodes of a JSON value below the root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def damaged_value(draw: random.Random, value: Any) -> Any:
    """A copy of a JSON value in which a node is lost, renamed, doubled, nested or replaced by junk."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        paths = list(places(value))
        if not paths or draw.random() < 0.02:
            return draw.choice(JUNK)
        *parents, last = draw.choice(paths)
        node = value
        for key in parents:
            node = node[key]
        _damage(draw, node, last)
    return value


def _damage(draw: random.Random, node: Any, last: Any) -> None:
    kind = draw.choice(("junk", "junk", "junk", "lose", "rename", "double", "nest", "type"))
    if kind == "lose":
        del node[last]
    elif kind == "rename" and isinstance(node, dict):
        node[draw.choice((str(last).upper(), f"{last}s", "", " ", "x\0", "\ud800"))] = node.pop(last)
    elif kind == "double" and isinstance(node, list):
        node[last:last] = [copy.deepcopy(node[last])] * draw.choice((1, 1, 7))
    elif kind == "nest":
        for _ in range(draw.choice((1, 2, 40))):
            node[last] = [node[last]] if draw.random() < 0.5 else {"x": node[last]}
    elif kind == "type":
        node[last] = [str(node[last])] if isinstance(node[last], list) else str(node[last])
    else:
        node[last] = copy.deepcopy(draw.choice(JUNK))


def damaged_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bytes cut, flipped, doubled, emptied, interleaved with junk, or in another encoding; a word exchanged or lost."""
    at = draw.randrange(len(data) + 1)
    kind = draw.choice(KINDS)
    if kind == "word" and (words := list(WORD.finditer(data))):
        word = draw.choice(words)
        return data[: word.start()] + draw.choice((*TOKENS, *NUMBERS, draw.choice(words)[0])) + data[word.end() :]
    if kind == "cut":
        return data[:at]
    if kind in ("flip", "flips") and data:
        flipped = bytearray(data)
        for _ in range(1 if kind == "flip" else draw.randrange(2, 40)):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    if kind == "token":
        end = min(len(data), at + draw.choice((0, 1, 4)))
        return data[:at] + draw.choice(TOKENS) + data[end:]
    if kind in ("line", "lines"):
        lines = data.splitlines(keepends=True) or [b""]
        line = draw.randrange(len(lines))
        lines[line : line + draw.choice((0, 1))] = [lines[line]] * draw.choice((0, 2, 3))
        if kind == "lines":
            draw.shuffle(lines)
        return b"".join(lines)
    if kind == "zeros":
        return data[:at] + b"\0" * draw.choice((1, 64, 4096)) + data[at + draw.choice((0, 64)) :]
    if kind == "encoding":
        coding = draw.choice(("utf-16", "utf-8-sig", "utf-32", "gb18030"))
        return data.decode("utf-8", "replace").encode(coding, "replace")
    if kind == "swap":
        return data[at:] + data[:at]
    return draw.choice((b"", b" \n", b"\xef\xbb\xbf"))


def damaged_json(draw: random.Random, value: Any, lines: bool = False) -> bytes:
    """A JSON document, or JSON lines of a list, with one to five faults in its values or its bytes."""
    if lines:
        number = draw.randrange(len(value))
        texts = [json.dumps(damaged_value(draw, row) if n == number else row) for n, row in enumerate(value)]
        data = "\n".join(texts).encode()
    else:
        data = json.dumps(damaged_value(draw, value)).encode()
    return damaged_bytes(draw, data) if draw.random() < 0.25 else data


def damage_files(draw: random.Random, files: list[Path], parse: bool = True) -> str:
    """Damage one of these files in place: its content, its name or its kind; returns what was done.

    Args:
        parse: damage the values of JSON files too, not only their bytes.
    """
    path = draw.choice(files)
    kind = draw.choice(("value",) * 6 + ("bytes",) * 6 + ("gone", "link", "dead link", "folder", "name"))
    if kind == "value" and parse and path.suffix == ".json":
        path.write_bytes(damaged_json(draw, json.loads(path.read_bytes())))
    elif kind == "value" and parse and path.suffix == ".jsonl":
        path.write_bytes(damaged_json(draw, [json.loads(line) for line in path.read_bytes().splitlines()], lines=True))
    elif kind == "gone":
        path.unlink()
    elif kind in ("link", "dead link"):
        target = "/etc/passwd" if kind == "link" else "nowhere"
        path.unlink()
        path.symlink_to(target)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "name":
        path.rename(
            path.with_name(draw.choice((f"{path.stem}\udcff{path.suffix}", f"{path.stem} (copy){path.suffix}")))
        )
    else:
        kind = "bytes"
        path.write_bytes(damaged_bytes(draw, path.read_bytes()))
    return f"{path.name}: {kind}"


@dataclass
class Tally:
    """What became of the cases of one area.

    A case may be refused with a UserError of one line, or be read, as harmless damage is. Anything else, a hang too,
    is kept as a failure with its number, from which ``draw`` repeats it.
    """

    area: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def cases(self, count: int) -> Iterator[tuple[int, random.Random]]:
        """(number, draw of this case) of each case."""
        for number in range(int(count * CASES)):
            yield number, random.Random(f"{self.area}/{SEED}/{number}")

    def attempt(self, number: int, what: str, read: Callable[[], str | None]) -> None:
        """Run one case; ``read`` returns None, or what is wrong with that which it read."""
        try:
            with _patience():
                wrong = read()
        except UserError as error:
            self.outcomes["refused"] += 1
            wrong = None if str(error) and "\n" not in str(error) else f"a message of several lines: {str(error)!r}"
        except Exception as error:
            self.outcomes["failed"] += 1
            frame = traceback.extract_tb(error.__traceback__)[-1]
            wrong = f"{type(error).__name__}: {str(error)[:200]!r} at {Path(frame.filename).name}:{frame.lineno}"
        else:
            self.outcomes["read"] += 1
        if wrong:
            self.failures.append(f"{self.area}, seed {SEED}, case {number} ({what}): {wrong}")

    def finish(self, record: Callable[[str, object], None], least: int) -> None:
        """Print and record the counts; fail on any failure, and if fewer than ``least`` cases were refused.

        Args:
            record: pytest's record_property; tests/conftest.py adds up what all tests record.
        """
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        line = f"fuzzing {self.area}: seed {SEED}, {self.outcomes.total()} cases, {counts}"
        print(f"\n{line}")
        record("fuzzing", {"seed": SEED, **self.outcomes})
        assert not self.failures, "\n".join([line, *self.failures[:40]])
        assert self.outcomes["refused"] >= least * CASES, line


@contextmanager
def _patience() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise TimeoutError(f"no answer within {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
