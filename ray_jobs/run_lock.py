"""One job a run: a second one would remove what the first is writing."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_jobs.errors import UserError

LOCK = ".lock"


@contextmanager
def only_job(run: Path) -> Iterator[None]:
    """UserError when another job holds the run. The system lets go of a lock when its process ends, however
    that is; file systems that know no locks are not guarded."""
    try:
        handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # full or read-only: what writes next says so in words
        yield
        return
    try:
        _take(handle, run)
        yield
    finally:
        os.close(handle)


def _take(handle: int, run: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode("utf-8", "replace").strip() or "another job"
        raise UserError(
            f"{run}: {holder} is training this run; wait for its end, stop it, or use another name "
            "(--set name=...)"
        ) from None
    except OSError:  # no locks here
        return
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
