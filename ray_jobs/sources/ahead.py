"""A few requests in flight, their answers in order: each one of a store takes tens of milliseconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

REQUESTS = 16
Given = TypeVar("Given")
Answer = TypeVar("Answer")


def in_order(ask: Callable[[Given], Answer], given: Iterable[Given], *, are_remote: bool) -> Iterator[Answer]:
    """ask(g) for each g, in their order; of remote ones at most REQUESTS at a time and ahead."""
    if not are_remote:
        yield from map(ask, given)
        return
    waiting = iter(given)
    with ThreadPoolExecutor(REQUESTS) as pool:
        running: deque[Future[Answer]] = deque(pool.submit(ask, one) for one in islice(waiting, REQUESTS))
        while running:
            answer = running.popleft().result()
            running.extend(pool.submit(ask, one) for one in islice(waiting, 1))
            yield answer
