"""A bounded folder of copies on one node, shared by all its processes; the least recently used go first.

A copy is whole or not there: it is written beside its place, under a lock, and then renamed. The kernel drops
the locks of a process that dies, so nothing is left to clean up by hand.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ray_jobs.errors import is_disk_full

YOUNG_S = 60.0  # a copy that was asked for within a minute may be about to be opened
HELD = 16  # copies that a process keeps for itself: those it asked for last
LOOKS_PER_SPOOL = 32  # the folder is looked through whenever so small a part of it was written
PARTIAL, LOCK = ".partial", ".lock"
Write = Callable[[BinaryIO], None]


class SpoolError(Exception):
    """The spool cannot take a file; the message says why."""


class Spool:
    """Copies by name, of `max_bytes` together; more only where all are in use or younger than a minute."""

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._held: OrderedDict[Path, int] = OrderedDict()  # -> file descriptor with a shared lock
        self._thread_lock = threading.Lock()
        self._written = max_bytes  # since the last look through the folder; so the first write looks
        _make_private(self.folder)

    def get(self, name: str, num_bytes: int, write: Write) -> Path:
        """The copy `name`, made by `write` unless it is there. One process writes, others wait for it.

        The path stays until this process has asked for HELD others. SpoolError for a file that does not fit;
        whatever `write` raises passes, and leaves no copy.
        """
        if num_bytes > self.max_bytes:
            raise SpoolError(
                f"is {num_bytes / 1e9:.3g} GB and the spool holds {self.max_bytes / 1e9:.3g} GB; "
                "raise data.spool_gb"
            )
        path = self.folder / name
        while not self._hold(path, num_bytes):
            try:
                self._make(path, num_bytes, write)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                if not self.make_room(num_bytes, young_s=0.0):
                    raise SpoolError(
                        f"{self.folder}: the disk is full; set WORLDMODEL_SPOOL or data.spool_gb"
                    ) from None
        return path

    def make_room(self, num_bytes: int, *, young_s: float = YOUNG_S) -> int:
        """Deletes what was used least recently until `num_bytes` more fit; returns how many bytes went."""
        with self._thread_lock:
            self._written = num_bytes
        files = sorted(_files(self.folder), key=lambda file: file[1])
        excess = sum(size for _, _, size in files) + num_bytes - self.max_bytes
        deleted, oldest_s = 0, time.time() - young_s
        for path, used_s, size in files:
            is_left_over = path.name.endswith(
                PARTIAL
            )  # of a process that died: not locked, and no longer young
            if used_s <= oldest_s and (is_left_over or deleted < excess) and _delete_unless_locked(path):
                deleted += size
        return deleted

    def close(self) -> None:
        """Lets go of its copies; they stay until room is made."""
        with self._thread_lock:
            while self._held:
                os.close(self._held.popitem()[1])

    def _hold(self, path: Path, num_bytes: int) -> bool:
        """Keeps the copy from being deleted. False when it is not there, or not whole."""
        with self._thread_lock:
            descriptor = self._held.pop(path, None)
            if descriptor is None:
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except FileNotFoundError:
                    return False
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if not _is_at(path, descriptor):
                os.close(descriptor)
                return False
            if (
                os.fstat(descriptor).st_size != num_bytes
            ):  # the node lost power before the data were on its disk
                path.unlink(missing_ok=True)
                os.close(descriptor)
                return False
            os.utime(descriptor)
            self._held[path] = descriptor
            while len(self._held) > HELD:
                os.close(self._held.popitem(last=False)[1])
            return True

    def _make(self, path: Path, num_bytes: int, write: Write) -> None:
        """Writes the copy, or waits until another process is done with it, well or badly."""
        lock = path.with_name(
            f".{path.name}{LOCK}"
        )  # its own file: the copy's readers hold locks on the copy
        with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600), "wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not _is_at(lock, held.fileno()):
                return
            try:
                if not path.exists():
                    self._look(num_bytes)
                    _write_whole(path, num_bytes, write)
            finally:
                lock.unlink(missing_ok=True)

    def _look(self, num_bytes: int) -> None:
        with self._thread_lock:
            self._written += num_bytes
            is_due = self._written * LOOKS_PER_SPOOL >= self.max_bytes
        if is_due:
            self.make_room(num_bytes)


def _write_whole(path: Path, num_bytes: int, write: Write) -> None:
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o600), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # so that it is not taken for what a crash left
            file.truncate(0)
            write(file)
            file.flush()
            if file.tell() != num_bytes:
                raise SpoolError(f"gave {file.tell()} bytes instead of {num_bytes}")
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _make_private(folder: Path) -> None:
    """A folder of ours: in a shared temp folder, another user could have put one there first."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise SpoolError(f"{folder}: belongs to another user; set WORLDMODEL_SPOOL to a folder of yours")


def _files(folder: Path) -> list[tuple[Path, float, int]]:
    """(path, last used, bytes)"""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process has just deleted it
                status = entry.stat()
                found.append((folder / entry.name, status.st_mtime, status.st_size))
    return found


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _delete_unless_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:  # in use, or gone
        return False
    finally:
        os.close(descriptor)
    return True


def default_folder() -> Path:
    """WORLDMODEL_SPOOL, or a folder of this user's in the system's temp folder."""
    return Path(
        os.environ.get("WORLDMODEL_SPOOL") or Path(tempfile.gettempdir()) / f"worldmodel-spool-{os.getuid()}"
    )
