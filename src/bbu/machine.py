"""What a machine can lack (disk, memory, permission), in words that name the way out."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

DISK = (errno.ENOSPC, errno.EDQUOT)
DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing")
WRITER_TEXTS = ("PytorchStreamWriter", "inline_container", "iostream error")  # torch's, which has no class for it
NO_ROOM = 2**20  # bytes
SHARED_MEMORY = "/dev/shm"
RESUME = "continue with training.resume=true"


def explain(error: BaseException) -> str:
    """One line for an error that comes from the machine and not from the program; empty for any other."""
    text = " ".join(str(error).split())
    torch = sys.modules.get("torch")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return _file_error(error)
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is short ({_sentence(text)}); {_SMALLER}"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"memory is short ({_sentence(text) or 'MemoryError'}); {_SMALLER}"
    if not isinstance(error, RuntimeError):
        return ""
    if "shared memory" in text or "Bus error" in text or "</torch_" in text:
        return shared_memory_short()
    if "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
        return (
            f"a process that loads photos was killed ({_sentence(text)}), most often because memory is short; lower "
            f"data.workers (0: the main process loads), then {RESUME}"
        )
    if any(known in text for known in DISK_TEXTS):
        return f"the disk is full ({_sentence(text)}); make room and start the same command again"
    return ""


_SMALLER = (
    "lower training.batch_size or training.pack_tokens, data.max_pixels, evaluation.batch_size or data.workers, or set "
    "model.gradient_checkpointing"
)


def shared_memory_short() -> str:
    """The message for a full /dev/shm, through which photo loaders hand over their batches."""
    return (
        f"{SHARED_MEMORY} is too small for the batches of data.workers ({_room(Path(SHARED_MEMORY))}); mount it larger "
        "(docker run --shm-size=8g), or set data.workers=0"
    )


def disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error of any library comes from a full disk; safetensors and torch have types of their own.

    Args:
        folder: where they were writing; torch's message may say nothing, so the room that is left counts as well.
    """
    if shutil.disk_usage(folder).free < NO_ROOM:
        return True
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in DISK:
            return True
        if any(known in str(found) for known in DISK_TEXTS):
            return True
        found = found.__cause__ or found.__context__
    return False


def cannot_write(error: BaseException) -> bool:
    """Whether an error of torch's writer says that a file took no more."""
    return isinstance(error, RuntimeError) and any(known in str(error) for known in WRITER_TEXTS)


def _file_error(error: OSError) -> str:
    why = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        return f"{why}: raise the limit (ulimit -n 65536) or lower data.workers"
    if error.filename is None and error.errno not in DISK:
        return ""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    place = " -> ".join(names)
    if error.errno in DISK:
        room = f" ({_room(Path(names[0]))})" if names else ""
        return f"{place or 'the disk'}: {why}{room}; make room and start the same command again"
    return f"{place}: {why}"


def _room(path: Path) -> str:
    """Free and total space of the file system of a path."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return "no space"
    return f"{usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB free"


def _sentence(text: str) -> str:
    return text.split(". ")[0][:160]
