"""Read clips by presentation timestamps. The only file of the project that opens media for reading.

Both streams of a file share one origin: the earlier of their first presented times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import av
import av.container
import av.stream
import numpy as np
from av.error import FFmpegError

from avtok.clock import ResampleSpan, SampleTrack, StreamSpan, frame_grid_s, on_frame_grid_s, slack_s
from avtok.convert import resampled, to_mono
from avtok.frame import display_size, pixel_aspect, to_rgb

# T frames, H W pixels, C channels, N samples.

SILENCE_DBFS = -80.0
SEEK_AFTER_S = 2.0  # decoding two seconds from the start costs less than a seek that misses
AUDIO_PREROLL_S = 1.0  # bit reservoirs and overlaps of the sound codecs are settled long before
ORIGIN_PATIENCE_S = 5.0  # streams are interleaved more finely than this
MAX_READ_FAULTS = 16
_PLAYLISTS = frozenset(
    {"hls", "dash", "concat", "concatf", "sdp", "lavfi", "imf", "rtsp"}
)  # they open other files


Frame = TypeVar("Frame", av.VideoFrame, av.AudioFrame)


class ClipError(Exception):
    """A clip that cannot be used; the message is one line that says why."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. duration_s is the picture's, or the sound's without a picture; 0 for an image.

    has_sound: louder than silence, not merely a track. reason: what could not be used, empty if nothing.
    """

    uri: str
    has_video: bool
    has_audio: bool
    has_sound: bool
    duration_s: float
    width: int
    height: int
    fps: float
    sample_rate: int
    origin_s: float
    reason: str


@dataclass(frozen=True)
class DecodedClip:
    """One cut: uint8 RGB frames and float32 mono samples in [-1, 1], each with its left context in front."""

    video_THWC: np.ndarray | None
    audio_N: np.ndarray | None
    context_frames: int
    context_samples: int
    start_s: float
    end_s: float


def probe(uri: str) -> MediaInfo:
    """Demux the whole file once, decode its sound and its first picture. ClipError if neither is usable."""
    origin_s, faults = _first_times_s(*_identity(uri))[0], []
    video_span, audio_span = StreamSpan(), StreamSpan()
    size, square_sum, num_samples, rate = (0, 0), 0.0, 0, 0
    with _open(uri) as container:
        video, audio = _best_streams(container)
        for packet in _packets(container, [s for s in (video, audio) if s is not None], faults):
            is_picture = packet.stream_index == (video.index if video else -1)
            stamp = packet.pts if packet.pts is not None else packet.dts
            if is_picture and stamp is not None and not packet.is_discard:
                tick = packet.time_base
                video_span.add(float(stamp * tick), float((packet.duration or 0) * tick))
            if is_picture and size[0]:
                continue
            for frame in _decode(packet, faults):
                if isinstance(frame, av.VideoFrame):
                    size = display_size(frame, pixel_aspect(packet.stream))[:2]
                elif isinstance(frame, av.AudioFrame):
                    rate = rate or frame.sample_rate
                    audio_span.add(_time_s(frame), frame.samples / frame.sample_rate)
                    mono_N = _mono(frame)
                    square_sum, num_samples = square_sum + float(mono_N @ mono_N), num_samples + len(mono_N)
        is_image = _is_image(container)
    has_video, has_audio = size[0] > 0, num_samples > 0
    if not has_video and not has_audio:
        raise ClipError(f"{uri}: no picture and no sound could be decoded{_because(faults)}")
    loudness_db = 20 * np.log10(max(sqrt(square_sum / max(num_samples, 1)), 1e-12))
    lead = video_span if has_video else audio_span
    missing = [] if has_video or video is None else ["the picture could not be decoded"]
    missing += [] if has_audio or audio is None else ["the sound could not be decoded"]
    missing += [lead.jump] if lead.jump else []
    missing += [f"{len(faults)} packets could not be read: {faults[0]}"] if faults else []
    return MediaInfo(
        uri=uri,
        has_video=has_video,
        has_audio=has_audio,
        has_sound=has_audio and bool(loudness_db > SILENCE_DBFS),
        duration_s=0.0 if is_image else max(0.0, lead.end_s - origin_s),
        width=size[1],
        height=size[0],
        fps=video_span.rate_hz if has_video else 0.0,
        sample_rate=rate,
        origin_s=origin_s,
        reason="; ".join(missing),
    )


def decode_clip(
    uri: str,
    *,
    start_s: float,
    end_s: float,
    fps: float,
    size: tuple[int, int],
    sample_rate: int,
    context_frames: int = 0,
    context_samples: int = 0,
    audio_uri: str | None = None,
) -> DecodedClip:
    """Cut [start_s, end_s) seconds from the origin, preceded by left context.

    Frame i is the last one shown at or before start_s + i / fps (the first one before anything was shown).
    The sound has exactly round((end_s - start_s) * sample_rate) samples, zeros where nothing was recorded.
    size
    is (height, width): the shorter side is fitted and the centre kept. audio_uri is a second file whose own
    origin is the clip's time 0. A stream that is absent or has nothing decodable is None, and `probe` says
    why. ClipError where neither is left, and for a cut past the last picture.
    """
    if not 0 <= start_s < end_s:
        raise ClipError(f"{uri}: a cut needs 0 <= start < end, got {start_s} to {end_s} s")
    grid_s = frame_grid_s(start_s, end_s, fps=fps, context_frames=context_frames)
    first = round(start_s * sample_rate) - context_samples
    last = first + context_samples + round((end_s - start_s) * sample_rate)
    video_THWC = _read_video(uri, grid_s, size)
    audio_N = _read_audio(audio_uri or uri, first, last, sample_rate)
    if video_THWC is None and audio_N is None:
        raise ClipError(f"{uri}: no picture and no sound could be decoded")
    return DecodedClip(video_THWC, audio_N, context_frames, context_samples, start_s, end_s)


def _read_video(uri: str, grid_s: np.ndarray, size: tuple[int, int], seek: bool = True) -> np.ndarray | None:
    origin_s, faults = _first_times_s(*_identity(uri))[0], []
    images: list[np.ndarray] = []
    shown: av.VideoFrame | None = None
    shown_image: np.ndarray | None = None
    shown_end_s = 0.0
    with _open(uri) as container:
        stream = _best_streams(container)[0]
        if stream is None:
            return None
        tick = stream.time_base or 0
        slack, aspect = slack_s(tick), pixel_aspect(stream)
        seek = seek and grid_s[0] > SEEK_AFTER_S and _seek(container, stream, grid_s[0] + origin_s)
        for frame in _frames(container, stream, av.VideoFrame, faults):
            time_s = _time_s(frame) - origin_s
            if seek and shown is None and time_s > grid_s[0] + slack:  # the index pointed past the cut
                return _read_video(uri, grid_s, size, seek=False)
            while shown is not None and len(images) < len(grid_s) and grid_s[len(images)] + slack < time_s:
                shown_image = to_rgb(shown, aspect, size) if shown_image is None else shown_image
                images.append(shown_image)
            if len(images) == len(grid_s):
                break
            if shown is None or time_s + origin_s >= _time_s(shown):
                shown, shown_image = frame, None
                shown_end_s = time_s + float((frame.duration or 0) * tick)
        is_image = _is_image(container)
        if shown is None:
            return _read_video(uri, grid_s, size, seek=False) if seek else None
        if len(images) < len(grid_s):
            step_s = float(grid_s[1] - grid_s[0]) if len(grid_s) > 1 else 0.0
            if not is_image and shown_end_s + max(step_s, 0.1) < grid_s[-1]:
                raise ClipError(
                    f"{uri}: the picture ends at {shown_end_s:.3f} s, "
                    f"the cut needs {grid_s[-1]:.3f} s{_because(faults)}"
                )
            images += [to_rgb(shown, aspect, size)] * (len(grid_s) - len(images))
    return np.stack(images)


def _read_audio(uri: str, first: int, last: int, rate: int, seek: bool = True) -> np.ndarray | None:
    (origin_s, second_frame_s), faults = _first_times_s(*_identity(uri)), []
    track: SampleTrack | None = None
    span: ResampleSpan | None = None
    with _open(uri) as container:
        stream = _best_streams(container)[1]
        if stream is None:
            return None
        from_s = first / rate - AUDIO_PREROLL_S
        seek = seek and from_s > SEEK_AFTER_S and _seek(container, stream, from_s + origin_s)
        for frame in _frames(container, stream, av.AudioFrame, faults):
            time_s = _time_s(frame) - origin_s
            if track is None or span is None:
                if seek and time_s > from_s + AUDIO_PREROLL_S / 2:
                    return _read_audio(uri, first, last, rate, seek=False)
                span = ResampleSpan.around(first, last, source_rate=frame.sample_rate, rate=rate)
                tolerance_s = max(2 * float(stream.time_base or 0), 2e-3)
                track = SampleTrack(frame.sample_rate, tolerance_s, span.source_first, span.source_last)
                if seek and second_frame_s is not None:
                    time_s = on_frame_grid_s(
                        time_s, second_frame_s - origin_s, frame.samples / frame.sample_rate, tolerance_s
                    )
            if frame.sample_rate == track.rate and track.place(time_s, _mono(frame)) >= span.source_last:
                break
    if track is None or span is None:
        return _read_audio(uri, first, last, rate, seek=False) if seek else None
    audio_N = np.clip(span.cut(resampled(track.samples_N, track.rate, rate)), -1, 1)
    audio_N[: max(0, -first)] = 0  # the filter rings a little into the time before 0
    return np.ascontiguousarray(audio_N, dtype=np.float32)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    return to_mono(frame.to_ndarray(), sample_format=frame.format.name, channels=len(frame.layout.channels))


def _identity(uri: str) -> tuple[str, int, int]:
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
def _open(uri: str) -> Iterator[av.container.InputContainer]:
    path = _identity(uri)[0]
    try:  # prefix and whitelist keep names such as concat:a|b and playlists from reaching anything else
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        raise ClipError(f"{uri}: cannot be opened as media: {_one_line(error)}") from error
    with container:
        if _PLAYLISTS & set(container.format.name.split(",")):
            raise ClipError(
                f"{uri}: is a list of other files ({container.format.name}); give the media file itself"
            )
        yield container


def _best_streams(
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


def _is_image(container: av.container.InputContainer) -> bool:
    return container.format.name.startswith("image2") or container.format.name.endswith("_pipe")


def _packets(
    container: av.container.InputContainer, streams: list[av.VideoStream | av.AudioStream], faults: list[str]
) -> Iterator[av.Packet]:
    """Packets in file order; a read error is noted and reading goes on behind it."""
    for _ in range(MAX_READ_FAULTS):
        try:
            yield from container.demux(streams)
        except FFmpegError as error:
            faults.append(_one_line(error))
        else:
            return


def _decode(packet: av.Packet, faults: list[str]) -> Iterator[av.VideoFrame | av.AudioFrame]:
    try:
        frames = packet.decode()
    except FFmpegError as error:  # one broken packet is normal in the wild: what is whole is used
        faults.append(_one_line(error))
        return
    for frame in frames:
        if isinstance(frame, av.VideoFrame | av.AudioFrame) and (
            frame.pts is not None or frame.dts is not None
        ):
            yield frame


def _frames(
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
    kind: type[Frame],
    faults: list[str],
) -> Iterator[Frame]:
    for packet in _packets(container, [stream], faults):
        for frame in _decode(packet, faults):
            if isinstance(frame, kind):
                yield frame


def _time_s(frame: av.VideoFrame | av.AudioFrame) -> float:
    stamp = frame.pts if frame.pts is not None else frame.dts
    assert stamp is not None  # `_decode` lets no frame without a stamp through
    assert frame.time_base is not None
    return float(stamp * frame.time_base)


def _seek(
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
def _first_times_s(path: str, num_bytes: int, changed_ns: int) -> tuple[float, float | None]:
    """The earlier of the first presented times of both streams, and when the second frame of sound starts.

    Size and change time only key the cache.
    """
    second_frame_s: float | None = None
    first_s: dict[int, float] = {}
    faults: list[str] = []
    with _open(path) as container:
        streams = [s for s in _best_streams(container) if s is not None]
        if not streams:
            raise ClipError(f"{path}: has neither picture nor sound that can be decoded")
        for packet in _packets(container, streams, faults):
            if packet.stream_index in first_s:
                known_s = first_s[packet.stream_index]
                if packet.pts is not None and packet.pts * packet.time_base > known_s + ORIGIN_PATIENCE_S:
                    break  # the other stream starts later, or not at all
                continue
            for frame in _decode(packet, faults):
                if packet.stream_index not in first_s and isinstance(frame, av.AudioFrame):
                    second_frame_s = _time_s(frame) + frame.samples / frame.sample_rate
                first_s.setdefault(packet.stream_index, _time_s(frame))
            if len(first_s) == len(streams):
                break
    if not first_s:
        raise ClipError(f"{path}: nothing could be decoded{_because(faults)}")
    return min(first_s.values()), second_frame_s


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _because(faults: list[str]) -> str:
    return f" ({len(faults)} packets failed, the first with: {faults[0]})" if faults else ""
