"""Where several bodies are in each frame: each is found by its hue, which no other body shares."""

from __future__ import annotations

import numpy as np

from worldmodel.checks.track import track_body
from worldmodel.worlds.drawing import BACKGROUND, COLORS

# T frames, H rows, W columns, C colours (RGB), K bodies, 2 = (x right, y down).

MIN_SATURATION = 0.3  # the plate, the pusher and walls are greyer than any body
MIN_BRIGHTNESS = 0.12  # of full scale above the background
MIN_AREA = 0.004  # of the frame: a quarter of the smallest body
NEAREST_HUE_SHARE = 0.45  # of the way to the next hue: a pixel further off is nobody's


def track_bodies(video_THWC: np.ndarray, colors: tuple[str, ...]) -> np.ndarray:
    """uint8 frames -> [T, K, 2] in box widths, NaN where a body is not seen.

    `colors` names the bodies' colours; without names there is one body, which is what stands out. ValueError
    for two bodies of one colour.
    """
    if not colors:
        return track_body(video_THWC).positions_T2[:, None]
    if len(set(colors)) < len(colors):
        raise ValueError(f"bodies of one colour cannot be told apart: {', '.join(colors)}")
    hue_THW, weight_THW = _hue(video_THWC.astype(np.float32) / 255.0)
    targets = [
        _hue(np.array(COLORS[name], np.float32)[None, None, None] / 255.0)[0].item() for name in COLORS
    ]
    reach = NEAREST_HUE_SHARE * _smallest_gap(targets)
    ours = [targets[list(COLORS).index(name)] for name in colors]
    return np.stack([_centroid(weight_THW * _near(hue_THW, hue, reach)) for hue in ours], axis=1)


def _hue(video_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in turns, and how much of a body a pixel shows, 0 to 1: brightness above the background, where
    there is colour at all."""
    lifted = np.maximum(video_THWC - np.array(BACKGROUND, np.float32) / 255.0, 0.0)
    high, low = lifted.max(-1), lifted.min(-1)
    spread = np.maximum(high - low, 1e-6)
    red, green, blue = np.moveaxis(lifted, -1, 0)
    hue = np.select(
        [high == red, high == green],
        [(green - blue) / spread, 2.0 + (blue - red) / spread],
        4.0 + (red - green) / spread,
    )
    coloured = (high - low) > MIN_SATURATION * np.maximum(high, MIN_BRIGHTNESS)
    return (hue / 6.0) % 1.0, np.where(coloured, np.minimum(high / 0.4, 1.0), 0.0)


def _smallest_gap(hues: list[float]) -> float:
    ordered = np.sort(hues)
    return float(np.diff(np.append(ordered, ordered[0] + 1.0)).min())


def _near(hue_THW: np.ndarray, hue: float, reach: float) -> np.ndarray:
    away = np.abs(hue_THW - hue)
    return np.minimum(away, 1.0 - away) <= reach


def _centroid(weight_THW: np.ndarray) -> np.ndarray:
    """[T, 2] around the densest place: specks of the same hue elsewhere do not pull."""
    _, height, width = weight_THW.shape
    x_W, y_H = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / width
    center_T2, area_T = _mean(weight_THW, x_W, y_H)
    for _ in range(3):
        across = np.abs(x_W - np.nan_to_num(center_T2[:, :1], nan=0.5)) <= 0.2
        down = np.abs(y_H - np.nan_to_num(center_T2[:, 1:], nan=0.5)) <= 0.2
        center_T2, area_T = _mean(weight_THW * (across[:, None, :] & down[:, :, None]), x_W, y_H)
    return np.where((area_T >= MIN_AREA * height * width)[:, None], center_T2, np.nan)


def _mean(weight_THW: np.ndarray, x_W: np.ndarray, y_H: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mass_T = weight_THW.sum((1, 2))
    moments_T2 = np.stack([weight_THW.sum(1) @ x_W, weight_THW.sum(2) @ y_H], axis=-1)
    return moments_T2 / np.maximum(mass_T, 1e-9)[:, None], mass_T
