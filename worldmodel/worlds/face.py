"""A face from the front: head, hair, eyes that blink, and a mouth. Anti-aliased by supersampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# T frames, H rows, W columns, C red green blue. Places are in picture widths, x to the right and y down.

HAIR: dict[str, tuple[int, int, int]] = {
    "dark": (52, 38, 34),
    "red": (186, 74, 34),
    "blond": (224, 186, 102),
    "grey": (158, 160, 166),
}
SHIRTS: dict[str, tuple[int, int, int]] = {
    "blue": (58, 104, 214),
    "green": (36, 156, 112),
    "white": (226, 228, 232),
}
SKIN = ((238, 196, 164), (206, 154, 116), (140, 94, 66))
BACKGROUND = (34, 40, 54)
LIPS, INSIDE, EYE = (176, 66, 74), (44, 8, 14), (28, 30, 40)
SAMPLES = 4  # a side of a pixel
HEAD = (0.24, 0.30)  # half width and height
MOUTH_BELOW, EYES_ABOVE, EYE_APART = 0.15, 0.06, 0.10  # from the head's middle
LIP = 0.02
MOUTH_WIDTH = (0.055, 0.115)  # half of it, rounded and spread
MOUTH_HEIGHT = 0.085  # half of it, wide open


@dataclass(frozen=True)
class FaceLook:
    """Names of HAIR and SHIRTS, a number of SKIN, long hair or short, and where the head's middle is."""

    hair: str
    shirt: str
    skin: int
    long_hair: bool
    center: tuple[float, float]


def draw_face(mouth_T2: np.ndarray, blinks_T: np.ndarray, look: FaceLook, *, size_px: int) -> np.ndarray:
    """uint8 [T, H, W, C]. mouth_T2: opening and width, each 0 to 1. blinks_T: eyes are shut."""
    faces = [_still(look, shut, size_px) for shut in (False, True)]
    x, y = look.center
    top, bottom = (int((y + MOUTH_BELOW + part) * size_px) for part in (-0.14, 0.15))
    columns, rows = _grid(size_px, top, bottom)
    video_THWC = np.empty((len(mouth_T2), size_px, size_px, 3), np.uint8)
    for frame, ((opening, width), shut) in enumerate(zip(mouth_T2, blinks_T, strict=True)):
        canvas = faces[int(shut)].copy()
        half_width = MOUTH_WIDTH[0] + float(width) * (MOUTH_WIDTH[1] - MOUTH_WIDTH[0])
        half_height = float(opening) * MOUTH_HEIGHT
        part = canvas[top * SAMPLES : bottom * SAMPLES]
        at = (x, y + MOUTH_BELOW)
        part[_ellipse(columns, rows, at, (half_width + LIP, half_height + LIP))] = LIPS
        if half_height > 0:
            part[_ellipse(columns, rows, at, (half_width, half_height))] = INSIDE
        video_THWC[frame] = _shrunk(canvas, size_px)
    return video_THWC


def _still(look: FaceLook, eyes_shut: bool, size_px: int) -> np.ndarray:
    """float32 [H * SAMPLES, W * SAMPLES, C] of everything but the mouth."""
    columns, rows = _grid(size_px, 0, size_px)
    canvas = np.empty((size_px * SAMPLES, size_px * SAMPLES, 3), np.float32)
    canvas[:] = BACKGROUND
    x, y = look.center
    skin = SKIN[look.skin]
    hair = (HEAD[0] + 0.05, HEAD[1] + (0.14 if look.long_hair else 0.05))
    hair_at = (x, y + (0.06 if look.long_hair else -0.03))
    canvas[_ellipse(columns, rows, hair_at, hair)] = HAIR[look.hair]
    canvas[_ellipse(columns, rows, (x, 1.12), (0.42, 0.28))] = SHIRTS[look.shirt]
    canvas[(abs(columns - x) < 0.08) & (rows > y) & (rows < y + HEAD[1] + 0.08)] = np.multiply(skin, 0.85)
    canvas[_ellipse(columns, rows, (x, y), HEAD)] = skin
    fringe = _ellipse(columns, rows, (x, y - 0.24), (0.22, 0.10)) & _ellipse(columns, rows, (x, y), HEAD)
    canvas[fringe] = HAIR[look.hair]
    for side in (-1, 1):
        eye = (x + side * EYE_APART, y - EYES_ABOVE)
        canvas[_ellipse(columns, rows, eye, (0.035, 0.006 if eyes_shut else 0.035))] = EYE
    return canvas


def _grid(size_px: int, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns [1, W * SAMPLES] and rows [H * SAMPLES, 1] of samples between two rows of pixels."""
    scale = size_px * SAMPLES
    columns = (np.arange(scale, dtype=np.float32) + 0.5) / scale
    rows = (np.arange(top * SAMPLES, bottom * SAMPLES, dtype=np.float32) + 0.5) / scale
    return columns[None, :], rows[:, None]


def _ellipse(
    columns: np.ndarray, rows: np.ndarray, at: tuple[float, float], half: tuple[float, float]
) -> np.ndarray:
    return ((columns - at[0]) / half[0]) ** 2 + ((rows - at[1]) / half[1]) ** 2 < 1


def _shrunk(canvas: np.ndarray, size_px: int) -> np.ndarray:
    means = canvas.reshape(size_px, SAMPLES, size_px, SAMPLES, 3).mean(axis=(1, 3))
    return (means + 0.5).astype(np.uint8)
