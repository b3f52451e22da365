"""The manifest of a model or checkpoint folder: its files with sizes and SHA-256, written last.

A folder is whole if its files match its manifest; otherwise it is none. Needs no torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from bbu.errors import CheckpointError, RecordError, shown
from bbu.jsonl import decode_json, write_json

MANIFEST_FILE = "manifest.json"
FORMAT = 1
HASHED_AT_ONCE = 4  # files; hashing leaves the interpreter free
RESTORE = "copy the folder again from where it was written, or use another checkpoint"


class Entry(TypedDict):
    """What a manifest says of a file."""

    size: int  # bytes
    sha256: str


Manifest = dict[str, Entry]  # path inside the folder, with slashes → entry


def seal(folder: Path) -> Manifest:
    """Write the manifest of all files in a folder. Files and manifest have mode 644 and are on the disk afterwards.

    Raises:
        OSError: a file cannot be read or the manifest not be written.
    """
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _chmod(inside, 0o755)
    files = _hashed(folder, _names(folder), durable=True)
    write_json(folder / MANIFEST_FILE, {"format": FORMAT, "files": files})
    for path in (folder / MANIFEST_FILE, folder):
        sync(path)
    return files


def read_manifest(folder: Path) -> Manifest:
    """Entries of a folder's manifest.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / MANIFEST_FILE
    try:
        value = decode_json(path.read_text(encoding="utf-8"), MANIFEST_FILE)
        files = {
            str(name): Entry(size=int(of["size"]), sha256=str(of["sha256"])) for name, of in value["files"].items()
        }
        if value["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {shown(value['format'])}, this version reads {FORMAT}")
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: is missing: the folder was not written to its end, or by an earlier version; {RESTORE}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the folder's permissions") from None
    except (RecordError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: is damaged: {_first_line(error)}; {RESTORE}") from None
    return files


def check_whole(folder: Path, part: Callable[[str], bool] = lambda name: True) -> None:
    """Check that files are as they were written.

    Args:
        part: names of the files to check; default: all.

    Raises:
        CheckpointError: names the first file that is missing, cut or changed.
    """
    listed = {name: entry for name, entry in read_manifest(folder).items() if part(name)}
    present = set(_names(folder))
    for name, entry in sorted(listed.items()):  # what costs no reading comes first
        if name not in present:
            raise CheckpointError(f"{folder / name}: is missing; {RESTORE}")
        size = (folder / name).stat().st_size
        if size != entry["size"]:
            raise CheckpointError(f"{folder / name}: has {size} bytes, {entry['size']} were written; {RESTORE}")
    try:
        found = _hashed(folder, listed)
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: cannot be read ({error.strerror}); {RESTORE}") from None
    check_same(folder, found, listed)


def check_same(folder: Path, found: Mapping[str, Entry], listed: Mapping[str, Entry]) -> None:
    """Compare entries of the same names.

    Raises:
        CheckpointError: names the first file of ``folder`` whose content differs.
    """
    for name in sorted(found.keys() & listed.keys()):
        if found[name] != listed[name]:
            raise CheckpointError(f"{folder / name}: was damaged or changed (its SHA-256 differs); {RESTORE}")


def sync(path: Path) -> None:
    """Have a file or folder on the disk before going on, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems have no sync of folders
            raise
    finally:
        os.close(descriptor)


def _chmod(path: Path, mode: int) -> None:
    with suppress(PermissionError):  # file systems without modes
        path.chmod(mode)


def _names(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST_FILE)


def _hashed(folder: Path, names: Iterable[str], *, durable: bool = False) -> Manifest:
    def entry(name: str) -> Entry:
        path = folder / name
        if durable:
            _chmod(path, 0o644)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if durable:
                os.fsync(stream.fileno())
            return Entry(size=os.fstat(stream.fileno()).st_size, sha256=digest)

    names = list(names)
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        return dict(zip(names, pool.map(entry, names), strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
