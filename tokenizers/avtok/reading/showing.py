"""Which frame is on screen at each time of a grid: the last one that began at or before it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator

import av
import numpy as np

from avtok.buffers import empty_pixels
from avtok.reading.container import without_times
from avtok.reading.frame import Screen

# T frames, H W pixels, C channels.

REORDER_PACKETS = 18  # more than the 16 frames that H.264 may hold back
_SKIPPING = frozenset({"h264"})  # its decoder drops just the frames that no other one is made from


class Sheet:
    """The pictures of a grid, filled in order. Pixels are there from the first frame on, and never copied."""

    def __init__(self, grid_s: np.ndarray, slack_s: float, screen: Screen) -> None:
        self.grid_s, self.slack_s, self.screen = grid_s, slack_s, screen
        self.num_done, self.shown_s, self.shown_end_s = 0, 0.0, 0.0
        self._video_THWC: np.ndarray | None = None
        self._shown: av.VideoFrame | None = None
        self._is_drawn = False

    @property
    def is_begun(self) -> bool:
        return self._shown is not None

    def show(self, frame: av.VideoFrame, time_s: float) -> bool:
        """A frame is on screen from time_s on. True when every time of the grid has its picture."""
        while self._shown is not None and self._next_s() < time_s:
            self._draw()
        if self._shown is None or time_s >= self.shown_s:
            self._shown, self._is_drawn, self.shown_s = frame, False, time_s
            self.shown_end_s = time_s + float((frame.duration or 0) * (frame.time_base or 0))
        return self.num_done == len(self.grid_s)

    def finished(self) -> np.ndarray:
        """The last frame stays on screen until the end of the grid."""
        while self.num_done < len(self.grid_s):
            self._draw()
        assert self._video_THWC is not None
        return self._video_THWC

    def _next_s(self) -> float:
        return self.grid_s[self.num_done] + self.slack_s if self.num_done < len(self.grid_s) else np.inf

    def _draw(self) -> None:
        assert self._shown is not None, "a grid is drawn from its first frame on"
        if self._video_THWC is None:
            self._video_THWC = empty_pixels((len(self.grid_s), *self.screen.size, 3))
        if self._is_drawn:
            self._video_THWC[self.num_done] = self._video_THWC[self.num_done - 1]
        else:
            self.screen.draw(self._shown, self._video_THWC[self.num_done])
        self._is_drawn = True
        self.num_done += 1


class Dropping:
    """Tells a decoder which frames it need not make: those that are never on screen and that no other needs.

    The stamps of the packets ahead, as many as a decoder reorders, say until when a frame is on screen. Off
    until the first frame is seen: interlaced ones need their neighbours.
    """

    def __init__(self, stream: av.VideoStream, grid_s: np.ndarray, slack_s: float, origin_s: float) -> None:
        self.context, self.is_on = stream.codec_context, False
        # without times a frame is shown when it comes out, which is sooner where others are dropped
        can_wait = stream.time_base is not None and not without_times(stream.container)
        self.can_drop = can_wait and self.context.name in _SKIPPING
        tick_s = float(stream.time_base or 1)
        self._grid = [(time_s + slack_s + origin_s) / tick_s for time_s in grid_s.tolist()]
        self._stamps: list[int] = []  # of presented frames, in order

    def marked(self, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """The same packets; each is to be decoded before the next is asked for."""
        if not self.can_drop:
            yield from packets
            return
        ahead: deque[av.Packet] = deque()
        try:
            for packet in packets:
                ahead.append(packet)
                if packet.pts is not None and not packet.is_discard:
                    insort(self._stamps, packet.pts)
                    del self._stamps[: max(0, len(self._stamps) - 4 * REORDER_PACKETS)]
                if len(ahead) > REORDER_PACKETS:
                    yield self._mark(ahead.popleft())
            while ahead:
                yield self._mark(ahead.popleft())
        finally:
            self.context.skip_frame = "DEFAULT"

    def _mark(self, packet: av.Packet) -> av.Packet:
        self.context.skip_frame = "NONREF" if self.is_on and not self._is_shown(packet.pts) else "DEFAULT"
        return packet

    def _is_shown(self, stamp: int | None) -> bool:
        """At any time of the grid, or behind it: such a frame ends the reading."""
        if stamp is None:
            return True
        behind = bisect_right(self._stamps, stamp)
        if not 1 < behind < len(self._stamps):  # the first and the last that are known
            return True
        place = bisect_left(self._grid, stamp)
        return place == len(self._grid) or place < bisect_left(self._grid, self._stamps[behind])
