"""Do colour and loudness wander off? Needs no ground truth, so it applies to real clips too."""

from __future__ import annotations

import numpy as np

# T frames, H rows, W columns, C colours, N samples.

QUIET_DBFS = -60.0


def colour_drift(given_THWC: np.ndarray, generated_THWC: np.ndarray) -> float:
    """Mean RGB of the last half of what was generated against what was given: absolute difference, 0 to 1."""
    if len(given_THWC) == 0 or len(generated_THWC) == 0:
        return float("nan")
    late_THWC = generated_THWC[len(generated_THWC) // 2 :]
    return float(np.abs(given_THWC.mean(axis=(0, 1, 2)) - late_THWC.mean(axis=(0, 1, 2))).mean() / 255.0)


def loudness_drift_db(given_N: np.ndarray, generated_N: np.ndarray) -> float:
    """Level of what was generated against what was given, in dB; -60 dBFS and below is silence."""
    if len(given_N) == 0 or len(generated_N) == 0:
        return float("nan")
    return abs(_level_db(generated_N) - _level_db(given_N))


def _level_db(audio_N: np.ndarray) -> float:
    return float(10 * np.log10(np.square(audio_N, dtype=np.float64).mean() + 10 ** (QUIET_DBFS / 10)))
