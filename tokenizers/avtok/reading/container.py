"""Open one local file for reading: its best streams, packets and frames in file order, times, seeks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import av
import av.container
import av.stream
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType

from avtok.media import ClipError, Limits
from avtok.reading.refusals import why_refused

SEEK_AFTER_S = 2.0  # decoding two seconds from the start costs less than a seek that misses
ORIGIN_PATIENCE_S = 5.0  # streams are interleaved more finely than this
MAX_READ_FAULTS = 16
# What FFmpeg and PyAV raise for a file that is broken, beyond their own errors: impossible sizes and rates
MEDIA_ERRORS = (FFmpegError, ValueError, MemoryError, OverflowError, ZeroDivisionError)
_PLAYLISTS = frozenset(
    {"hls", "dash", "concat", "concatf", "sdp", "lavfi", "imf", "rtsp"}
)  # they open other files
_WITHOUT_TIMES = frozenset({"avi"})
_REWINDABLE = "mov,mp4,m4a,3gp,3g2,mj2"  # its index names the first sample of every stream

limits: Limits | None = None  # of every file; set in a process that reads untrusted ones

Frame = TypeVar("Frame", av.VideoFrame, av.AudioFrame)


def _unnamed(cls: type, value: int) -> object:
    """PyAV 18.1 has no name for the EXIF of a photo, and without one every look at side data would raise."""
    member = object.__new__(cls)
    member._value_, member._name_ = value, f"UNNAMED_{value}"
    return member


SideDataType._missing_ = classmethod(_unnamed)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class _Kept:
    """Files that stay open for one cut: which of them stand elsewhere, and of which the sound was decoded."""

    containers: dict[str, av.container.InputContainer] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    heard: set[int] = field(default_factory=set)


_kept: ContextVar[_Kept | None] = ContextVar("_kept", default=None)


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
def kept_open() -> Iterator[None]:
    """Within it, a file that is opened again is rewound where that is exact: opening decodes some ten frames.

    One reader at a time: whoever opens a file anew takes it from the one before.
    """
    kept = _Kept()
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
        for container in kept.containers.values():
            container.close()


@contextmanager
def open_media(uri: str, *, for_sound: bool = False) -> Iterator[av.container.InputContainer]:
    """A container at its start. ClipError for what is no media file, or a list of other files.

    for_sound: one whose sound was not decoded yet, because decoders of sound carry noise and overlaps over.
    """
    path, kept = identity(uri)[0], _kept.get()
    if kept is None:
        with _opened(uri, path) as container:
            yield container
        return
    known = kept.containers.get(path)
    if known is not None and known.format.name == _REWINDABLE and not (for_sound and id(known) in kept.heard):
        kept.moved.add(id(known))
    else:
        if known is not None:
            kept.heard.discard(id(known))
            known.close()
        kept.containers[path] = _opened(uri, path)
    yield kept.containers[path]


def _opened(uri: str, path: str) -> av.container.InputContainer:
    try:  # prefix and whitelist keep names such as concat:a|b and playlists from reaching anything else
        options = {"protocol_whitelist": "file", **_pixel_limit()}
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except MEDIA_ERRORS as error:
        said = why_refused(path, one_line(error))
        raise ClipError(f"{uri}: cannot be opened as media: {said}") from error
    if _PLAYLISTS & set(container.format.name.split(",")):
        name = container.format.name
        container.close()
        raise ClipError(f"{uri}: is a list of other files ({name}); give the media file itself")
    try:
        _hold_to_limits(uri, container)
    except ClipError:
        container.close()
        raise
    return container


def _pixel_limit() -> dict[str, str]:
    """FFmpeg's own check, before it allocates a frame: the size may change in the middle of a stream."""
    return {} if limits is None else {"max_pixels": str(limits.max_pixels)}


def _hold_to_limits(uri: str, container: av.container.InputContainer) -> None:
    if limits is None:
        return
    if container.size > limits.max_file_gb * 1e9:
        raise ClipError(f"{uri}: has {container.size} bytes, limits.max_file_gb={limits.max_file_gb}")
    if len(container.streams) > limits.max_streams:
        count = len(container.streams)
        raise ClipError(f"{uri}: has {count} streams, limits.max_streams={limits.max_streams}")
    for stream in container.streams.video:
        if stream.codec_context is None or stream.disposition & av.stream.Disposition.attached_pic:
            continue
        if stream.width * stream.height > limits.max_pixels:
            size = f"{stream.width}x{stream.height}"
            raise ClipError(f"{uri}: its frames have {size} pixels, limits.max_pixels={limits.max_pixels}")
        stream.codec_context.options = _pixel_limit()


def _is_moved(container: av.container.InputContainer) -> bool:
    """Whether another reader had it before; it counts as back from now on."""
    kept = _kept.get()
    if kept is None or id(container) not in kept.moved:
        return False
    kept.moved.remove(id(container))
    return True


