"""One decoded frame as it is shown: scaled, cropped, turned, in the R'G'B' of a standard screen."""

# PyAV's planes are buffers; its stubs do not say so
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter

from avtok.convert import centre_crop, turn_of, upright
from avtok.media import ClipError
from avtok.reading.tone import Gamut, Transfer, to_sdr

# H W pixels, C channels.

MAX_STRETCH = 64  # a picture that much longer than the cut is broken, or would be a sliver
_TRANSFERS: dict[int, Transfer] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
# Planes keep colour at full width, where packed pixels share it in pairs, and take half the time to scale to.
# A picture that is not scaled is converted as FFmpeg's fastest path does it.
_RGB = {(True, True): "gbrp", (True, False): "rgb24", (False, True): "gbrp16le", (False, False): "gbrp16le"}
_GAMUTS: dict[int, Gamut] = {ColorPrimaries.BT2020: "bt2020", ColorPrimaries.SMPTE432: "p3"}


@dataclass(frozen=True)
class Look:
    """How a stored frame is meant. aspect: width of a stored pixel over its height.

    Untagged colours are BT.601 of limited range, as FFmpeg and all that is built on it takes them.
    """

    turn: tuple[bool, bool, bool]
    aspect: Fraction
    transfer: Transfer
    gamut: Gamut

    @classmethod
    def of(cls, frame: av.VideoFrame, aspect: Fraction) -> Look:
        matrix = frame.side_data.get("DISPLAYMATRIX")
        turn = turn_of(None if matrix is None else bytes(matrix))
        primaries = frame.color_primaries
        if primaries == ColorPrimaries.UNSPECIFIED and frame.colorspace == Colorspace.BT2020:
            primaries = ColorPrimaries.BT2020  # VP9 has one field for both
        gamut = _GAMUTS.get(primaries, "bt709")
        return cls(turn, aspect, _TRANSFERS.get(frame.color_trc, "sdr"), gamut)

    @property
    def is_standard(self) -> bool:
        return self.transfer == "sdr" and self.gamut == "bt709"

    def upright(self) -> Look:
        """Of the same frames once something has turned them."""
        return replace(self, turn=turn_of(None), aspect=1 / self.aspect if self.turn[0] else self.aspect)

    def shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        height, width = frame.height, max(1, round(frame.width * self.aspect))
        return (width, height) if self.turn[0] else (height, width)


def display_size(frame: av.VideoFrame, aspect: Fraction) -> tuple[int, int, tuple[bool, bool, bool]]:
    """Height and width as shown, and the turn. aspect: width of a stored pixel over its height."""
    look = Look.of(frame, aspect)
    return *look.shown_size(frame), look.turn


class Screen:
    """Draws frames at one size: the shorter side is fitted, the centre kept. Its scaler lasts for the cut."""

    def __init__(self, size: tuple[int, int], aspect: Fraction, look: Look | None = None) -> None:
        """look: what all frames look like, for frames that do not tell."""
        self.size, self.aspect, self.fixed_look = size, aspect, look
        self._reformatter = VideoReformatter()
        self._known: tuple[int, ...] = ()
        self._look = look

    def draw(self, frame: av.VideoFrame, out_HWC: np.ndarray) -> None:
        """Into uint8 [H, W, C]."""
        look = self._look_of(frame)
        height, width = look.shown_size(frame)
        scale = max(self.size[0] / height, self.size[1] / width)
        fitted = max(self.size[0], round(height * scale)), max(self.size[1], round(width * scale))
        if fitted[0] > MAX_STRETCH * self.size[0] or fitted[1] > MAX_STRETCH * self.size[1]:
            raise ClipError(f"a picture of {width}x{height} is too long for {self.size[1]}x{self.size[0]}")
        stored_h, stored_w = fitted[::-1] if look.turn[0] else fitted
        is_scaled = (stored_h, stored_w) != (frame.height, frame.width)
        rgb = self._reformatter.reformat(
            frame,
            width=stored_w,
            height=stored_h,
            format=_RGB[look.is_standard, is_scaled],
            interpolation=Interpolation.AREA if scale < 1 else Interpolation.BICUBIC,
            threads=1,  # more are started anew for each frame, which takes longer than the frame
        )
        target_HWC = out_HWC if look.is_standard else np.empty((*self.size, 3), np.uint16)
        for channel, plane_HW in _planes(rgb):
            target_HWC[..., channel] = centre_crop(upright(plane_HW, look.turn), self.size)
        if not look.is_standard:
            out_HWC[:] = to_sdr(target_HWC, look.transfer, look.gamut)

    def _look_of(self, frame: av.VideoFrame) -> Look:
        if self.fixed_look is not None:
            return self.fixed_look
        known = (frame.width, frame.height, frame.color_trc, frame.color_primaries, frame.colorspace)
        if self._look is None or known != self._known:  # reading the matrix takes longer than all of these
            self._look, self._known = Look.of(frame, self.aspect), known
        return self._look


def _planes(rgb: av.VideoFrame) -> Iterator[tuple[Any, np.ndarray]]:
    """Channel, or all of them, and a view of its [H, W] or [H, W, C] that keeps the frame alive."""
    name, height, width = rgb.format.name, rgb.height, rgb.width
    if name == "rgb24":
        rows = np.frombuffer(rgb.planes[0], np.uint8).reshape(height, -1)
        yield slice(None), rows[:, : 3 * width].reshape(height, width, 3)
        return
    for channel, plane in zip((1, 2, 0), rgb.planes, strict=True):  # green, blue, red
        rows = np.frombuffer(plane, np.uint8 if name == "gbrp" else np.dtype("<u2")).reshape(height, -1)
        yield channel, rows[:, :width]


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a stored pixel over its height."""
    return stream.sample_aspect_ratio or Fraction(1)
