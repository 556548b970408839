"""Facts of one file by one demux pass, with its sound and its first picture decoded."""

from __future__ import annotations

from typing import Any

import av
import av.container
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from avtok.clock import StreamSpan
from avtok.convert import turn_of
from avtok.decode_cost import decode_cost_s
from avtok.media import ClipError, MediaInfo
from avtok.reading.container import (
    because,
    best_streams,
    decode,
    first_times_s,
    identity,
    is_image_format,
    open_media,
    packets,
    time_s_of,
)
from avtok.reading.frame import display_size, pixel_aspect
from avtok.reading.levels import Levels
from avtok.reading.whole import Declared
from avtok.timing import FrameIntervals, SampleClock, drift_s

HDR_TRANSFERS = frozenset({ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67})  # PQ and HLG
# (transposed, mirrored, upside down) -> degrees clockwise to stand upright, and whether mirrored after that
TURNS = {
    (False, False, False): (0, False),
    (True, True, False): (90, False),
    (False, True, True): (180, False),
    (True, False, True): (270, False),
    (False, True, False): (0, True),
    (True, False, False): (90, True),
    (False, False, True): (180, True),
    (True, True, True): (270, True),
}


def probe_media(uri: str) -> MediaInfo:
    """Demux the whole file once, decode its sound and its first picture. ClipError if neither is usable."""
    path, num_bytes, changed_ns = identity(uri)
    origin_s, faults = first_times_s(path, num_bytes, changed_ns).origin_s, []
    with open_media(uri) as container:
        video, audio = best_streams(container)
        picture, sound = _Picture(video), _Sound(audio)
        declared = Declared(container, path, num_bytes)
        read = {stream.index for stream in (video, audio) if stream is not None}
        every: list[Any] = list(container.streams)  # also what is not read declares a length
        for packet in packets(container, every, faults):
            declared.add(packet)
            index = packet.stream.index  # the last packets, which empty the decoders, call themselves 0
            if index not in read:
                continue
            is_picture = video is not None and index == video.index
            if is_picture:
                picture.add_packet(packet)
                if picture.is_known:
                    continue
            for frame in decode(packet, faults):
                declared.num_corrupt += frame.is_corrupt
                if isinstance(frame, av.VideoFrame):
                    picture.add_frame(frame)
                elif isinstance(frame, av.AudioFrame):
                    sound.add_frame(frame)
        is_image = is_image_format(container)
        missing = declared.missing((video, audio))
        facts = _about(container) | picture.facts() | sound.facts()  # streams die with their container
    if not picture.is_known and not sound.is_known:
        raise ClipError(f"{uri}: no picture and no sound could be decoded{because(faults)}")
    lead = picture.span if picture.is_known else sound.span
    duration_s = 0.0 if is_image else max(0.0, lead.end_s - origin_s)
    rate_kbps = num_bytes * 8 / 1000 / duration_s if duration_s else None
    facts |= _between(picture, sound)
    return MediaInfo(
        uri=uri,
        duration_s=duration_s,
        origin_s=origin_s,
        bitrate_kbps=rate_kbps,
        reason="; ".join([*_said(picture, sound, lead, faults), *missing]),
        decode_cost_s=decode_cost_s(
            facts.get("video_codec", ""),
            pixels=picture.stored_pixels,
            fps=0.0 if is_image else facts["fps"],
            mbit_s=(rate_kbps or 0.0) / 1000,
            sample_rate=facts["sample_rate"],
            channels=facts.get("channels", 0),
        ),
        **facts,
    )


class _Picture:
    """What packets and the first frame of one stream say."""

    def __init__(self, stream: av.VideoStream | None) -> None:
        self.stream, self.is_there = stream, stream is not None
        self.span, self.intervals = StreamSpan(), FrameIntervals()
        self.size = (0, 0)
        self.stored_pixels = 0
        self.first: dict[str, Any] = {}
        self.num_keyframes = self.longest_gop = self.gop = 0

    @property
    def is_known(self) -> bool:
        return self.size[0] > 0

    def add_packet(self, packet: av.Packet) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or stamp is None:  # the packet that flushes the decoder
            return
        self.num_keyframes += packet.is_keyframe
        self.gop = 1 if packet.is_keyframe else self.gop + 1
        self.longest_gop = max(self.longest_gop, self.gop)
        if packet.is_discard:  # decoded before an edit begins, and never shown
            return
        up, down = packet.time_base.numerator, packet.time_base.denominator  # fractions are slow
        time_s = stamp * up / down
        self.span.add(time_s, (packet.duration or 0) * up / down)
        if not self.span.jump:
            self.intervals.add(time_s)

    def add_frame(self, frame: av.VideoFrame) -> None:
        if self.is_known or self.stream is None:
            return
        matrix = frame.side_data.get("DISPLAYMATRIX")
        rotation_deg, is_mirrored = TURNS[turn_of(None if matrix is None else bytes(matrix))]
        self.size = display_size(frame, pixel_aspect(self.stream))[:2]
        self.stored_pixels = frame.width * frame.height
        self.first = {
            "pixel_format": frame.format.name,
            "bit_depth": max((component.bits for component in frame.format.components), default=0),
            "color_primaries": _name(ColorPrimaries, frame.color_primaries),
            "color_transfer": _name(ColorTrc, frame.color_trc),
            "color_range": {int(ColorRange.MPEG): "limited", int(ColorRange.JPEG): "full"}.get(
                int(frame.color_range), ""
            ),
            "is_hdr": frame.color_trc in HDR_TRANSFERS,
            "rotation_deg": rotation_deg,
            "is_mirrored": is_mirrored,
            "is_interlaced": bool(frame.interlaced_frame),
        }

    def facts(self) -> dict[str, Any]:
        self.intervals.finish()
        found = {"has_video": self.is_known, "width": self.size[1], "height": self.size[0], "fps": 0.0}
        if not self.is_known or self.stream is None:
            return found
        return found | {
            **self.first,
            "fps": self.span.rate_hz,
            "video_stream": self.stream.index,
            "video_codec": _codec(self.stream),
            "num_frames": self.span.count,
            "num_keyframes": self.num_keyframes,
            "longest_gop": self.longest_gop,
            "video_start_s": self.span.first_s,
            "video_end_s": self.span.end_s if self.span.count else None,
            "is_vfr": self.intervals.are_variable,
            "min_frame_s": self.intervals.min_s,
            "max_frame_s": self.intervals.max_s,
        }


