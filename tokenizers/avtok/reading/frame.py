"""One decoded frame as it is shown: turned, scaled, cropped, in RGB."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from avtok.convert import centre_crop, turn_of, upright


def display_size(frame: av.VideoFrame, aspect: Fraction) -> tuple[int, int, tuple[bool, bool, bool]]:
    """Height and width as shown, and the turn. aspect: width of a stored pixel over its height."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    turn = turn_of(None if matrix is None else bytes(matrix))
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height, turn) if turn[0] else (height, width, turn)


def to_rgb(frame: av.VideoFrame, aspect: Fraction, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, C], turned upright; the shorter side is fitted to `size` and the centre kept."""
    height, width, turn = display_size(frame, aspect)
    scale = max(size[0] / height, size[1] / width)
    fitted = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    stored_h, stored_w = fitted[::-1] if turn[0] else fitted
    rgb = frame.reformat(
        width=stored_w,
        height=stored_h,
        format="rgb24",
        interpolation="AREA" if scale < 1 else "BICUBIC",
        threads=1,  # more are started anew for each frame, which takes longer than the frame
    )
    return centre_crop(upright(rgb.to_ndarray(), turn), size)


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a stored pixel over its height."""
    return stream.sample_aspect_ratio or Fraction(1)
