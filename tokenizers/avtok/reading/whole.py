"""Whether a file holds what it declares: one that was cut short looks like a shorter one otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path

import av
import av.container
import av.stream

# These say how long they are; of MPEG streams FFmpeg looks the last stamp up. Of others it guesses.
DECLARING = frozenset(
    {"mov", "matroska", "avi", "flv", "asf", "mxf", "mpeg", "mpegts"}
    | {"wav", "w64", "au", "aiff", "caf", "flac", "ogg", "mp3"}
)
# A damaged container may pass for the bare stream that lies in it.
SUFFIXES = frozenset(
    {".mp4", ".m4v", ".m4a", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".mxf"}
    | {".wav", ".aiff", ".caf", ".flac", ".ogg", ".opus"}
)
BARE = frozenset(
    {"h261", "h263", "h264", "hevc", "m4v", "mpegvideo", "mpeg", "mjpeg", "dirac", "av1", "obu"}
    | {"mp3", "aac", "ac3", "eac3", "dts", "flac"}
)
TS_PACKETS = (188, 192, 204)  # bytes
TOLERANCE_S = 0.1  # priming, padding and rounded lengths stay below
GUESS_TOLERANCE = 0.02
TAIL_BYTES = 1 << 16
_NAMES = {"video": "picture", "audio": "sound"}


@dataclass
class Span:
    """From the first stamp of a stream to the end of its last packet."""

    first_s: float
    end_s: float
    count: int = 0
    is_timed: bool = True  # packets say how long they are

    def add(self, time_s: float, duration_s: float) -> None:
        self.first_s, self.end_s = min(self.first_s, time_s), max(self.end_s, time_s + duration_s)
        self.count += 1
        self.is_timed &= duration_s > 0

    @property
    def tolerance_s(self) -> float:
        """The last packet lasts as long as the others where it does not say."""
        return TOLERANCE_S + (0.0 if self.is_timed else (self.end_s - self.first_s) / max(1, self.count - 1))


class Declared:
    """Lengths that a container declares, compared with the packets of all its streams, shown or not."""

    def __init__(self, container: av.container.InputContainer, path: str, num_bytes: int) -> None:
        self.num_corrupt = 0
        self._spans: dict[int, Span] = {}
        self._said = list(_signs(container, Path(path), num_bytes))
        kind = container.format.name.split(",")[0]
        self._is_declaring = kind in DECLARING and not _is_guessed(container, num_bytes)
        self._whole_s = (container.duration or 0) / av.time_base

    def add(self, packet: av.Packet) -> None:
        self.num_corrupt += packet.is_corrupt
        stamp = packet.pts if packet.pts is not None else packet.dts
        if packet.size and stamp is not None:
            up, down = packet.time_base.numerator, packet.time_base.denominator  # fractions are slow
            time_s = stamp * up / down
            span = self._spans.setdefault(packet.stream_index, Span(time_s, time_s))
            span.add(time_s, (packet.duration or 0) * up / down)

    def missing(self, streams: tuple[av.stream.Stream | None, ...]) -> list[str]:
        """One line for each thing that shows that something is gone. streams: those that are read."""
        said = self._said
        if self.num_corrupt:
            said = [*said, f"{self.num_corrupt} packets or frames are cut short or marked corrupt"]
        if not self._is_declaring:
            return said
        said = said + [line for stream in streams if stream is not None for line in self._missing_of(stream)]
        if not said and self._spans:
            spans = self._spans.values()
            length_s = max(span.end_s for span in spans) - min(span.first_s for span in spans)
            if self._whole_s > length_s + max(span.tolerance_s for span in spans):
                said = [f"{length_s:.3f} s are there, the file declares {self._whole_s:.3f} s"]
        return said

    def _missing_of(self, stream: av.stream.Stream) -> Iterator[str]:
        span = self._spans.get(stream.index, Span(0.0, 0.0))
        declared_s, length_s = _declared_s(stream, span), span.end_s - span.first_s
        if declared_s > length_s + span.tolerance_s:
            yield f"{length_s:.3f} s of {_NAMES[stream.type]} are there, {declared_s:.3f} s are declared"


def _declared_s(stream: av.stream.Stream, span: Span) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    try:  # Matroska says in a tag when a stream ends
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - max(0.0, span.first_s)
    except (KeyError, ValueError):
        return 0.0


def _signs(container: av.container.InputContainer, path: Path, num_bytes: int) -> Iterator[str]:
    """What is seen before any packet is read."""
    kind, suffix = container.format.name.split(",")[0], path.suffix.lower()
    if kind in BARE and suffix in SUFFIXES and suffix[1:] not in container.format.extensions:
        yield f"its name ends in {suffix}, but only a bare stream is found ({kind})"
    if undecodable := sum(_is_undecodable(stream) for stream in container.streams):
        yield f"{undecodable} streams have no decoder"
    if kind == "asf" and container.duration is None:
        yield "it is not as long as it declares, or was recorded live"
    if kind == "mpegts" and all(num_bytes % size for size in TS_PACKETS):
        yield "it ends in the middle of a packet"
    if kind in ("ogg", "gif") and not _has_end(kind, path):
        yield "its end is missing"


def _has_end(kind: str, path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, SEEK_END) - TAIL_BYTES))
        tail = file.read()
    if kind == "gif":
        return tail.rstrip(b"\0").endswith(b";")
    last_page = tail[tail.rfind(b"OggS") :]
    return len(last_page) > 5 and bool(last_page[5] & 4)


def _is_guessed(container: av.container.InputContainer, num_bytes: int) -> bool:
    """An MP3 without a table of contents has the length of its bytes at the rate of its first frames."""
    if container.format.name != "mp3" or not container.duration:
        return False
    sounds = [stream.codec_context for stream in container.streams.audio]
    bit_rate = sum(sound.bit_rate or 0 for sound in sounds if sound is not None)
    if not bit_rate:
        return False
    guess_s = num_bytes * 8 / bit_rate  # the container's own bit rate is made from its length
    return abs(container.duration / av.time_base / guess_s - 1) < GUESS_TOLERANCE


def _is_undecodable(stream: av.stream.Stream) -> bool:
    return stream.type in _NAMES and getattr(stream, "codec_context", None) is None
