"""One process that decodes for `avtok.sandbox`: how it is started, asked, timed and killed."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from avtok import wire
from avtok.media import ClipError, Limits

START_LIMIT_S = 120.0  # importing av, or torch for torchcodec, from a cold disk
COPIED_BYTES = 8 << 20  # larger cuts are handed over as the memory they are in, which holds a descriptor
MAX_SAID = 2000  # letters of an error
# What a decoder needs of the environment; all else may be a credential.
_PASSED_ON = frozenset(
    {"PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONUTF8"}
)
_PASSED_ON_PREFIXES = ("OMP_", "MALLOC_")


class BrokenProcessError(Exception):
    """A process that is of no more use. is_final: trying again in a fresh one would take as long again."""

    def __init__(self, why: str, *, is_final: bool = False) -> None:
        super().__init__(why)
        self.is_final = is_final


class DecoderProcess:
    """One process and the socket to it."""

    def __init__(self, limits: Limits, backend: str, packages: tuple[str, ...]) -> None:
        self.limits, self.owner, self.num_calls = limits, os.getpid(), 0
        ours, theirs = socket.socketpair()
        self.socket, self.log = ours, os.memfd_create("decoder-log", os.MFD_CLOEXEC)
        settings = {"socket": theirs.fileno(), "parent": self.owner, "backend": backend}
        settings |= {"packages": packages, "limits": asdict(limits)}
        # The kernel kills the child when the thread that started it ends, so that thread must last.
        self.process = _lasting_thread(self.owner).submit(_start, settings, self.log).result()
        theirs.close()
        try:
            self._receive(START_LIMIT_S)
        except BrokenProcessError as error:  # nothing was read yet: the machine is at fault, not a file
            said = os.pread(self.log, MAX_SAID, 0).decode("utf-8", "replace").strip()
            self.stop()
            raise RuntimeError(f"the decoder's process did not start: {error}\n{said}") from error

    def call(self, function: str, args: tuple, kwargs: dict, num_bytes: int) -> Any:
        self.num_calls += 1
        memory_fd = _shared_memory(num_bytes)
        try:
            nothing = wire.Arena(np.empty(0, np.uint8))  # arrays go one way only
            request = {"call": self.num_calls, "function": function, "folder": str(Path.cwd())}
            request |= {
                "bytes": num_bytes,
                "args": wire.pack(args, nothing),
                "kwargs": wire.pack(kwargs, nothing),
            }
            self._send(wire.dump(request), memory_fd)
            answer = self._receive(self.limits.seconds)
            memory = np.frombuffer(mmap.mmap(memory_fd, num_bytes), np.uint8)
        finally:
            os.close(memory_fd)
        if num_bytes <= COPIED_BYTES or function != "avtok.decode.decode_clip":
            memory = _used(memory, answer)
        return self._result(answer, memory)

    def _result(self, answer: dict[str, Any], memory: np.ndarray) -> Any:
        if answer.get("call") != self.num_calls:
            raise BrokenProcessError("its decoder answered another call")
        if said := answer.get("clip_error"):
            raise ClipError(wire.clean(str(said))[:MAX_SAID])
        if said := answer.get("out_of_memory"):
            raise BrokenProcessError(
                f"took more than {self.limits.memory_mb} MB ({wire.clean(str(said))[:MAX_SAID]})"
            )
        if said := answer.get("error"):
            raise ClipError(f"reading failed: {wire.clean(str(said))[:MAX_SAID]}")
        try:
            return wire.unpack(answer.get("result"), memory)
        except wire.WireError as error:
            raise BrokenProcessError(f"its decoder answered with nonsense: {error}") from error

    def _send(self, request: bytes, memory_fd: int) -> None:
        head = wire.HEADER.size
        try:
            self.socket.settimeout(self.limits.seconds)
            socket.send_fds(self.socket, [request[:head]], [memory_fd])
            self.socket.sendall(request[head:])
        except OSError as error:
            raise BrokenProcessError(self._why_it_ended()) from error

    def _receive(self, limit_s: float) -> dict[str, Any]:
        ends_at = time.monotonic() + limit_s
        try:
            header = self._exactly(wire.HEADER.size, ends_at)
            return wire.load(self._exactly(wire.body_length(header), ends_at))
        except TimeoutError as error:
            why = f"took longer than {limit_s:g} s; its decoder was killed"
            raise BrokenProcessError(why, is_final=True) from error
        except OSError as error:
            raise BrokenProcessError(self._why_it_ended()) from error
        except wire.WireError as error:
            raise BrokenProcessError(f"its decoder answered with nonsense: {error}") from error

    def _exactly(self, num_bytes: int, ends_at: float) -> bytes:
        received = bytearray()
        while len(received) < num_bytes:
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.socket.settimeout(left_s)
            piece = self.socket.recv(num_bytes - len(received))
            if not piece:
                raise ConnectionResetError
            received += piece
        return bytes(received)

    def _why_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.poll()
        if code is None:
            return "its decoder closed the connection"
        if code >= 0:
            return f"its decoder ended with {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hints = {"SIGKILL": " (is the machine out of memory?)", "SIGXCPU": " (too much CPU time)"}
        return f"its decoder died of {name}{hints.get(name, '')}"

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # it leads a group of its own
        self.process.wait()
        self.socket.close()
        os.close(self.log)


def _start(settings: dict[str, Any], log: int) -> subprocess.Popen[bytes]:
    environment = {
        key: value
        for key, value in os.environ.items()
        if key in _PASSED_ON or key.startswith(_PASSED_ON_PREFIXES)
    }
    spec = importlib.util.find_spec("avtok")
    assert spec is not None, "avtok was imported"
    assert spec.origin is not None, "avtok has an __init__"
    ours = str(Path(spec.origin).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([ours, *(path for path in sys.path if path)])
    environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "avtok.sandbox_child", json.dumps(settings)],
        env=environment,
        pass_fds=(settings["socket"],),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is this process's to handle
    )


@lru_cache(maxsize=1)
def _lasting_thread(process_id: int) -> ThreadPoolExecutor:
    """One thread for the life of this process; a forked process has none and makes its own."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"decoders-of-{process_id}")


def _shared_memory(num_bytes: int) -> int:
    """A descriptor of memory that nobody can resize: shrunk under this process, it would kill it."""
    descriptor = os.memfd_create("clip", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, num_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


def _used(memory: np.ndarray, answer: dict[str, Any]) -> np.ndarray:
    """A private copy of the part that was written, so that neither mapping nor descriptor stays."""
    used = answer.get("used")
    return memory[: used if type(used) is int and used >= 0 else 0].copy()
