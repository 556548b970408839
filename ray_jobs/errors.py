"""The two ways in which a command ends badly. Neither shows a traceback."""

from __future__ import annotations

import errno
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


def is_disk_full(error: BaseException) -> bool:
    """Also of libraries that only put it in words, such as safetensors."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


@contextmanager
def disk_full_is_an_error(place: object) -> Iterator[None]:
    """JobError when what is written inside does not fit; other errors pass."""
    try:
        yield
    except Exception as error:  # whatever library wrote
        if is_disk_full(error):
            raise JobError(f"{place}: {DISK_FULL}") from None
        raise
