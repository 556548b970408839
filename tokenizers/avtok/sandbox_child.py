"""The other side of `avtok.sandbox`: answers its parent's calls, under limits that it cannot lift."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from avtok import buffers, wire
from avtok.media import ClipError, Limits
from avtok.reader import find_function

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
MAX_OPEN_FILES = 64
MAX_SAID = 2000  # letters of an error
_PRELOADED = ("avtok.reading.probe", "avtok.reading.picture", "avtok.reading.sound")


def main() -> None:
    settings = json.loads(sys.argv[1])
    limits = Limits(**settings["limits"])
    _die_with_parent(settings["parent"])
    for module in _PRELOADED:  # before memory is counted
        import_module(module)
    _load_backend(settings["backend"])
    from avtok.reading import container

    container.limits = limits
    _confine(limits)
    with socket.socket(fileno=settings["socket"]) as parent:
        parent.sendall(wire.dump({"ready": True}))
        gc.freeze()  # what is there now stays, so that a collection is short
        while _serve_one(parent, tuple(settings["packages"]), limits):
            gc.collect()  # while the parent works: PyAV's objects point at each other and hold frames


def _die_with_parent(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")
    if os.getppid() != parent:  # it died before the kernel knew
        sys.exit(1)


def _load_backend(backend: str) -> None:
    if backend != "pyav":
        import_module(f"avtok.reading.with_{backend}")


def _confine(limits: Limits) -> None:
    with suppress(OSError):  # when the machine runs out of memory, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    own_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_AS, own_bytes + (limits.memory_mb << 20)),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _serve_one(parent: socket.socket, packages: tuple[str, ...], limits: Limits) -> bool:
    """False when the parent is gone or done."""
    header, descriptors, _, _ = socket.recv_fds(parent, wire.HEADER.size, 1)
    if not header:
        return False
    length = wire.body_length(header)
    body = b""
    while len(body) < length:
        piece = parent.recv(length - len(body))
        if not piece:
            return False
        body += piece
    request = wire.load(body)
    memory = mmap.mmap(descriptors[0], request["bytes"])
    os.close(descriptors[0])
    used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used_s + 2 * limits.seconds) + 10, hard))
    arena = wire.Arena(np.frombuffer(memory, np.uint8))
    if request["function"] == "avtok.decode.decode_clip":  # the only one that knows how much it will need
        buffers.allocate = arena.empty
    parent.sendall(_answer(request, packages, arena))
    buffers.allocate = np.empty  # lets go of the memory
    return True


def _answer(request: dict[str, Any], packages: tuple[str, ...], arena: wire.Arena) -> bytes:
    nothing, answer = arena.bytes[:0], {"call": request["call"]}
    try:
        os.chdir(request["folder"])
        function = find_function(request["function"], packages)
        result = function(*wire.unpack(request["args"], nothing), **wire.unpack(request["kwargs"], nothing))
        packed = wire.pack(result, arena)
        return wire.dump({**answer, "result": packed, "used": arena.used})
    except ClipError as error:
        return wire.dump({**answer, "clip_error": str(error)[:MAX_SAID] or "no reason was given"})
    except MemoryError as error:
        return wire.dump({**answer, "out_of_memory": str(error)[:MAX_SAID] or "no memory"})
    except Exception as error:  # code that reads hostile bytes can fail in any way; the parent names the file
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return wire.dump({**answer, "error": said[:MAX_SAID]})


if __name__ == "__main__":
    main()
