"""Which stored frames a cut shows, from the stamps of the packets: for backends that only deliver frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from avtok.clock import slack_s
from avtok.media import ClipError
from avtok.reading.container import (
    best_streams,
    decode,
    first_times_s,
    identity,
    is_image_format,
    open_media,
    packets,
    without_times,
)
from avtok.reading.frame import Look, pixel_aspect

# T times of the grid.


@dataclass(frozen=True)
class Timetable:
    """shown_T: for each time of the grid, a place in `stamps`: ticks of the frames in order of presentation.

    num_hidden counts frames besides, which an edit list hides.
    """

    path: str
    container: str
    stream_index: int
    tick: Fraction
    stamps: np.ndarray
    num_hidden: int
    shown_T: list[int]
    look: Look


def timetable(uri: str, grid_s: np.ndarray, backend: str) -> Timetable | None:
    """None without a picture. ClipError for what only PyAV shows as it is meant."""
    origin_s, faults = first_times_s(*identity(uri)).origin_s, []
    first: av.VideoFrame | None = None
    stamps: list[int] = []
    num_hidden, end, last_dts = 0, 0, None
    with open_media(uri) as container:
        stream = best_streams(container)[0]
        if stream is None or stream.time_base is None:
            return None
        for packet in packets(container, [stream], faults):
            if first is None:
                first = next((f for f in decode(packet, faults) if isinstance(f, av.VideoFrame)), None)
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                continue  # the empty packet at the end
            if packet.is_discard:
                num_hidden += 1
                continue
            stamps.append(stamp)
            if stamps and packet.dts is not None and last_dts is not None and packet.dts < last_dts:
                raise ClipError(f"{uri}: its clock jumps back, which {backend} does not follow; use pyav")
            last_dts = packet.dts if packet.dts is not None else last_dts
            end = max(end, stamp + (packet.duration or 0))
        if first is None or not stamps:
            return None
        if is_image_format(container):
            raise ClipError(f"{uri}: is a still picture, which {backend} does not read; use pyav")
        if without_times(container):
            raise ClipError(f"{uri}: numbers its frames instead of timing them; use pyav")
        tick, index, name = stream.time_base, stream.index, container.format.name
        look = Look.of(first, pixel_aspect(stream))
    transpose, mirror, upside_down = look.turn
    if first.interlaced_frame:
        raise ClipError(f"{uri}: is interlaced, which {backend} does not undo; use pyav")
    if transpose ^ mirror ^ upside_down:
        raise ClipError(f"{uri}: is shown mirrored, which {backend} does not follow; use pyav")
    end_s, step_s = float(end * tick) - origin_s, float(grid_s[1] - grid_s[0]) if len(grid_s) > 1 else 0.0
    if end_s + max(step_s, 0.1) < grid_s[-1]:
        raise ClipError(f"{uri}: the picture ends at {end_s:.3f} s, the cut needs {grid_s[-1]:.3f} s")
    shown = np.sort(stamps)
    shown_s = shown * tick.numerator / tick.denominator - origin_s
    at_T = np.maximum(np.searchsorted(shown_s, grid_s + slack_s(tick), side="right") - 1, 0)
    return Timetable(identity(uri)[0], name, index, tick, shown, num_hidden, at_T.tolist(), look)
