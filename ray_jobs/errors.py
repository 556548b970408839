"""The two ways in which a command ends badly. Neither shows a traceback."""

from __future__ import annotations

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
