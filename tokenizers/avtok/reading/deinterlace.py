"""Interlaced frames to whole ones. Frames that are whole pass untouched."""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.filter
from av.error import BlockingIOError as NothingYetError
from av.error import EOFError as NoMoreError

PREROLL_S = 0.2  # a cut starts with the fields before it, as it does in the whole


class Deinterlacer:
    """bwdif from the first interlaced frame on, which comes late; nothing at all until then."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._known: tuple[int, int, str] | None = None
        self._first: av.VideoFrame | None = None

    def pushed(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        known = (frame.width, frame.height, frame.format.name)
        if self._graph is not None and known != self._known:  # another picture: it has no neighbours here
            yield from self.rest()
        if self._graph is None:
            if not frame.interlaced_frame:
                yield frame
                return
            self._graph, self._known, self._first = _graph_for(frame), known, frame
            return
        if self._first is not None:
            self._begin(self._first, frame)
            self._first = None
        self._graph.vpush(frame)
        yield from self._pulled()

    def rest(self) -> Iterator[av.VideoFrame]:
        if self._graph is not None:
            if self._first is not None:
                self._graph.vpush(self._first)
            self._graph.vpush(None)
            yield from self._pulled()
            self._graph = self._first = None

    def _begin(self, first: av.VideoFrame, second: av.VideoFrame) -> None:
        """bwdif takes a frame without one before it for a still; so the second stands there too."""
        assert self._graph is not None
        stamp = second.pts
        second.pts = None
        self._graph.vpush(second)
        second.pts = stamp
        self._graph.vpush(first)
        self._graph.vpull()  # the frame that stood there

    def _pulled(self) -> Iterator[av.VideoFrame]:
        assert self._graph is not None
        while True:
            try:
                yield self._graph.vpull()
            except (NothingYetError, NoMoreError):
                return


def _graph_for(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format.name,  # pyright: ignore[reportArgumentType]
        time_base=frame.time_base,
    )
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph
