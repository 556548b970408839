"""Does the picture stand still or go black?"""

from __future__ import annotations

import numpy as np
from einops import rearrange

# T frames, H rows, W columns, C colours, P pixels of one frame.

STILL_DIFFERENCE = 0.02  # of full scale, about 5 grey levels: more than what a codec does to a still picture
BLACK_LEVEL = 0.02  # of full scale, brightest 1 %: dark worlds are not black ones


def still_frames(video_THWC: np.ndarray) -> np.ndarray:
    """[T-1] booleans: frame i + 1 shows no change against frame i.

    A small body changes few pixels, so the mean of the 1 % largest differences decides, not the mean of all.
    """
    if len(video_THWC) < 2:
        return np.zeros(0, dtype=bool)
    change_THWC = np.abs(np.diff(video_THWC.astype(np.int16), axis=0))
    return _brightest_percent(change_THWC) < STILL_DIFFERENCE


def still_share(video_THWC: np.ndarray) -> float:
    """Share of frames that show no change; 1 for a frozen picture."""
    still = still_frames(video_THWC)
    return float(still.mean()) if len(still) else float("nan")


def longest_freeze_s(video_THWC: np.ndarray, *, fps: float) -> float:
    longest = run = 0
    for is_still in still_frames(video_THWC):
        run = run + 1 if is_still else 0
        longest = max(longest, run)
    return longest / fps


def black_share(video_THWC: np.ndarray) -> float:
    """Share of frames in which even the brightest 1 % is black."""
    if len(video_THWC) == 0:
        return float("nan")
    return float((_brightest_percent(video_THWC) < BLACK_LEVEL).mean())


def _brightest_percent(values_THWC: np.ndarray) -> np.ndarray:
    """Mean of the largest 1 % of pixels of each frame, of full scale; a pixel is its largest colour."""
    largest_TP = rearrange(values_THWC.max(axis=-1), "t h w -> t (h w)")
    count = max(1, largest_TP.shape[1] // 100)
    return np.partition(largest_TP, -count, axis=1)[:, -count:].mean(axis=1) / 255.0
