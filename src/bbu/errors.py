"""Errors for the person who reads them: where, what, why and the fix, in one line."""

from __future__ import annotations

from typing import Any

SHOWN_LENGTH = 60  # characters of a value in a message


class UserError(ValueError):
    """A problem in the user's files, config or command line; the CLI prints it without a traceback."""


class RecordError(UserError):
    """A row that does not keep the record contract.

    Args:
        where: file and line, e.g. ``train.jsonl:17``.
        field: dotted path of the field, e.g. ``objects[2].bbox_2d``.
        why: what is wrong, with the value, and how to mend it.
    """

    def __init__(self, where: str, field: str, why: str) -> None:
        self.where, self.field, self.why = where, field, why
        super().__init__(f"{where}: {field}: {why}")


class ImageError(UserError):
    """An image file that cannot be read; the message names the file.

    ``photo`` is its name in the record, where a record was read.
    """

    photo = ""


class ImageMissingError(ImageError):
    """An image file that is not there."""


class ImageSizeError(ImageError):
    """An image with more pixels or bytes than a photo may have."""


class SampleError(UserError):
    """A sample that cannot be trained on or predicted (too long, wrong image count, …)."""


class PhotoChangedError(SampleError):
    """A photo whose size is not its record's.

    ``photo`` is its name in the record.
    """

    photo = ""


class ConfigError(UserError):
    """A config file or override that is missing, misspelt or has a bad value."""


class CheckpointError(UserError):
    """A checkpoint that is incomplete, or was made with another prompt, template or vocabulary."""


class NotFiniteError(UserError):
    """A loss, gradient or weight is NaN or infinite; the message names terms or weights, and samples."""


def shortened(text: str) -> str:
    """Text cut to SHOWN_LENGTH characters."""
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 3] + "..."


def shown(value: Any) -> str:
    """A value as a message shows it: its repr, shortened."""
    return shortened(repr(value))
