"""Real picture files of known content, and the boxes of an .mp4 that muxers do not let one choose."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# H W pixels, C channels.

_BASE, _DARKEST, _STEP = 6, 20, 40


def write_frames(
    path: Path,
    times_s: Sequence[Fraction],
    images_HWC: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    tick: Fraction = Fraction(1, 90000),
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """RGB images at the times given."""
    height, width = images_HWC[0].shape[:2]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {"crf": "4", "g": "12"})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = tick
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for time_s, image_HWC in zip(times_s, images_HWC, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
            frame.pts, frame.time_base = round(time_s / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbered(count: int, size: tuple[int, int] = (64, 96)) -> list[np.ndarray]:
    """Images of three bands of grey each, of which `numbers_of` tells the number after any codec."""
    images = []
    for number in range(count):
        image_HWC = np.zeros((*size, 3), np.uint8)
        for band, digit in enumerate(_digits(number)):
            image_HWC[size[0] * band // 3 : size[0] * (band + 1) // 3] = _DARKEST + _STEP * digit
        images.append(image_HWC)
    return images


def numbers_of(video_THWC: np.ndarray) -> list[int]:
    """The number of each image, of at most 216."""
    third = video_THWC.shape[1] // 3
    numbers = []
    for image_HWC in video_THWC.astype(float):
        bands = [image_HWC[band * third + third // 4 : (band + 1) * third - third // 4] for band in range(3)]
        levels = np.array([(rows.mean() - _DARKEST) / _STEP for rows in bands])
        digits = np.round(levels).astype(int)
        assert np.abs(levels - digits).max() < 0.3, f"no number is this grey: {levels}"
        numbers.append(int(digits @ (_BASE**2, _BASE, 1)))
    return numbers


def _digits(number: int) -> tuple[int, int, int]:
    return number // _BASE**2, number // _BASE % _BASE, number % _BASE


def write_planes(
    path: Path,
    planes: Sequence[np.ndarray],
    pix_fmt: str,
    *,
    codec: str = "ffv1",
    count: int = 8,
    **tags: int,
) -> Path:
    """The same stored planes in each frame, without loss. tags: colorspace, color_range and so on."""
    height, width = planes[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index in range(count):
            frame = av.VideoFrame(width, height, pix_fmt)
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
                rows[:, : values.shape[1]] = values
                plane.update(rows.tobytes())
            for name, value in tags.items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = index, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """(a, b, c, d): a stored point (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def begin_at(path: Path, media_time: int) -> None:
    """The edit list of the first track starts the presentation at this tick of its media."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4 + 8 + 4
    data[at : at + 4] = struct.pack(">i", media_time)
    path.write_bytes(data)
