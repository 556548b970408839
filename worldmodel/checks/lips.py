"""Does the mouth move with the voice: the shift at which opening and loudness fit best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldmodel.worlds.face import INSIDE

# E episodes, T frames, H W pixels, N samples, S points of a fine grid, L lags.

GRID_HZ = 200
SMOOTH_S = 0.06  # loudness over about a phoneme
REACH_S = 0.4
DARK = 40  # how far each channel may be from the inside of a mouth
_REGION = (0.45, 0.9)  # rows of the picture that may hold a mouth: below eyes, above a shirt


def mouth_opening(video_THWC: np.ndarray) -> np.ndarray:
    """[T]: share of the picture that is the inside of a mouth, of world `talker`."""
    height = video_THWC.shape[1]
    part = video_THWC[:, int(_REGION[0] * height) : int(_REGION[1] * height)].astype(int)
    return (np.abs(part - np.array(INSIDE)).max(-1) < DARK).mean(axis=(1, 2))


def loudness(audio_N: np.ndarray, sample_rate: int, times_s: np.ndarray) -> np.ndarray:
    """[S]: root mean square around each time."""
    half = max(1, round(SMOOTH_S * sample_rate / 2))
    total = np.concatenate([[0.0], np.cumsum(np.square(audio_N, dtype=np.float64))])
    middle = np.round(times_s * sample_rate).astype(int)
    low, high = np.clip(middle - half, 0, len(audio_N)), np.clip(middle + half, 0, len(audio_N))
    return np.sqrt(np.maximum(total[high] - total[low], 0) / np.maximum(high - low, 1))


def lip_fit(
    clips: Sequence[tuple[np.ndarray, np.ndarray]], *, fps: float, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """(lags in seconds [L], correlation of each clip [E, L]) of (video_THWC, audio_N) pairs. At a positive
    lag the sound is moved to be earlier: where it fits best there, it is late."""
    lags_S = np.arange(-round(REACH_S * GRID_HZ), round(REACH_S * GRID_HZ) + 1)
    rows = []
    for video_THWC, audio_N in clips:
        seconds = min(len(video_THWC) / fps, len(audio_N) / sample_rate)
        grid_S = np.arange(round(seconds * GRID_HZ)) / GRID_HZ
        opening_S = np.interp(grid_S, np.arange(len(video_THWC)) / fps, mouth_opening(video_THWC))
        loud_S = loudness(audio_N, sample_rate, grid_S)
        rows.append([_correlation(opening_S, loud_S, int(lag)) for lag in lags_S])
    return lags_S / GRID_HZ, np.array(rows)


def lip_offset_ms(
    clips: Sequence[tuple[np.ndarray, np.ndarray]], *, fps: float, sample_rate: int
) -> tuple[float, float]:
    """(offset, fit): how late the sound is against the mouth over all clips together, in milliseconds, and
    the mean correlation there. NaN and 0 where no mouth opens or nothing is heard."""
    lags_L, fit_EL = lip_fit(clips, fps=fps, sample_rate=sample_rate)
    usable_EL = fit_EL[np.isfinite(fit_EL).all(axis=1)]
    if not len(usable_EL):
        return float("nan"), 0.0
    mean_L = usable_EL.mean(axis=0)
    best = int(mean_L.argmax())
    return 1e3 * float(lags_L[best]), float(mean_L[best])


def _correlation(a_S: np.ndarray, b_S: np.ndarray, lag: int) -> float:
    """Of a with b moved by `lag` points to be earlier; NaN where either is constant."""
    if lag >= 0:
        a_S, b_S = a_S[: len(a_S) - lag], b_S[lag:]
    else:
        a_S, b_S = a_S[-lag:], b_S[:lag]
    if a_S.std() < 1e-9 or b_S.std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(a_S, b_S)[0, 1])
