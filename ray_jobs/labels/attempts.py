"""What may fail at a clip, its file or a model, as a reason of that clip and of no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from avtok.media import ClipError
from ray_jobs.labels.loading import first_line
from ray_jobs.labels.marks import LeftOut

UNREADABLE, FAILED = "cannot be read", "the model failed"
X = TypeVar("X")
Y = TypeVar("Y")


def readable(read: Callable[[], X]) -> X | LeftOut:
    try:
        return read()
    except ClipError as error:
        return LeftOut(UNREADABLE, str(error), is_failure=True)


def each(model: Callable[[Sequence[X]], list[Y]], inputs: Sequence[X | LeftOut]) -> list[Y | LeftOut]:
    """The model's answers in one call; where that fails, in one call for each input, so that one bad input
    costs no other its answer. Inputs that are reasons stay reasons."""
    given = [x for x in inputs if not isinstance(x, LeftOut)]
    answers = iter(_tried(model, given) if given else [])
    return [x if isinstance(x, LeftOut) else next(answers) for x in inputs]


def _tried(model: Callable[[Sequence[X]], list[Y]], inputs: Sequence[X]) -> list[Y | LeftOut]:
    try:
        return list(model(inputs))
    except Exception as error:  # models raise whatever the libraries below them do; a full GPU too
        if len(inputs) == 1:
            return [LeftOut(FAILED, first_line(error), is_failure=True)]
    return [answer for one in inputs for answer in _tried(model, [one])]