class _Sound:
    """What the decoded frames of one stream say."""

    def __init__(self, stream: av.AudioStream | None) -> None:
        self.stream, self.is_there = stream, stream is not None
        self.span, self.clock, self.levels = StreamSpan(), SampleClock(), Levels()
        self.rate = self.channels = 0

    @property
    def is_known(self) -> bool:
        return self.span.count > 0

    def add_frame(self, frame: av.AudioFrame) -> None:
        if not frame.samples or not frame.sample_rate:
            return
        self.rate = self.rate or frame.sample_rate
        self.channels = self.channels or len(frame.layout.channels)
        time_s = time_s_of(frame)
        self.span.add(time_s, frame.samples / frame.sample_rate)
        if not self.span.jump:
            self.clock.add(time_s, frame.samples, frame.sample_rate)
        self.levels.add(frame)

    def facts(self) -> dict[str, Any]:
        self.levels.finish()
        found: dict[str, Any] = {"has_audio": self.is_known, "has_sound": False, "sample_rate": self.rate}
        if not self.is_known or self.stream is None:
            return found
        levels = self.levels
        return found | {
            "has_sound": levels.has_sound,
            "audio_stream": self.stream.index,
            "audio_codec": _codec(self.stream),
            "channels": self.channels,
            "audio_start_s": self.span.first_s,
            "audio_end_s": self.span.end_s,
            "num_gaps": self.clock.num_gaps,
            "missing_s": self.clock.missing_s,
            "clock_drift_s": self.clock.drift_s,
            "loudness_lufs": levels.loudness_lufs,
            "peak_dbfs": levels.peak_dbfs,
            "rms_dbfs": levels.rms_dbfs,
            "silent_fraction": levels.silent_fraction,
        }


def _about(container: av.container.InputContainer) -> dict[str, Any]:
    streams = container.streams
    return {
        "container": container.format.name.split(",")[0],
        "num_video_streams": len(streams.video),
        "num_audio_streams": len(streams.audio),
        "num_other_streams": len(streams) - len(streams.video) - len(streams.audio),
    }


def _between(picture: _Picture, sound: _Sound) -> dict[str, float]:
    """Sound minus picture where both start and where both end."""
    if not sound.is_known:
        return {}
    if picture.span.first_s is None or sound.span.first_s is None:
        return {"drift_s": abs(sound.clock.drift_s)}
    start_s, end_s = sound.span.first_s - picture.span.first_s, sound.span.end_s - picture.span.end_s
    between = {"av_start_s": start_s, "av_end_s": end_s}
    if picture.span.count < 2:  # a still picture under a sound
        return between | {"drift_s": abs(sound.clock.drift_s)}
    return between | {"drift_s": drift_s(start_s=start_s, end_s=end_s, clock_s=sound.clock.drift_s)}


def _said(picture: _Picture, sound: _Sound, lead: StreamSpan, faults: list[str]) -> list[str]:
    missing = [] if picture.is_known or not picture.is_there else ["the picture could not be decoded"]
    missing += [] if sound.is_known or not sound.is_there else ["the sound could not be decoded"]
    missing += [lead.jump] if lead.jump else []
    missing += [f"{len(faults)} packets could not be read: {faults[0]}"] if faults else []
    return missing


def _codec(stream: av.VideoStream | av.AudioStream) -> str:
    return stream.codec_context.codec.canonical_name


def _name(kind: Any, value: int) -> str:
    """Empty where the file does not say."""
    try:
        name = kind(value).name.lower()
    except ValueError:
        return ""
    return "" if name == "unspecified" else name
