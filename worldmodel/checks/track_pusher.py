"""Where the pusher is in each frame: the one grey disc of its size, and how fast it goes."""

from __future__ import annotations

import numpy as np

from worldmodel.worlds.drawing import BACKGROUND
from worldmodel.worlds.settings import PUSHER_RADIUS

# T frames, H rows, W columns, C colours (RGB), 2 = (x right, y down).

DARKEST, BRIGHTEST = 0.28, 0.36  # of full scale above the background; walls are darker
# Of full scale from its least to its greatest colour: only the middle of the highlight of steel has less.
GREYEST, COLOURED = 0.12, 0.30
MIN_AREA = 0.5  # of the pusher's own
MARGIN_PX = 1.5


def track_pusher(video_THWC: np.ndarray) -> np.ndarray:
    """uint8 frames -> [T, 2] in box widths, NaN where there is no grey disc as large."""
    _, height, width, _ = video_THWC.shape
    red_THW, green_THW, blue_THW = np.moveaxis(video_THWC.astype(np.float32) / 255.0, -1, 0)
    least_THW = np.minimum(np.minimum(red_THW, green_THW), blue_THW)
    spread_THW = np.maximum(np.maximum(red_THW, green_THW), blue_THW) - least_THW
    weight_THW = _ramp(least_THW - max(BACKGROUND) / 255.0, DARKEST, BRIGHTEST)
    weight_THW *= 1.0 - _ramp(spread_THW, GREYEST, COLOURED)
    x_W, y_H = np.arange(width) + 0.5, np.arange(height) + 0.5
    radius_px = PUSHER_RADIUS * width
    center_T2 = _densest_square(weight_THW, round(radius_px))
    mass_T = np.zeros(len(video_THWC))
    for _ in range(3):
        away_THW = (x_W - center_T2[:, None, None, 0]) ** 2 + (
            y_H[:, None] - center_T2[:, None, None, 1]
        ) ** 2
        near_THW = weight_THW * (away_THW <= (radius_px + MARGIN_PX) ** 2)
        mass_T = near_THW.sum((1, 2))
        moments_T2 = np.stack([near_THW.sum(1) @ x_W, near_THW.sum(2) @ y_H], axis=-1)
        center_T2 = moments_T2 / np.maximum(mass_T, 1e-9)[:, None]
    is_seen_T = mass_T >= MIN_AREA * np.pi * radius_px**2
    return np.where(is_seen_T[:, None], center_T2 / width, np.nan)


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _densest_square(weight_THW: np.ndarray, reach: int) -> np.ndarray:
    """Centre [T, 2] in pixels of the square, 2 reach + 1 on a side, that holds most weight."""
    side = 2 * reach + 1
    table = np.pad(weight_THW, ((0, 0), (reach + 1, reach), (reach + 1, reach))).cumsum(1).cumsum(2)
    sums = (
        table[:, side:, side:] - table[:, :-side, side:] - table[:, side:, :-side] + table[:, :-side, :-side]
    )
    row_T, column_T = np.unravel_index(sums.reshape(len(sums), -1).argmax(axis=1), sums.shape[1:])
    return np.stack([column_T, row_T], axis=-1) + 0.5
