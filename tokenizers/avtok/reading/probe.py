"""Facts of one file by one demux pass, with its sound and its first picture decoded."""

from __future__ import annotations

from math import sqrt

import av
import numpy as np

from avtok.clock import StreamSpan
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
from avtok.reading.sound import mono

SILENCE_DBFS = -80.0


def probe_media(uri: str) -> MediaInfo:
    """Demux the whole file once, decode its sound and its first picture. ClipError if neither is usable."""
    origin_s, faults = first_times_s(*identity(uri))[0], []
    video_span, audio_span = StreamSpan(), StreamSpan()
    size, square_sum, num_samples, rate = (0, 0), 0.0, 0, 0
    with open_media(uri) as container:
        video, audio = best_streams(container)
        for packet in packets(container, [s for s in (video, audio) if s is not None], faults):
            is_picture = packet.stream_index == (video.index if video else -1)
            stamp = packet.pts if packet.pts is not None else packet.dts
            if is_picture and stamp is not None and not packet.is_discard:
                tick = packet.time_base
                video_span.add(float(stamp * tick), float((packet.duration or 0) * tick))
            if is_picture and size[0]:
                continue
            for frame in decode(packet, faults):
                if isinstance(frame, av.VideoFrame):
                    size = display_size(frame, pixel_aspect(packet.stream))[:2]
                elif isinstance(frame, av.AudioFrame):
                    rate = rate or frame.sample_rate
                    audio_span.add(time_s_of(frame), frame.samples / frame.sample_rate)
                    mono_N = mono(frame)
                    square_sum, num_samples = square_sum + float(mono_N @ mono_N), num_samples + len(mono_N)
        is_image = is_image_format(container)
    has_video, has_audio = size[0] > 0, num_samples > 0
    if not has_video and not has_audio:
        raise ClipError(f"{uri}: no picture and no sound could be decoded{because(faults)}")
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
