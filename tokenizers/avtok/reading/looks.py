"""Small pictures with their times, and a coarse print of the sound: what filters look at."""

from __future__ import annotations

from itertools import pairwise

import av
import numpy as np

from avtok.clock import slack_s
from avtok.reading.container import (
    SEEK_AFTER_S,
    best_streams,
    first_times_s,
    frames,
    identity,
    open_media,
    seek_to,
    time_s_of,
)
from avtok.reading.sound import read_sound

# T frames, H W pixels, C channels, N samples, S steps of sound, B bands.

SIDE_PX = 96  # of the longer side
PRINT_HZ = 16000
STEP_S = 0.25  # of the sound's print
BAND_EDGES_HZ = (60, 150, 300, 500, 800, 1200, 1800, 2600, 3800, 7600)
FLOOR_DB = -70.0


def read_looks(uri: str, start_s: float, end_s: float, seek: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Every frame that begins in [start_s, end_s): float64 seconds from the origin, uint8 RGB [T, H, W, C].

    Pictures are as stored, not turned upright. Empty where nothing begins, and where nothing can be decoded.
    """
    begin, faults = first_times_s(*identity(uri)), []
    origin_s = begin.origin_s + begin.held_back_s  # of the stamps of pictures
    found: list[tuple[float, np.ndarray]] = []
    with open_media(uri) as container:
        stream = best_streams(container)[0]
        if stream is None:
            return np.zeros(0), np.zeros((0, 1, 1, 3), np.uint8)
        slack = slack_s(stream.time_base or 0)
        sought = seek and start_s > SEEK_AFTER_S and seek_to(container, stream, start_s + origin_s)
        is_first = True
        for frame in frames(container, stream, av.VideoFrame, faults):
            time_s = time_s_of(frame) - origin_s
            if sought and is_first and time_s > start_s + slack:  # the index pointed past the start
                return read_looks(uri, start_s, end_s, seek=False)
            is_first = False
            if time_s >= end_s - slack:
                break
            if time_s >= start_s - slack:
                found.append((time_s, _small(frame)))
        if sought and is_first:
            return read_looks(uri, start_s, end_s, seek=False)
    found = [(time_s, image) for time_s, image in found if image.shape == found[0][1].shape]
    found.sort(key=lambda each: each[0])
    images_THWC = np.stack([image for _, image in found]) if found else np.zeros((0, 1, 1, 3), np.uint8)
    return np.array([time_s for time_s, _ in found], np.float64), images_THWC


def read_sound_print(uri: str, start_s: float, end_s: float) -> np.ndarray:
    """Level of each band in each whole step of STEP_S, float32 dB [S, B], no lower than FLOOR_DB."""
    size = round(STEP_S * PRINT_HZ)
    first, steps = round(start_s * PRINT_HZ), int((end_s - start_s) / STEP_S + 1e-6)
    audio_N = read_sound(uri, first, first + steps * size, PRINT_HZ) if steps else None
    if audio_N is None:
        return np.full((steps, len(BAND_EDGES_HZ) - 1), FLOOR_DB, np.float32)
    power_SF = np.abs(np.fft.rfft(audio_N.reshape(steps, size) * np.hanning(size))) ** 2 / (size / 4) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(size, 1 / PRINT_HZ), BAND_EDGES_HZ)
    power_SB = np.stack([power_SF[:, a:b].sum(1) for a, b in pairwise(edges)], axis=1)
    return (10 * np.log10(np.maximum(power_SB, 10 ** (FLOOR_DB / 10)))).astype(np.float32)


def _small(frame: av.VideoFrame) -> np.ndarray:
    scale = min(1.0, SIDE_PX / max(frame.width, frame.height))
    width, height = (max(2, round(side * scale)) for side in (frame.width, frame.height))
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA", threads=1)
    return small.to_ndarray()
