"""The sound of a cut: mono samples on one grid that counts from the origin."""

from __future__ import annotations

import av
import numpy as np

from avtok.clock import ResampleSpan, SampleTrack, on_frame_grid_s
from avtok.convert import resampled, to_mono
from avtok.reading.container import (
    SEEK_AFTER_S,
    best_streams,
    first_times_s,
    frames,
    identity,
    open_media,
    seek_to,
    time_s_of,
)

# N samples.

AUDIO_PREROLL_S = 1.0  # bit reservoirs and overlaps of the sound codecs are settled long before


def read_sound(uri: str, first: int, last: int, rate: int, seek: bool = True) -> np.ndarray | None:
    (origin_s, second_frame_s), faults = first_times_s(*identity(uri)), []
    track: SampleTrack | None = None
    span: ResampleSpan | None = None
    with open_media(uri, for_sound=True) as container:
        stream = best_streams(container)[1]
        if stream is None:
            return None
        from_s = first / rate - AUDIO_PREROLL_S
        seek = seek and from_s > SEEK_AFTER_S and seek_to(container, stream, from_s + origin_s)
        for frame in frames(container, stream, av.AudioFrame, faults):
            time_s = time_s_of(frame) - origin_s
            if track is None or span is None:
                if seek and time_s > from_s + AUDIO_PREROLL_S / 2:
                    return read_sound(uri, first, last, rate, seek=False)
                span = ResampleSpan.around(first, last, source_rate=frame.sample_rate, rate=rate)
                tolerance_s = max(2 * float(stream.time_base or 0), 2e-3)
                track = SampleTrack(frame.sample_rate, tolerance_s, span.source_first, span.source_last)
                if seek and second_frame_s is not None:
                    time_s = on_frame_grid_s(
                        time_s, second_frame_s - origin_s, frame.samples / frame.sample_rate, tolerance_s
                    )
            if frame.sample_rate == track.rate and track.place(time_s, mono(frame)) >= span.source_last:
                break
    if track is None or span is None:
        return read_sound(uri, first, last, rate, seek=False) if seek else None
    audio_N = np.clip(span.cut(resampled(track.samples_N, track.rate, rate)), -1, 1)
    audio_N[: max(0, -first)] = 0  # the filter rings a little into the time before 0
    return np.ascontiguousarray(audio_N, dtype=np.float32)


def mono(frame: av.AudioFrame) -> np.ndarray:
    return to_mono(frame.to_ndarray(), sample_format=frame.format.name, channels=len(frame.layout.channels))
