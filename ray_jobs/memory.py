"""Peak memory of a command with everything that it starts, as summed PSS."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType

import psutil

SAMPLE_EVERY_S = 4.0  # a reading walks every page table: each second it took a tenth of a core
PSS_KB = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


class SessionMemory:
    """Samples the summed PSS of a session every few seconds while the `with` block runs.

    A session is what one leader started (Popen(start_new_session=True); its pid is the session id). Ray puts
    its workers into process groups of their own, and daemons may outlive their parents, but none leaves the
    session; a decoder begins one of its own, and dies with its parent. PSS counts a page shared by n
    processes as 1/n in each, so shared object store and library pages are counted once in the sum.
    """

    def __init__(self, session_id: int, *, every_s: float = SAMPLE_EVERY_S) -> None:
        self.session_id, self.every_s = session_id, every_s
        self.peak_bytes = 0
        self.at_peak: dict[str, int] = {}  # process title -> bytes
        self.samples: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SessionMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def sample(self) -> int:
        """Bytes now; keeps the peak and what it was made of."""
        found: Counter[str] = Counter()
        for pid in session_pids(self.session_id):
            found[_title(pid)] += _pss_bytes(pid)
        total = found.total()
        self.samples.append(total)
        if total > self.peak_bytes:
            self.peak_bytes, self.at_peak = total, dict(found.most_common())
        return total

    def _watch(self) -> None:
        self.sample()
        while not self._ended.wait(self.every_s):
            self.sample()


def session_pids(session_id: int) -> list[int]:
    """Processes of a session that are alive now, and their children with sessions of their own: decoders."""
    pids = psutil.pids()
    inside = {pid for pid in pids if _session_of(pid) == session_id}
    return [pid for pid in pids if pid in inside or _parent_of(pid) in inside]


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):  # it ended a moment ago, or is another user's
        return -1


def _parent_of(pid: int) -> int:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return -1


def _pss_bytes(pid: int) -> int:
    try:
        match = PSS_KB.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    except (FileNotFoundError, ProcessLookupError):  # it ended a moment ago
        return 0
    return int(match.group(1)) * 1024 if match else 0


def _title(pid: int) -> str:
    """What Ray calls its process, else the program's name."""
    try:
        first = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    return first if first.startswith("ray::") else Path(first.split(" ")[0]).name
