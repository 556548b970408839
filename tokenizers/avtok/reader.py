"""One interface to read media: in this process, or in one that can be killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, Protocol, Self, cast, get_args

from avtok import decode
from avtok.media import DecodedClip, Limits, MediaInfo

Backend = Literal["pyav", "torchcodec", "decord"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
READING = ("avtok.reading", "avtok.decode")  # what a reader may call


class ClipReader(Protocol):
    """Whatever is wrong with a file is a ClipError of that file; the next call works. One call at a time."""

    def probe(self, uri: str) -> MediaInfo: ...

    def decode_clip(
        self,
        uri: str,
        *,
        start_s: float,
        end_s: float,
        fps: float,
        size: tuple[int, int],
        sample_rate: int,
        context_frames: int = 0,
        context_samples: int = 0,
        audio_uri: str | None = None,
    ) -> DecodedClip: ...

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """A public function of avtok.reading by its dotted name: plain values, arrays and avtok.media's
        classes go in and come out."""
        ...

    @property
    def pid(self) -> int:
        """Of the process that decodes."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_reader(backend: str = "pyav", *, limits: Limits | None) -> ClipReader:
    """limits: decode in a process that is killed when it takes more. None: in this process, unlimited."""
    if backend not in BACKENDS:
        raise ValueError(f"no decoder is named {backend!r}; there is {', '.join(BACKENDS)}")
    if limits is not None:
        from avtok.sandbox import SandboxedReader  # it reads what this module names

        return SandboxedReader(limits, backend)
    if backend == "decord":
        raise ValueError("decord can hang for good: it decodes in a sandbox only; set data.sandbox to true")
    return PlainReader(cast(Backend, backend))


class PlainReader:
    """Reads in this process: for files that are one's own."""

    def __init__(self, backend: Backend = "pyav") -> None:
        self.backend: Backend = backend

    def probe(self, uri: str) -> MediaInfo:
        return decode.probe(uri)

    def decode_clip(self, uri: str, **cut: Any) -> DecodedClip:
        return decode.decode_clip(uri, **cut, backend=self.backend)

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        return find_function(function, READING)(*args, **kwargs)

    @property
    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_function(name: str, packages: tuple[str, ...]) -> Callable[..., Any]:
    """ValueError for what is private or outside the packages."""
    module, _, function = name.rpartition(".")
    inside = any(module == package or module.startswith(f"{package}.") for package in packages)
    if not inside or not function.isidentifier() or function.startswith("_"):
        raise ValueError(f"{name}: a reader calls public functions of {', '.join(packages)} only")
    return getattr(import_module(module), function)
