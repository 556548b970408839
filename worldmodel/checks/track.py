"""Where the body is in each frame: sub-pixel centroid of what stands out from a dark, plain background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from einops import rearrange

# T frames, H rows, W columns, C colours (RGB), 2 = (x right, y down).

MIN_CONTRAST = 0.15  # of full scale: what differs less from the background is codec noise, not a body
MIN_AREA = 0.008  # of the frame: a quarter of the smallest body
MAX_AREA = 0.25  # of the frame: a flash, not a body
MAX_SPREAD = 2.0  # over that of a disc of the same area
MIN_SHARE = 0.5  # of all that stands out in the frame
SOFT_EDGE = (
    0.25,
    0.75,
)  # of the body's contrast: symmetric about one half, so that an edge pixel adds no bias


@dataclass(frozen=True)
class Track:
    """positions_T2 in box widths (pixel centre: column + 0.5), NaN where none is seen. area_T in frames."""

    positions_T2: np.ndarray
    area_T: np.ndarray


def track_body(
    video_THWC: np.ndarray,
    *,
    min_contrast: float = MIN_CONTRAST,
    min_area: float = MIN_AREA,
    max_area: float = MAX_AREA,
) -> Track:
    """Follow the one body of uint8 frames. A frame without a compact body of plausible area gives NaN."""
    if video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or video_THWC.dtype != np.uint8:
        raise ValueError(
            f"track_body needs uint8 [T, H, W, 3], got {video_THWC.dtype} {list(video_THWC.shape)}"
        )
    num_frames, height, width, _ = video_THWC.shape
    if num_frames == 0:
        return Track(np.zeros((0, 2)), np.zeros(0))
    weight_THW = _body_weight(video_THWC.astype(np.float32) / 255.0, min_contrast)

    x_W = (np.arange(width) + 0.5) / width
    y_H = (np.arange(height) + 0.5) / width  # the same unit on both axes
    center_T2 = _densest_place(weight_THW, x_W, y_H)
    half_side = 0.2  # box widths: the largest body with a margin
    # The first window is centred on a box sum, the second on a centroid.
    center_T2, _ = _centroid(weight_THW * _window(center_T2, x_W, y_H, half_side), x_W, y_H)
    near_THW = weight_THW * _window(center_T2, x_W, y_H, half_side)
    center_T2, mass_T = _centroid(near_THW, x_W, y_H)

    # A disc of area A has variances that sum to A / 2 pi; smoke and speckles spread more, or lie everywhere.
    spread_THW = (x_W - center_T2[:, None, None, 0]) ** 2 + (y_H[:, None] - center_T2[:, None, None, 1]) ** 2
    spread_T = (near_THW * spread_THW).sum(axis=(1, 2)) / np.maximum(mass_T, 1e-9)
    area_T = mass_T / (height * width)
    disc_T = area_T * height / width / (2 * np.pi)
    seen_T = (area_T >= min_area) & (area_T <= max_area) & (spread_T <= MAX_SPREAD * disc_T)
    seen_T &= mass_T >= MIN_SHARE * weight_THW.sum(axis=(1, 2))
    return Track(np.where(seen_T[:, None], center_T2, np.nan), area_T)


def _body_weight(video_THWC: np.ndarray, min_contrast: float) -> np.ndarray:
    """Share of the body in each pixel, 0 to 1: colour distance to the background over the body's own."""
    pixels_PC = rearrange(video_THWC, "t h w c -> (t h w) c")
    background_C = np.median(pixels_PC[:: max(1, len(pixels_PC) // 20000)], axis=0)
    distance_THW = np.sqrt(((video_THWC - background_C) ** 2).sum(-1))
    # The smallest body covers 3 % of a frame, so this quantile lies inside it. One contrast a clip.
    inside_T = np.quantile(rearrange(distance_THW, "t h w -> t (h w)"), 0.985, axis=1)
    contrast = max(float(np.median(inside_T)), min_contrast)
    low, high = SOFT_EDGE
    return np.clip((distance_THW / contrast - low) / (high - low), 0.0, 1.0)


def _densest_place(weight_THW: np.ndarray, x_W: np.ndarray, y_H: np.ndarray) -> np.ndarray:
    """Centre of the square, a quarter of the width on a side, that holds most weight (summed-area table)."""
    reach = max(1, round(0.125 * len(x_W)))
    padded = np.pad(weight_THW, ((0, 0), (reach + 1, reach), (reach + 1, reach)))
    table = padded.cumsum(1).cumsum(2)
    side = 2 * reach + 1
    sums = (
        table[:, side:, side:] - table[:, :-side, side:] - table[:, side:, :-side] + table[:, :-side, :-side]
    )
    row_T, column_T = np.unravel_index(sums.reshape(len(sums), -1).argmax(axis=1), sums.shape[1:])
    return np.stack([x_W[column_T], y_H[row_T]], axis=-1)


def _centroid(weight_THW: np.ndarray, x_W: np.ndarray, y_H: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mass_T = weight_THW.sum(axis=(1, 2))
    moments_T2 = np.stack([weight_THW.sum(1) @ x_W, weight_THW.sum(2) @ y_H], axis=-1)
    return moments_T2 / np.maximum(mass_T, 1e-9)[:, None], mass_T


def _window(center_T2: np.ndarray, x_W: np.ndarray, y_H: np.ndarray, half_side: float) -> np.ndarray:
    across_TW = np.abs(x_W - center_T2[:, :1]) <= half_side
    down_TH = np.abs(y_H - center_T2[:, 1:]) <= half_side
    return across_TW[:, None, :] & down_TH[:, :, None]
