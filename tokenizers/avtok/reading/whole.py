"""Whether a file holds what it declares: one that was cut short looks like a shorter one otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import av
import av.container
import av.stream

# These say how long they are. Of others, FFmpeg tells what it found or guesses from the bit rate.
DECLARING = frozenset(
    {"mov", "matroska", "avi", "flv", "wav", "aiff", "caf", "flac", "asf", "mxf", "mp3", "w64", "au", "ogg"}
)
TOLERANCE_S = 0.1  # priming, padding and rounded lengths stay below, and one frame that has no length
GUESS_TOLERANCE = 0.02
_NAMES = {"video": "picture", "audio": "sound"}


@dataclass
class Span:
    """From the first stamp of a stream to the end of its last packet."""

    first_s: float
    end_s: float
    count: int = 0

    def add(self, time_s: float, end_s: float) -> None:
        self.first_s, self.end_s = min(self.first_s, time_s), max(self.end_s, end_s)
        self.count += 1

    @property
    def tolerance_s(self) -> float:
        return TOLERANCE_S + (self.end_s - self.first_s) / max(1, self.count)


class Declared:
    """Lengths that a container declares, compared with the packets of all its streams, shown or not."""

    def __init__(self, container: av.container.InputContainer, num_bytes: int) -> None:
        self.num_undecodable = sum(_is_undecodable(stream) for stream in container.streams)
        self.num_corrupt = 0
        self._spans: dict[int, Span] = {}
        kind = container.format.name.split(",")[0]
        self._is_declaring = kind in DECLARING and not _is_guessed(container, num_bytes)
        self._whole_s = (container.duration or 0) / av.time_base

    def add(self, packet: av.Packet) -> None:
        self.num_corrupt += packet.is_corrupt
        stamp = packet.pts if packet.pts is not None else packet.dts
        if packet.size and stamp is not None:
            time_s = float(stamp * packet.time_base)
            span = self._spans.setdefault(packet.stream_index, Span(time_s, time_s))
            span.add(time_s, time_s + float((packet.duration or 0) * packet.time_base))

    def missing(self, streams: tuple[av.stream.Stream | None, ...]) -> list[str]:
        """One line for each thing that shows that something is gone. streams: those that are read."""
        said = []
        if self.num_undecodable:
            said.append(f"{self.num_undecodable} streams have no decoder")
        if self.num_corrupt:
            said.append(f"{self.num_corrupt} packets are cut short or marked corrupt")
        if self._is_declaring:
            said += [line for stream in streams if stream is not None for line in self._missing_of(stream)]
        if self._is_declaring and not said and self._spans:
            spans = self._spans.values()
            length_s = max(span.end_s for span in spans) - min(span.first_s for span in spans)
            if self._whole_s > length_s + max(span.tolerance_s for span in spans):
                said.append(f"{length_s:.3f} s are there, the file declares {self._whole_s:.3f} s")
        return said

    def _missing_of(self, stream: av.stream.Stream) -> list[str]:
        span = self._spans.get(stream.index, Span(0.0, 0.0))
        if stream.duration is None or stream.time_base is None:
            return []
        declared_s, length_s = float(stream.duration * stream.time_base), span.end_s - span.first_s
        if declared_s <= length_s + span.tolerance_s:
            return []
        return [f"{length_s:.3f} s of {_NAMES[stream.type]} are there, {declared_s:.3f} s are declared"]


def _is_guessed(container: av.container.InputContainer, num_bytes: int) -> bool:
    """An MP3 without a table of contents has the length of its bytes at the rate of its first frames."""
    if container.format.name != "mp3" or not container.bit_rate or not container.duration:
        return False
    guess_s = num_bytes * 8 / container.bit_rate
    return abs(container.duration / av.time_base / guess_s - 1) < GUESS_TOLERANCE


def _is_undecodable(stream: av.stream.Stream) -> bool:
    return stream.type in _NAMES and getattr(stream, "codec_context", None) is None
