"""Actions in time: from one row per frame of a clip to one row per frame of a grid of another rate."""

from __future__ import annotations

from math import floor

import numpy as np

# F frames of the clip, G frames of the grid, A action width.

SAME_RATE_FRAMES = 0.5  # rates that part by less than this over a whole clip are one: containers round stamps
SLACK_FRAMES = 1e-6  # a picture due at just the time of the grid is shown


def resampled(actions_FA: np.ndarray, *, clip_hz: float, grid_hz: float, start_s: float = 0.0) -> np.ndarray:
    """[G, A]: row i is the mean of what was told from the picture shown at grid frame i to that at i + 1.

    actions_FA[f] takes frame f of the clip to frame f + 1; row 0 belongs to the frame shown at start_s. A
    grid frame shows the last picture at or before its time, as `decode_clip` does. Where the grid is finer
    and a picture stays, so does its action. Grid frames whose next picture lies beyond the last action are
    left out. clip_hz 0 (no picture) or the grid's own rate: the actions as they are.
    """
    if not clip_hz or abs(clip_hz - grid_hz) * len(actions_FA) / clip_hz < SAME_RATE_FRAMES:
        return actions_FA
    shown_G1 = frames_shown(len(actions_FA), clip_hz=clip_hz, grid_hz=grid_hz, start_s=start_s)
    sums_FA = np.concatenate([np.zeros_like(actions_FA[:1]), actions_FA]).cumsum(0, dtype=np.float64)
    is_told_G = shown_G1[:-1] < len(actions_FA)
    first_G = shown_G1[:-1][is_told_G]
    last_G = np.maximum(shown_G1[1:][is_told_G], first_G + 1)
    return (sums_FA[last_G] - sums_FA[first_G]) / (last_G - first_G)[:, None]


def frames_shown(num_frames: int, *, clip_hz: float, grid_hz: float, start_s: float = 0.0) -> np.ndarray:
    """Which frame of the clip each frame of the grid shows, int64, up to the first beyond `num_frames`.

    Both are counted from the frame that is shown at start_s.
    """
    count = floor(num_frames * grid_hz / clip_hz) + 2
    time_s = start_s + np.arange(count) / grid_hz
    shown = np.floor(time_s * clip_hz + SLACK_FRAMES).astype(np.int64) - floor(
        start_s * clip_hz + SLACK_FRAMES
    )
    return shown[shown <= num_frames]
