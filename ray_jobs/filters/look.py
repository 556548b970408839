"""One look at a clip: its pictures, decoded once in pieces, become a few numbers for all filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from avtok.media import ClipError, Limits
from avtok.reader import ClipReader
from ray_jobs.filters.shots import ShotFinder
from ray_jobs.probing import reader_of, reason_of
from ray_jobs.stores import local_copy

# T frames, H W pixels, C channels, R K rows and columns of blocks, S steps of sound, B bands.

PIECE_S = 16.0  # decoded at a time: memory does not grow with the film
SAMPLE_S = 0.25  # from one sample to the next
BLOCKS = (6, 8)
FLAT_LEVELS = 2.0  # a picture whose blocks differ by less has no look of its own
SOUND_STEP_S = 0.25  # avtok.reading.looks.STEP_S


@dataclass(frozen=True)
class Look:
    """What was seen between start_s and end_s, at samples about SAMPLE_S apart. Times from the origin.

    blocks_TRK: mean luma of parts of the picture. hash_T: perceptual hashes, 0 where the picture is flat.
    sound_SB: level of bands in steps of SOUND_STEP_S from start_s, None without sound.
    """

    start_s: float
    end_s: float
    cuts_s: list[float] = field(default_factory=list)
    time_T: np.ndarray = field(default_factory=lambda: np.zeros(0))
    blocks_TRK: np.ndarray = field(default_factory=lambda: np.zeros((0, *BLOCKS), np.float16))
    hash_T: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    sound_SB: np.ndarray | None = None
    reason: str = ""  # why nothing could be seen

    def between(self, start_s: float, end_s: float) -> Look:
        """The part of a shot."""
        inside_T = (self.time_T >= start_s - 1e-6) & (self.time_T < end_s - 1e-6)
        first, last = (round((at_s - self.start_s) / SOUND_STEP_S) for at_s in (start_s, end_s))
        return Look(
            start_s,
            end_s,
            [],
            self.time_T[inside_T],
            self.blocks_TRK[inside_T],
            self.hash_T[inside_T],
            None if self.sound_SB is None else self.sound_SB[first:last],
            self.reason,
        )


@dataclass(frozen=True)
class LookTask:
    """What is looked at: uri, its span, and which numbers are wanted."""

    uri: str
    audio_uri: str
    start_s: float
    end_s: float
    has_video: bool
    has_sound: bool
    shots: bool
    hashes: bool  # of pictures
    sound: bool  # its print
    limits: Limits | None


def look_at(task: LookTask) -> Look:
    """Never raises for a bad file: the look then carries the reason."""
    try:
        reader, path = reader_of(task.limits), str(local_copy(task.uri))
        seen = _pictures(reader, path, task) if task.has_video else {}
        sound_SB = None
        if task.has_sound and task.sound:
            sound_path = str(local_copy(task.audio_uri)) if task.audio_uri else path
            steps = [
                reader.call("avtok.reading.looks.read_sound_print", sound_path, begin_s, end_s)
                for begin_s, end_s in pieces(task.start_s, task.end_s)
            ]
            sound_SB = np.concatenate(steps).astype(np.float16) if steps else None
        return Look(task.start_s, task.end_s, sound_SB=sound_SB, **seen)
    except (ClipError, OSError) as error:
        return Look(task.start_s, task.end_s, reason=reason_of(error, task.uri))


def pieces(start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
    """PIECE_S is whole steps of the sound's print, so that those of all pieces follow each other."""
    count = max(1, int(np.ceil((end_s - start_s) / PIECE_S - 1e-9)))
    for i in range(count):
        yield start_s + i * PIECE_S, min(end_s, start_s + (i + 1) * PIECE_S)


def _pictures(reader: ClipReader, path: str, task: LookTask) -> dict[str, Any]:
    finder = ShotFinder() if task.shots else None
    times: list[float] = []
    blocks: list[np.ndarray] = []
    hashes: list[int] = []
    end_s = task.end_s if task.end_s > task.start_s else task.start_s + 1.0  # an image lasts 0 s
    for begin_s, until_s in pieces(task.start_s, end_s):
        time_T, image_THWC = reader.call("avtok.reading.looks.read_looks", path, begin_s, until_s)
        if finder is not None:
            finder.add(time_T, image_THWC)
        for time_s, image_HWC in zip(time_T, image_THWC, strict=True):
            if times and time_s < times[-1] + SAMPLE_S - 1e-3:
                continue
            blocks_RK = block_means(image_HWC)
            times.append(float(time_s))
            blocks.append(blocks_RK)
            hashes.append(picture_hash(image_HWC, blocks_RK) if task.hashes else 0)
    return {
        "cuts_s": finder.finish() if finder else [],
        "time_T": np.array(times),
        "blocks_TRK": np.stack(blocks).astype(np.float16) if blocks else np.zeros((0, *BLOCKS), np.float16),
        "hash_T": np.array(hashes, np.uint64),
    }


def block_means(image_HWC: np.ndarray) -> np.ndarray:
    """Mean luma of each block, float32 [R, K]."""
    luma_HW = image_HWC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(Image.fromarray(luma_HW).resize((BLOCKS[1], BLOCKS[0]), Image.Resampling.BOX))


def picture_hash(image_HWC: np.ndarray, blocks_RK: np.ndarray) -> int:
    """64 bits that stay much the same when a picture is scaled or encoded anew; 0 for a flat one."""
    if float(blocks_RK.std()) < FLAT_LEVELS:
        return 0
    import imagehash

    bits = imagehash.phash(Image.fromarray(image_HWC)).hash.reshape(-1)
    return int(np.packbits(bits).view(">u8")[0])


def can_hash() -> bool:
    return find_spec("imagehash") is not None
