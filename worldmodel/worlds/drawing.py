"""Anti-aliased discs on a plain dark box. The picture is the box: box widths times the size are pixels."""

from __future__ import annotations

import numpy as np

# T frames, K bodies, H rows, W columns, C red green blue.

BACKGROUND = (14, 15, 22)
WALL = (46, 50, 66)
RIM_LIGHT = (
    0.78  # brightness at the rim over that at the centre; symmetric, so that the centroid stays the position
)


def draw_discs(
    positions_TK2: np.ndarray, radius_K: np.ndarray, *, colors: list[tuple[int, int, int]], size_px: int
) -> np.ndarray:
    """uint8 [T, H, W, C]. A pixel is covered as far as the signed distance of its centre to the rim says."""
    plain_HWC = empty_box(size_px)
    canvas_THWC = np.broadcast_to(plain_HWC, (len(positions_TK2), *plain_HWC.shape)).copy()
    centers_P = np.arange(size_px, dtype=np.float32) + 0.5
    for body, color in enumerate(colors):
        center_T2 = (positions_TK2[:, body] * size_px).astype(np.float32)
        radius_px = np.float32(radius_K[body] * size_px)
        dx2_TW = (centers_P - center_T2[:, 0, None]) ** 2
        dy2_TH = (centers_P - center_T2[:, 1, None]) ** 2
        d2_THW = dy2_TH[:, :, None] + dx2_TW[:, None, :]
        touched = np.nonzero(d2_THW < (radius_px + 0.5) ** 2)  # a disc is a few percent of the picture
        d2_P = d2_THW[touched]
        cover_P1 = np.minimum(radius_px + np.float32(0.5) - np.sqrt(d2_P), 1.0)[:, None]
        light_P1 = (1.0 - (1.0 - RIM_LIGHT) * np.minimum(d2_P / radius_px**2, 1.0))[:, None]
        ink_PC = light_P1 * np.array(color, dtype=np.float32)
        canvas_THWC[touched] += cover_P1 * (ink_PC - canvas_THWC[touched])
    return (canvas_THWC + np.float32(0.5)).astype(np.uint8)


def empty_box(size_px: int) -> np.ndarray:
    """float32 [H, W, C]: the background with a wall one pixel thin, or thicker in pictures above 64."""
    thickness = max(1, size_px // 64)
    plain_HWC = np.full((size_px, size_px, 3), WALL, dtype=np.float32)
    plain_HWC[thickness:-thickness, thickness:-thickness] = BACKGROUND
    return plain_HWC
