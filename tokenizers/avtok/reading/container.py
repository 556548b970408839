"""Open one local file for reading: its best streams, packets and frames in file order, times, seeks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import av
import av.container
import av.stream
from av.error import FFmpegError

from avtok.media import ClipError

SEEK_AFTER_S = 2.0  # decoding two seconds from the start costs less than a seek that misses
ORIGIN_PATIENCE_S = 5.0  # streams are interleaved more finely than this
MAX_READ_FAULTS = 16
_PLAYLISTS = frozenset(
    {"hls", "dash", "concat", "concatf", "sdp", "lavfi", "imf", "rtsp"}
)  # they open other files

Frame = TypeVar("Frame", av.VideoFrame, av.AudioFrame)


def identity(uri: str) -> tuple[str, int, int]:
    """Path, size and change time of a local file. ClipError for anything else."""
    parts = urlsplit(uri)
    path = Path(unquote(parts.path) if parts.scheme == "file" else uri)
    if parts.scheme != "file" and "://" in uri:
        raise ClipError(f"{uri}: only local files are opened; copy it first")
    try:
        status = path.stat()
    except OSError as error:
        raise ClipError(f"{uri}: {error.strerror or error}") from error
    if not path.is_file():
        raise ClipError(f"{uri}: is not a file")
    return str(path), status.st_size, status.st_mtime_ns


@contextmanager
def open_media(uri: str) -> Iterator[av.container.InputContainer]:
    path = identity(uri)[0]
    try:  # prefix and whitelist keep names such as concat:a|b and playlists from reaching anything else
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        raise ClipError(f"{uri}: cannot be opened as media: {one_line(error)}") from error
    with container:
        if _PLAYLISTS & set(container.format.name.split(",")):
            raise ClipError(
                f"{uri}: is a list of other files ({container.format.name}); give the media file itself"
            )
        yield container


def best_streams(
    container: av.container.InputContainer,
) -> tuple[av.VideoStream | None, av.AudioStream | None]:
    """FFmpeg's choice of a picture that is no cover, and of a sound; streams without a decoder do not
    count."""
    cover = av.stream.Disposition.attached_pic
    pictures = [
        s for s in container.streams.video if s.codec_context is not None and not s.disposition & cover
    ]
    sounds = [s for s in container.streams.audio if s.codec_context is not None]
    best_picture, best_sound = container.streams.best("video"), container.streams.best("audio")
    video = next((s for s in pictures if best_picture is not None and s.index == best_picture.index), None)
    video = video or max(pictures, key=lambda s: s.width * s.height, default=None)
    audio = next((s for s in sounds if best_sound is not None and s.index == best_sound.index), None)
    for stream in (video, audio):
        if stream is not None:
            stream.codec_context.thread_count = (
                1  # Ray runs one decoder per core; threads hide which packet failed
            )
    return video, audio or next(iter(sounds), None)


def is_image_format(container: av.container.InputContainer) -> bool:
    return container.format.name.startswith("image2") or container.format.name.endswith("_pipe")


def packets(
    container: av.container.InputContainer, streams: list[av.VideoStream | av.AudioStream], faults: list[str]
) -> Iterator[av.Packet]:
    """Packets in file order; a read error is noted and reading goes on behind it."""
    for _ in range(MAX_READ_FAULTS):
        try:
            yield from container.demux(streams)
        except FFmpegError as error:
            faults.append(one_line(error))
        else:
            return


def decode(packet: av.Packet, faults: list[str]) -> Iterator[av.VideoFrame | av.AudioFrame]:
    try:
        frames = packet.decode()
    except FFmpegError as error:  # one broken packet is normal in the wild: what is whole is used
        faults.append(one_line(error))
        return
    for frame in frames:
        if isinstance(frame, av.VideoFrame | av.AudioFrame) and (
            frame.pts is not None or frame.dts is not None
        ):
            yield frame


def frames(
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
    kind: type[Frame],
    faults: list[str],
) -> Iterator[Frame]:
    for packet in packets(container, [stream], faults):
        for frame in decode(packet, faults):
            if isinstance(frame, kind):
                yield frame


def time_s_of(frame: av.VideoFrame | av.AudioFrame) -> float:
    stamp = frame.pts if frame.pts is not None else frame.dts
    assert stamp is not None  # `_decode` lets no frame without a stamp through
    assert frame.time_base is not None
    return float(stamp * frame.time_base)


def seek_to(
    container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream, time_s: float
) -> bool:
    """Go to the key frame at or before a time. False, and back to the start, where the file has no index."""
    if stream.time_base is None:
        return False
    try:
        container.seek(int(time_s / stream.time_base), stream=stream)
    except FFmpegError:
        container.seek(0)
        return False
    return True


@lru_cache(maxsize=4096)
def first_times_s(path: str, num_bytes: int, changed_ns: int) -> tuple[float, float | None]:
    """The earlier of the first presented times of both streams, and when the second frame of sound starts.

    Size and change time only key the cache.
    """
    second_frame_s: float | None = None
    first_s: dict[int, float] = {}
    faults: list[str] = []
    with open_media(path) as container:
        streams = [s for s in best_streams(container) if s is not None]
        if not streams:
            raise ClipError(f"{path}: has neither picture nor sound that can be decoded")
        for packet in packets(container, streams, faults):
            if packet.stream_index in first_s:
                known_s = first_s[packet.stream_index]
                if packet.pts is not None and packet.pts * packet.time_base > known_s + ORIGIN_PATIENCE_S:
                    break  # the other stream starts later, or not at all
                continue
            for frame in decode(packet, faults):
                if packet.stream_index not in first_s and isinstance(frame, av.AudioFrame):
                    second_frame_s = time_s_of(frame) + frame.samples / frame.sample_rate
                first_s.setdefault(packet.stream_index, time_s_of(frame))
            if len(first_s) == len(streams):
                break
    if not first_s:
        raise ClipError(f"{path}: nothing could be decoded{because(faults)}")
    return min(first_s.values()), second_frame_s


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def because(faults: list[str]) -> str:
    return f" ({len(faults)} packets failed, the first with: {faults[0]})" if faults else ""
