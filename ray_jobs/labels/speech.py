"""Where somebody may be speaking: a plain detector in front of the recognisers, which hear words in anything.

Speech is voiced about half of the time, its spectrum moves, and it is loud and soft within a second. Noise is
not voiced; a held tone, music and a bell are always; hum and rain are never soft.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ray_jobs.labels.windows import Span

# N samples at 16 kHz, F frames of 10 ms, B bands, W windows.

RATE_HZ = 16000
HOP, FRAME = 160, 400
WINDOW_FRAMES, WINDOW_HOP = 100, 25  # 1 s and 0.25 s
BANDS_HZ = ((100, 300), (300, 600), (600, 1000), (1000, 1700), (1700, 2700), (2700, 4000), (4000, 7000))
PITCH_HZ = (70, 400)
VOICED = 0.6  # of the autocorrelation at the pitch
ACTIVE_DB, LEAST_DB = 25.0, -50.0  # below the loudest frame of a window; below full scale
LEAST_ACTIVE_FRAMES = 15
# Set on real clips: the detector finds speech in each of 26 of people who speak, and in few others.
VOICED_SHARE = (0.25, 0.93)
LEAST_CHANGE_DB = 0.75  # of a band from one frame to the next, in the mean
LEAST_RANGE_DB = 12.0
PADDING_S, LEAST_GAP_S = 0.25, 0.5


def speech_spans(blocks: Iterable[np.ndarray]) -> list[Span]:
    """Stretches in seconds, in order and apart, of sound that comes in blocks which follow each other."""
    features, length_s = [], 0.0
    for block_N in blocks:
        features.append(_features(block_N))
        length_s += len(block_N) / RATE_HZ
    if not features:
        return []
    level_F, voiced_F, bands_FB = (np.concatenate(parts) for parts in zip(*features, strict=True))
    spans: list[Span] = []
    for start in range(0, max(1, len(level_F) - WINDOW_FRAMES + WINDOW_HOP), WINDOW_HOP):
        window = slice(start, start + WINDOW_FRAMES)
        if _is_speech(level_F[window], voiced_F[window], bands_FB[window]):
            from_s = max(0.0, start * HOP / RATE_HZ - PADDING_S)
            to_s = min(length_s, (start + WINDOW_FRAMES) * HOP / RATE_HZ + PADDING_S)
            if spans and from_s - spans[-1][1] < LEAST_GAP_S:
                spans[-1] = (spans[-1][0], to_s)
            else:
                spans.append((from_s, to_s))
    return spans


def _features(sound_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each frame: level in dB, whether it is voiced, power of the bands. The tail is padded with zeros."""
    num_frames = max(1, len(sound_N) // HOP)
    padded_N = np.pad(sound_N, (0, max(0, (num_frames - 1) * HOP + FRAME - len(sound_N))))
    frames = np.lib.stride_tricks.sliding_window_view(padded_N, FRAME)[: num_frames * HOP : HOP]
    level_F = 10 * np.log10(np.square(frames).mean(1) + 1e-12)
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), 512)) ** 2
    hz = np.fft.rfftfreq(512, 1 / RATE_HZ)
    bands_FB = np.stack([power[:, (hz >= low) & (hz < high)].sum(1) for low, high in BANDS_HZ], 1)
    centred = frames - frames.mean(1, keepdims=True)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(centred, 1024)) ** 2)[:, :FRAME]
    fall = 1 - np.arange(FRAME) / FRAME  # fewer samples overlap at a longer lag
    low, high = (round(RATE_HZ / f) for f in reversed(PITCH_HZ))
    at_pitch = (correlation / fall)[:, low:high].max(1)
    return level_F, at_pitch > VOICED * (correlation[:, 0] + 1e-9), bands_FB


def _is_speech(level_F: np.ndarray, voiced_F: np.ndarray, bands_FB: np.ndarray) -> bool:
    active_F = level_F > max(LEAST_DB, level_F.max() - ACTIVE_DB)
    if active_F.sum() < LEAST_ACTIVE_FRAMES:
        return False
    bands_db = 10 * np.log10(bands_FB + 1e-3 * bands_FB.max() + 1e-12)
    change_db = np.abs(np.diff(bands_db, axis=0))[active_F[1:]].mean()
    range_db = level_F.max() - np.percentile(level_F, 10)
    least, most = VOICED_SHARE
    return bool(
        least <= voiced_F[active_F].mean() <= most
        and change_db >= LEAST_CHANGE_DB
        and range_db >= LEAST_RANGE_DB
    )
