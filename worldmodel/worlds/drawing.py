"""Anti-aliased discs on a plain dark box. The picture is the box: box widths times the size are pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# T frames, K bodies, H rows, W columns, C red green blue, P touched pixels.

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (238, 52, 84),
    "orange": (240, 138, 36),
    "yellow": (236, 218, 60),
    "green": (32, 214, 178),
    "blue": (72, 128, 255),
    "purple": (186, 84, 240),
}
BACKGROUND = (14, 15, 22)
WALL = (46, 50, 66)
OCCLUDER = (92, 98, 116)
PUSHER = (206, 210, 220)
# Brightness and share of white against (distance from the centre / radius) ** 2. All looks are symmetric, so
# that the centroid stays the position.
RIM_LIGHT = 0.78


@dataclass(frozen=True)
class Look:
    """surface is `plain` or a material's name; radius in box widths."""

    color: tuple[int, int, int]
    surface: str
    radius: float


def draw_scene(
    positions_TK2: np.ndarray,
    looks: list[Look],
    *,
    size_px: int,
    pusher_T2: np.ndarray | None = None,
    pusher_radius: float = 0.0,
    occluder: tuple[float, float, float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [T, H, W, C], and the share of each body that the occluder leaves visible [T, K].

    A pixel is covered as far as the signed distance of its centre to the rim says. The occluder's edges lie
    between pixels.
    """
    plain_HWC = empty_box(size_px)
    canvas_THWC = np.broadcast_to(plain_HWC, (len(positions_TK2), *plain_HWC.shape)).copy()
    plate = None
    if occluder is not None:
        left, top, right, bottom = (round(edge * size_px) for edge in occluder)
        plate = (left, top, right, bottom)
    visible_TK = np.ones(positions_TK2.shape[:2])
    for body, look in enumerate(looks):
        touched, cover_P = _draw_disc(canvas_THWC, positions_TK2[:, body], look)
        if plate is not None:
            visible_TK[:, body] = _visible(touched, cover_P, plate, len(positions_TK2))
    if pusher_T2 is not None:
        _draw_disc(canvas_THWC, pusher_T2, Look(PUSHER, "pusher", pusher_radius))
    if plate is not None:
        canvas_THWC[:, plate[1] : plate[3], plate[0] : plate[2]] = OCCLUDER
    return (canvas_THWC + np.float32(0.5)).astype(np.uint8), visible_TK


def _draw_disc(canvas_THWC: np.ndarray, centers_T2: np.ndarray, look: Look) -> tuple[tuple, np.ndarray]:
    """Paints one disc into all frames; returns the touched pixels and how far each is covered."""
    size_px = canvas_THWC.shape[1]
    centers_P = np.arange(size_px, dtype=np.float32) + 0.5
    center_T2 = (centers_T2 * size_px).astype(np.float32)
    radius_px = np.float32(look.radius * size_px)
    dx2_TW = (centers_P - center_T2[:, 0, None]) ** 2
    dy2_TH = (centers_P - center_T2[:, 1, None]) ** 2
    d2_THW = dy2_TH[:, :, None] + dx2_TW[:, None, :]
    touched = np.nonzero(d2_THW < (radius_px + 0.5) ** 2)  # a disc is a few percent of the picture
    d2_P = d2_THW[touched]
    cover_P = np.minimum(radius_px + np.float32(0.5) - np.sqrt(d2_P), 1.0)
    ink_PC = _ink(look, np.minimum(d2_P / radius_px**2, 1.0))
    canvas_THWC[touched] += cover_P[:, None] * (ink_PC - canvas_THWC[touched])
    return touched, cover_P


def _ink(look: Look, rho2_P: np.ndarray) -> np.ndarray:
    """Colour [P, C] of the surface: rings of wood, a highlight on steel, glass brightest at its rim."""
    light_P, white_P = 1.0 - (1.0 - RIM_LIGHT) * rho2_P, np.zeros_like(rho2_P)
    if look.surface == "wood":
        light_P = 0.78 + 0.22 * np.cos(3.0 * np.pi * np.sqrt(rho2_P))
    elif look.surface == "steel":
        light_P, white_P = 0.95 - 0.45 * rho2_P, 0.85 * np.exp(-rho2_P / 0.12)
    elif look.surface == "glass":
        light_P = 0.38 + 0.62 * rho2_P**1.5
    elif look.surface == "pusher":
        light_P = np.where(rho2_P < 0.35, 0.55, 1.0)  # a ring: nothing else in the world is one
    color_C = np.array(look.color, dtype=np.float32)
    ink_PC = light_P[:, None] * color_C
    return (ink_PC + white_P[:, None] * (255.0 - ink_PC)).astype(np.float32)


def _visible(
    touched: tuple, cover_P: np.ndarray, plate: tuple[int, int, int, int], num_frames: int
) -> np.ndarray:
    frame_P, row_P, column_P = touched
    left, top, right, bottom = plate
    open_P = ~((row_P >= top) & (row_P < bottom) & (column_P >= left) & (column_P < right))
    total_T = np.bincount(frame_P, weights=cover_P, minlength=num_frames)
    return np.bincount(frame_P, weights=cover_P * open_P, minlength=num_frames) / np.maximum(total_T, 1e-9)


def empty_box(size_px: int) -> np.ndarray:
    """float32 [H, W, C]: the background with a wall one pixel thin, or thicker in pictures above 64."""
    thickness = max(1, size_px // 64)
    plain_HWC = np.full((size_px, size_px, 3), WALL, dtype=np.float32)
    plain_HWC[thickness:-thickness, thickness:-thickness] = BACKGROUND
    return plain_HWC
