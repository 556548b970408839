"""A reader in a process of its own that is killed when a file takes too much, hangs or crashes it.

What holds: wall-clock time, address space, CPU time as a backstop, no bytes written to files, few files open,
no core dumps, no new privileges, no credentials in the environment, and the process dies with this one. Its
answers are JSON and raw arrays of the size that was asked for, never pickle.

What does not hold: system calls are not filtered. Code that a file injects could open connections, read what
this user can read and, until its process ends, falsify what is read of later files. Run workers without
network and under a user of their own where that matters.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from math import prod
from types import TracebackType
from typing import Any, Self

import numpy as np

from avtok import wire
from avtok.clock import frame_grid_s
from avtok.media import ClipError, DecodedClip, Limits, MediaInfo
from avtok.reader import READING
from avtok.sandbox_process import BrokenProcessError, DecoderProcess

RESULT_MB = 64  # of what is neither a probe nor a cut


class SandboxedReader:
    """A ClipReader whose process starts at the first call, serves many, and starts anew after a kill."""

    def __init__(self, limits: Limits, backend: str = "pyav", *, packages: tuple[str, ...] = READING) -> None:
        self.limits, self.backend, self.packages = limits, backend, packages
        self.num_kills = 0  # decoders that were killed or died by themselves
        self._child: DecoderProcess | None = None
        self._lock = threading.Lock()

    def probe(self, uri: str) -> MediaInfo:
        info = self._checked_call(uri, "avtok.decode.probe", (uri,), {}, RESULT_MB << 20)
        if not isinstance(info, MediaInfo):
            raise self._refused(uri, f"a probe gave a {type(info).__name__}")
        return replace(info, uri=uri)

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
    ) -> DecodedClip:
        if not 0 <= start_s < end_s:
            raise ClipError(f"{uri}: a cut needs 0 <= start < end, got {start_s} to {end_s} s")
        cut = {"start_s": start_s, "end_s": end_s, "fps": fps, "size": tuple(size), "audio_uri": audio_uri}
        cut |= {"sample_rate": sample_rate, "context_frames": context_frames}
        cut |= {"context_samples": context_samples, "backend": self.backend}
        num_frames = len(frame_grid_s(start_s, end_s, fps=fps, context_frames=context_frames))
        video_shape = (num_frames, *size, 3)
        audio_shape = (context_samples + round((end_s - start_s) * sample_rate),)
        num_bytes = prod(video_shape) + 4 * audio_shape[0] + 2 * wire.ALIGN_BYTES
        if num_bytes > self.limits.memory_mb << 20:
            raise ClipError(
                f"{uri}: the cut takes {num_bytes >> 20} MB, limits.memory_mb={self.limits.memory_mb}"
            )
        clip = self._checked_call(uri, "avtok.decode.decode_clip", (uri,), cut, num_bytes)
        if (
            not isinstance(clip, DecodedClip)
            or not _is(clip.video_THWC, video_shape, np.uint8)
            or not _is(clip.audio_N, audio_shape, np.float32)
            or (clip.audio_N is not None and not np.isfinite(clip.audio_N).all())
        ):
            raise self._refused(uri, "a cut has frames or samples that were not asked for")
        return DecodedClip(
            clip.video_THWC, clip.audio_N, context_frames, context_samples, start_s=start_s, end_s=end_s
        )

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """A public function of avtok.reading by its dotted name; its first argument names the file."""
        return self._checked_call(str(args[0]) if args else function, function, args, kwargs, RESULT_MB << 20)

    @property
    def pid(self) -> int:
        """Of the process that decodes; starts it where none runs."""
        with self._lock:
            return self._running().process.pid

    def close(self) -> None:
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if (
            os is not None
        ):  # at the end of the program, modules are gone before objects; the child dies with us
            self._stop()

    def _checked_call(self, uri: str, function: str, args: tuple, kwargs: dict, num_bytes: int) -> Any:
        """One call, twice where a process that had served other files broke: those may be to blame."""
        with self._lock:
            for _ in range(2):
                child = self._running()
                served_before = child.num_calls
                try:
                    return child.call(function, args, kwargs, num_bytes)
                except BrokenProcessError as error:
                    self._kill()
                    if not served_before or error.is_final:
                        raise ClipError(f"{uri}: {error}") from error
                except ClipError as error:  # an honest answer; it names the file where reading code raised it
                    said = str(error)
                    raise ClipError(said if said.startswith(uri) else f"{uri}: {said}") from error
                except BaseException:  # interrupted: its answer would be taken for that of the next call
                    self._kill()
                    raise
        raise AssertionError("a process is fresh the second time")

    def _running(self) -> DecoderProcess:
        if self._child is not None and self._child.owner != os.getpid():
            self._child = None  # this process was forked: the child is the other one's
        if self._child is not None and self._child.process.poll() is not None:
            self._kill()
        if self._child is None:
            self._child = DecoderProcess(self.limits, self.backend, self.packages)
        return self._child

    def _refused(self, uri: str, what: str) -> ClipError:
        with self._lock:
            self._kill()
        return ClipError(f"{uri}: its decoder answered with nonsense: {what}")

    def _kill(self) -> None:
        self.num_kills += 1
        self._stop()

    def _stop(self) -> None:
        child, self._child = getattr(self, "_child", None), None
        if child is not None and child.owner == os.getpid():
            child.stop()


def _is(array: np.ndarray | None, shape: tuple[int, ...], dtype: type) -> bool:
    return array is None or (array.shape == shape and array.dtype == dtype)
