"""JSON and JSON-lines files, read strictly; and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from bbu.errors import RecordError, UserError


def decode_json(text: str, where: str, constants: bool = False) -> Any:
    """Strict JSON: NaN, Infinity and repeated keys are errors.

    Args:
        constants: read NaN and Infinity as floats, for readers that check every number.

    Raises:
        RecordError: with ``where`` and the reason.
    """

    def refuse(constant: str) -> Any:
        raise RecordError(where, "row", f"{constant} is not valid JSON; write a finite number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise RecordError(where, twice, "appears twice in one object; remove one of the two")
        return result

    try:
        return json.loads(text, parse_constant=float if constants else refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise RecordError(where, "row", f"is not valid JSON: {error.msg} at {place}") from None
    except ValueError as error:  # an integer of thousands of digits
        if isinstance(error, RecordError):
            raise
        raise RecordError(where, "row", f"is not valid JSON: {error}") from None
    except RecursionError:
        raise RecordError(where, "row", "is nested too deeply to be a record") from None


def iter_json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield (``file:line``, decoded value) for every non-blank line.

    Raises:
        RecordError: a missing file, bytes that are not UTF-8, or a line that is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordError(str(path), "file", "does not exist or is not a file")
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path}:{number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise RecordError(where, "row", f"is not UTF-8 ({error.reason}); save the file as UTF-8") from None
            if text.strip():
                yield where, decode_json(text, where)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A hidden file beside ``path`` to write to, which becomes ``path`` at the end; an error leaves nothing behind.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The prefix is not the name of the file, which may already have the greatest length.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        if temporary.stat().st_nlink < 2:  # a hard link shares its permissions with its source
            temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[IO[str]]:
    """A UTF-8 text file that appears whole or not at all.

    Raises:
        UserError: nothing can be written there; raised before the first line is asked for.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            if path.is_dir():
                raise UserError(f"{path}: is a folder; name a file in it")
            temporary = stack.enter_context(atomic_file(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        yield stack.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> int:
    """Write rows (anything with ``to_json``, or plain JSON values); returns how many."""
    count = 0
    with atomic_writer(path) as stream:
        for row in rows:
            value = row.to_json() if hasattr(row, "to_json") else row
            stream.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document, indented, atomically."""
    with atomic_writer(path) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2, allow_nan=False)
        stream.write("\n")
