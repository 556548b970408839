"""Position error against horizon, in box widths, and what it must be compared with.

A horizon is the time since the last given frame `num_given - 1`; the first generated frame is at 1 / fps.
"""

from __future__ import annotations

import numpy as np

# E episodes, T frames, K generated frames (horizons), 2 = (x, y).

LOST_ERROR = float(np.sqrt(2.0))  # a body that is not seen is wrong by the box diagonal


def horizons_s(num_generated: int, fps: float) -> np.ndarray:
    return np.arange(1, num_generated + 1) / fps


def position_error(positions_T2: np.ndarray, truth_T2: np.ndarray) -> np.ndarray:
    """Distance per frame over the frames that both have; a lost body (NaN) scores the box diagonal."""
    num_frames = min(len(positions_T2), len(truth_T2))
    error_T = np.linalg.norm(positions_T2[:num_frames] - truth_T2[:num_frames], axis=-1)
    return np.where(np.isfinite(error_T), np.minimum(error_T, LOST_ERROR), LOST_ERROR)


def frozen_error(truth_T2: np.ndarray, num_given: int) -> np.ndarray:
    """Baseline: the last given frame stands still."""
    return position_error(np.broadcast_to(truth_T2[num_given - 1], truth_T2.shape), truth_T2)[num_given:]


def constant_velocity_error(truth_T2: np.ndarray, num_given: int) -> np.ndarray:
    """Reference beside the score: the last velocity goes on, through walls. It knows motion, not contacts."""
    last_2 = truth_T2[num_given - 1]
    velocity_2 = last_2 - truth_T2[num_given - 2] if num_given >= 2 else np.zeros(2)
    steps_K = np.arange(1, len(truth_T2) - num_given + 1)
    return position_error(last_2 + steps_K[:, None] * velocity_2, truth_T2[num_given:])


def unrelated_errors(truths_ET2: list[np.ndarray], num_given: int, *, others: int = 8) -> np.ndarray:
    """Baseline [N, K]: up to `others` other episodes in place of each one. Empty for a single episode."""
    num = len(truths_ET2)
    rows = [
        position_error(truths_ET2[(index + shift) % num], truths_ET2[index])[num_given:]
        for shift in range(1, min(others, num - 1) + 1)
        for index in range(num)
    ]
    shortest = min((len(row) for row in rows), default=0)
    return np.array([row[:shortest] for row in rows]).reshape(len(rows), shortest)
