"""SIGTERM, which schedulers and containers send, does what Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM)


def sigterm_as_ctrl_c() -> None:
    """For a command's whole process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def sigterm_stays_ours() -> Iterator[None]:
    """Around Ray's start. Ray takes SIGTERM for itself, which would end a local cluster under the job's last
    commit. Where nobody else takes it, Ray keeps it: its processes would be left behind."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and _in_main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def spared_sigterm(*, spared: bool) -> Iterator[None]:
    """What starts meanwhile never gets SIGTERM. `timeout`, systemd and Slurm send it to every process of a
    job, and a local cluster that heeds it is gone before the last commit."""
    if not spared:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of children, too
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def first_stop(ask: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls `ask`; a second one raises KeyboardInterrupt."""
    if not _in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPS}

    def stop(signum: int, frame: object) -> None:
        for number in STOPS:
            signal.signal(number, signal.default_int_handler)
        ask()

    for number in STOPS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
