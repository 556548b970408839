"""What the pusher does when nobody tells it: it wanders, one action a frame."""

from __future__ import annotations

import math

import numpy as np

# T frames, 2 is x (right) and y (down).

MEMORY_S = 0.5  # time over which a direction is forgotten


def wander(rng: np.random.Generator, *, num_frames: int, fps: int, limit: float) -> np.ndarray:
    """Actions [T, 2] in box widths/s: an Ornstein-Uhlenbeck walk with bursts of rest, clipped to +-limit."""
    keep = math.exp(-1.0 / (MEMORY_S * fps))
    noise_T2 = rng.standard_normal((num_frames, 2)) * limit * 0.7 * math.sqrt(1.0 - keep**2)
    actions_T2 = np.empty((num_frames, 2))
    now_2 = rng.standard_normal(2) * limit * 0.7
    for frame in range(num_frames):
        now_2 = keep * now_2 + noise_T2[frame]
        actions_T2[frame] = now_2
    resting_T = np.repeat(rng.uniform(size=-(-num_frames // fps)) < 0.15, fps)[:num_frames]
    actions_T2[resting_T] = 0.0
    return np.clip(actions_T2, -limit, limit)
