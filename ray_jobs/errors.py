"""The two ways in which a command ends badly. Neither shows a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class UserError(Exception):
    """What the user gave cannot be used. One line per problem: where, what was given, what to do. Exit 2."""

    exit_code: ClassVar[int] = 2

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)  # the lines are the args, so that the error survives a trip through Ray
        self.lines = list(lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class JobError(UserError):
    """Something broke while the job ran. Exit 1."""

    exit_code: ClassVar[int] = 1


DISK_FULL = "the disk is full; make space and start the same command again"
FULL = (errno.ENOSPC, errno.EDQUOT)
# A mount that went away or broke, at a file that could be written before.
BROKEN = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO, errno.ENODEV)


def is_disk_full(error: BaseException) -> bool:
    return _is_of(error, FULL)


def storage_problem(error: BaseException) -> str:
    """What is wrong with the storage that could not be written, and what to do; empty for another error."""
    if is_disk_full(error):
        return DISK_FULL
    for code in BROKEN:
        if _is_of(error, (code,)):
            return f"the storage failed ({os.strerror(code)}); mend it and start the same command again"
    return ""


def _is_of(error: BaseException, codes: tuple[int, ...]) -> bool:
    """Also of libraries that only put it in words: Ray as Python does, safetensors as Rust does."""
    said = str(error)
    in_words = any(f"[Errno {code}]" in said or f"(os error {code})" in said for code in codes)
    return getattr(error, "errno", None) in codes or in_words


@contextmanager
def storage_errors_in_words(place: object) -> Iterator[None]:
    """JobError when the storage fails or is full; other errors pass."""
    try:
        yield
    except Exception as error:  # whatever library wrote
        if problem := storage_problem(error):
            raise JobError(f"{place}: {problem}") from None
        raise
