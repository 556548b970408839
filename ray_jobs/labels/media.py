"""What the models look at and listen to: frames and sound of one row of a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avtok.media import ClipError, Limits
from avtok.reader import ClipReader, open_reader
from ray_jobs.stores import StoreError, local_copy

# H W pixels, N samples at 16 kHz.

RATE_HZ = 16000
LONGEST_SIDE = 448  # captioners see 224 to 448
FRAME_S = 0.04
BLOCK_S = 60.0  # of sound that is held at a time
LIMITS = Limits()


class ClipMedia:
    """One clip: [start_s, end_s) of a file. Every failure to read is a ClipError."""

    def __init__(self, row: dict[str, Any], reader: ClipReader) -> None:
        self.row, self.reader = row, reader
        self.start_s, self.end_s = float(row["start_s"]), float(row["end_s"])
        self.block_N: tuple[int, np.ndarray] | None = None  # the last one that was read, and where it begins

    def frames(self, count: int) -> list[np.ndarray]:
        """uint8 RGB [H, W, 3] of `count` moments, spread evenly over the clip; one of a still picture."""
        length_s = self.end_s - self.start_s
        moments = (
            [self.start_s + (i + 0.5) * length_s / count for i in range(count)] if length_s > 0 else [0.0]
        )
        path, size = str(_path(self.row["uri"])), _size(self.row)
        found = []
        for moment_s in moments:
            clip = self.reader.decode_clip(
                path,
                start_s=moment_s,
                end_s=moment_s + FRAME_S,
                fps=1 / FRAME_S,
                size=size,
                sample_rate=RATE_HZ,
            )
            if clip.video_THWC is None:
                raise ClipError(f"{self.row['uri']}: no picture could be decoded")
            found.append(np.ascontiguousarray(clip.video_THWC[0]))
        return found

    def blocks(self) -> Iterator[np.ndarray]:
        """The sound of the clip, mono, in blocks that follow each other."""
        starts = np.arange(self.start_s, self.end_s, BLOCK_S)
        return (self.sound(start_s, min(start_s + BLOCK_S, self.end_s)) for start_s in starts)

    def sound(self, start_s: float, end_s: float) -> np.ndarray:
        """float32 [N] of [start_s, end_s) seconds of the file, zeros where nothing was recorded."""
        first, last = round(start_s * RATE_HZ), round(end_s * RATE_HZ)
        if self.block_N is not None:  # a short clip is decoded once
            begin, samples_N = self.block_N
            if begin <= first and last <= begin + len(samples_N):
                return samples_N[first - begin : last - begin]
        path = str(_path(self.row["audio_uri"] or self.row["uri"]))
        samples_N = self.reader.call("avtok.reading.sound.read_sound", path, first, last, RATE_HZ)
        if samples_N is None:
            raise ClipError(f"{self.row['uri']}: no sound could be decoded")
        self.block_N = (first, samples_N)
        return samples_N


def open_media(limits: Limits | None) -> ClipReader:
    """limits None: decode in this process."""
    return open_reader(limits=limits)


def _path(uri: str) -> Path:
    try:
        return local_copy(uri)
    except StoreError as error:
        raise ClipError(str(error)) from None


def _size(row: dict[str, Any]) -> tuple[int, int]:
    """The stored picture's shape, so that nothing is cut off, made small."""
    height, width = max(1, row["height"] or 0), max(1, row["width"] or 0)
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return max(8, round(height * scale)), max(8, round(width * scale))