def best_streams(
    container: av.container.InputContainer,
) -> tuple[av.VideoStream | None, av.AudioStream | None]:
    """The largest moving picture, and FFmpeg's choice among equals and of a sound.

    FFmpeg takes the picture marked as default, which muxers give to the first. Covers do not count, nor do
    the few large stills beside a film of some phones, nor streams without a decoder.
    """
    cover = av.stream.Disposition.attached_pic
    pictures = [
        s for s in container.streams.video if s.codec_context is not None and not s.disposition & cover
    ]
    sounds = [s for s in container.streams.audio if s.codec_context is not None]
    best_picture, best_sound = container.streams.best("video"), container.streams.best("audio")
    most_frames = max((s.frames for s in pictures), default=0)  # 0 where the container does not say
    video = max(
        (s for s in pictures if 2 * s.frames >= most_frames),
        key=lambda s: (s.width * s.height, best_picture is not None and s.index == best_picture.index),
        default=None,
    )
    audio = next((s for s in sounds if best_sound is not None and s.index == best_sound.index), None)
    for stream in (video, audio):
        if stream is not None and stream.codec_context.thread_count != 1:
            # Ray runs one decoder per core; threads hide which packet failed
            stream.codec_context.thread_count = 1
    return video, audio or next(iter(sounds), None)


def without_times(container: av.container.Container) -> bool:
    """Whether pictures are numbered, from 0, and nothing says when they are shown."""
    return container.format.name in _WITHOUT_TIMES


def is_image_format(container: av.container.InputContainer) -> bool:
    return container.format.name.startswith("image2") or container.format.name.endswith("_pipe")


def packets(
    container: av.container.InputContainer, streams: list[av.VideoStream | av.AudioStream], faults: list[str]
) -> Iterator[av.Packet]:
    """Packets in file order; a read error is noted and reading goes on behind it."""
    kept = _kept.get()
    if kept is not None and any(stream.type == "audio" for stream in streams):
        kept.heard.add(id(container))
    if _is_moved(container):
        container.seek(-(2**40), stream=streams[0])  # before every stamp: the first sample of its index
    for _ in range(MAX_READ_FAULTS):
        try:
            yield from container.demux(streams)
        except FFmpegError as error:
            faults.append(one_line(error))
        except IndexError:  # PyAV knows the streams of the beginning
            faults.append("a stream begins in the middle of the file")
        else:
            return


def decode(packet: av.Packet, faults: list[str]) -> Iterator[av.VideoFrame | av.AudioFrame]:
    try:
        frames = packet.decode()
    except MemoryError:  # not the packet's fault alone: what comes next would be missed in silence
        raise
    except MEDIA_ERRORS as error:  # one broken packet is normal in the wild: what is whole is used
        faults.append(one_line(error))
        return
    is_numbered = packet.stream.type == "video" and without_times(packet.stream.container)
    for frame in frames:
        if is_numbered and frame.dts is not None:
            frame.pts = frame.dts  # numbers follow the order of decoding, so that frames between others swap
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
    tick = frame.time_base
    assert stamp is not None  # `decode` lets no frame without a stamp through
    assert tick is not None
    return stamp * tick.numerator / tick.denominator  # as float(stamp * tick), which takes ten times as long


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
    _is_moved(container)
    return True


class FirstTimes(NamedTuple):
    """origin_s: the earlier of the first presented times of both streams; sound_s: that of the sound.

    held_back_s: in a container without times, how late a decoder gives pictures, as it puts them in order.
    """

    origin_s: float
    sound_s: float | None
    held_back_s: float


@lru_cache(maxsize=4096)
def first_times_s(path: str, num_bytes: int, changed_ns: int) -> FirstTimes:
    """When a file begins. Size and change time only key the cache."""
    first_s: dict[int, float] = {}
    heard: list[av.AudioFrame] = []
    faults: list[str] = []
    with open_media(path) as container:
        streams = [s for s in best_streams(container) if s is not None]
        if not streams:
            raise ClipError(f"{path}: has neither picture nor sound that can be decoded")
        missing = {stream.index: 2 if stream.type == "audio" else 1 for stream in streams}
        for packet in packets(container, streams, faults):
            if not missing[packet.stream_index]:
                known_s = first_s[packet.stream_index]
                if packet.pts is not None and packet.pts * packet.time_base > known_s + ORIGIN_PATIENCE_S:
                    break  # the other stream starts later, or not at all
                continue
            for frame in decode(packet, faults):
                first_s.setdefault(packet.stream_index, time_s_of(frame))
                missing[packet.stream_index] = max(0, missing[packet.stream_index] - 1)
                if isinstance(frame, av.AudioFrame):
                    heard.append(frame)
            if not any(missing.values()):
                break
        held_back_s, sound_s = 0.0, _first_sample_s(heard) if heard else None
        for stream in streams:
            if stream.type == "audio" and sound_s is not None:
                first_s[stream.index] = sound_s
            elif without_times(container) and stream.index in first_s:
                held_back_s, first_s[stream.index] = first_s[stream.index], 0.0
    if not first_s:
        raise ClipError(f"{path}: nothing could be decoded{because(faults)}")
    return FirstTimes(min(first_s.values()), sound_s, held_back_s)


def _first_sample_s(heard: list[av.AudioFrame]) -> float:
    """FFmpeg rounds the stamp of a frame that it cut priming off once more; that of the next is better."""
    first = heard[0]
    if len(heard) == 1 or first.samples >= heard[1].samples:
        return time_s_of(first)
    by_second_s = time_s_of(heard[1]) - first.samples / first.sample_rate
    is_near = abs(by_second_s - time_s_of(first)) <= 2 * float(first.time_base or 0)
    return by_second_s if is_near else time_s_of(first)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def because(faults: list[str]) -> str:
    return f" ({len(faults)} packets failed, the first with: {faults[0]})" if faults else ""
