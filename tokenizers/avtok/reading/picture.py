"""The picture of a cut: frames by presentation time, on a grid."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Literal

import av
import av.container
import numpy as np

from avtok.buffers import empty_pixels
from avtok.clock import slack_s
from avtok.media import ClipError
from avtok.reading.container import (
    SEEK_AFTER_S,
    because,
    best_streams,
    decode,
    first_times_s,
    identity,
    is_image_format,
    open_media,
    packets,
    seek_to,
    time_s_of,
)
from avtok.reading.deinterlace import PREROLL_S, Deinterlacer
from avtok.reading.frame import Screen, pixel_aspect
from avtok.reading.showing import Dropping, Sheet
from avtok.reading.timetable import timetable

# T frames, H W pixels, C channels.

# How far before a cut a key frame is looked for, in turns; None: read from the start of the file
_SEEKS_S = (0.0, 2.0, None)

Backend = Literal["pyav", "torchcodec", "decord"]


def read_picture(
    uri: str, grid_s: np.ndarray, size: tuple[int, int], backend: Backend = "pyav"
) -> np.ndarray | None:
    """uint8 [T, H, W, C]. None without a decodable picture; ClipError for a grid that ends past its end."""
    if backend != "pyav":
        return _read_with(backend, uri, grid_s, size)
    for back_s in _SEEKS_S:
        if back_s is not None and grid_s[0] - back_s <= SEEK_AFTER_S:
            continue
        try:
            return _read(uri, grid_s, size, back_s)
        except _MissedError:
            continue
    raise AssertionError("reading from the start misses nothing")


class _MissedError(Exception):
    """A seek ended behind the frame that the cut starts with, or without what interlaced frames need."""


def _read(uri: str, grid_s: np.ndarray, size: tuple[int, int], back_s: float | None) -> np.ndarray | None:
    begin, faults = first_times_s(*identity(uri)), []
    origin_s = begin.origin_s + begin.held_back_s  # of the stamps of pictures
    with open_media(uri) as container:
        stream = best_streams(container)[0]
        if stream is None:
            return None
        sheet = Sheet(grid_s, slack_s(stream.time_base or 0), Screen(size, pixel_aspect(stream)))
        is_sought = back_s is not None and seek_to(container, stream, grid_s[0] + origin_s - back_s)
        for frame in _whole_frames(container, stream, sheet, origin_s, faults, is_sought=is_sought):
            if sheet.show(frame, time_s_of(frame) - origin_s):
                return sheet.finished()
        if not sheet.is_begun:
            if is_sought:
                raise _MissedError
            return None
        step_s = float(grid_s[1] - grid_s[0]) if len(grid_s) > 1 else 0.0
        if not is_image_format(container) and sheet.shown_end_s + max(step_s, 0.1) < grid_s[-1]:
            raise ClipError(
                f"{uri}: the picture ends at {sheet.shown_end_s:.3f} s, "
                f"the cut needs {grid_s[-1]:.3f} s{because(faults)}"
            )
        return sheet.finished()


def _whole_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    sheet: Sheet,
    origin_s: float,
    faults: list[str],
    *,
    is_sought: bool,
) -> Iterator[av.VideoFrame]:
    """Decoded frames in the order of their times, deinterlaced where they are interlaced."""
    from_s, deinterlacer, is_first = sheet.grid_s[0] + sheet.slack_s, Deinterlacer(), True
    dropping = Dropping(stream, sheet.grid_s, sheet.slack_s, origin_s)
    for packet in dropping.marked(packets(container, [stream], faults)):
        for frame in decode(packet, faults):
            if not isinstance(frame, av.VideoFrame):
                continue
            is_interlaced = frame.interlaced_frame
            time_s = time_s_of(frame) - origin_s
            if is_sought and is_first and time_s > from_s - (PREROLL_S if is_interlaced else 0):
                raise _MissedError
            dropping.is_on = not is_interlaced and (dropping.is_on or is_first)
            is_first = False
            yield from deinterlacer.pushed(frame)
    yield from deinterlacer.rest()


def _read_with(backend: str, uri: str, grid_s: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The same frames at the same times, made by another decoder and scaled as ours are."""
    module = import_module(f"avtok.reading.with_{backend}")
    table = timetable(uri, grid_s, backend)
    if table is None:
        return None
    screen = Screen(size, table.look.aspect, table.look.upright())
    frames: Iterator[np.ndarray] = module.frames_of(table)
    video_THWC: np.ndarray | None = None
    try:
        for index, place in enumerate(table.shown_T):
            if video_THWC is not None and place == table.shown_T[index - 1]:
                video_THWC[index] = video_THWC[index - 1]
                continue
            pixels_HWC = np.ascontiguousarray(next(frames))
            if video_THWC is None:
                video_THWC = empty_pixels((len(grid_s), *size, 3))
            kind = "rgb24" if pixels_HWC.dtype == np.uint8 else "rgb48le"
            screen.draw(av.VideoFrame.from_ndarray(pixels_HWC, format=kind), video_THWC[index])
    except ClipError as error:
        raise ClipError(f"{uri}: {backend}: {error}") from error
    return video_THWC
