"""The sound of a cut: mono samples on one grid that counts from the origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
import numpy as np

from avtok.clock import MAX_GAP_S, ResampleSpan
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
from avtok.sample_clock import SampleTrack

# N samples.

AUDIO_PREROLL_S = 1.0  # bit reservoirs and overlaps of the sound codecs are settled long before
AROUND_S = 0.25  # more than stamps jitter and filters reach
TINY, JOINED = 64, 1024  # samples
MAX_PLANES = 8  # PyAV reads behind the last plane of a frame that has more


def read_sound(uri: str, first: int, last: int, rate: int) -> np.ndarray | None:
    """Samples [first, last) from the origin, zeros where nothing is heard. None without decodable sound."""
    tracks = _decoded(uri, first / rate, last / rate, seek=True)
    if not tracks:
        return None
    audio_N = np.sum([_on_grid(track, first, last, rate) for track in tracks], axis=0)
    audio_N = np.clip(audio_N, -1, 1)
    audio_N[: max(0, -first)] = 0  # the filter rings a little into the time before 0
    return np.ascontiguousarray(audio_N, dtype=np.float32)


def _decoded(uri: str, start_s: float, end_s: float, *, seek: bool) -> list[SampleTrack]:
    """A track for each sample rate, for it may change on the way; with a seek the decoder has a run-in."""
    origin_s, first_sound_s, _ = first_times_s(*identity(uri))
    tracks: dict[int, SampleTrack] = {}
    from_s, last_s, num_behind, faults = start_s - AUDIO_PREROLL_S, None, 0, []
    with open_media(uri, for_sound=True) as container:
        stream = best_streams(container)[1]
        if stream is None or first_sound_s is None:
            return []
        seek = seek and from_s > SEEK_AFTER_S and seek_to(container, stream, from_s + origin_s)
        for few in joined(frames(container, stream, av.AudioFrame, faults)):
            time_s, rate = time_s_of(few[0]) - origin_s, few[0].sample_rate
            num_samples = sum(frame.samples for frame in few)
            if seek and last_s is None and time_s > from_s + AUDIO_PREROLL_S / 2:
                return _decoded(uri, start_s, end_s, seek=False)  # the index pointed past the cut
            if last_s is not None and time_s < last_s - MAX_GAP_S:
                break  # a spliced clock: what comes behind carries the times of what came before
            last_s = time_s
            if rate not in tracks:
                known_s = None if tracks else first_sound_s - origin_s
                tracks[rate] = SampleTrack(rate, float(stream.time_base or 0), known_s, not seek)
            is_near = time_s + num_samples / rate > start_s - AROUND_S
            tracks[rate].add(time_s, num_samples, mono(*few) if is_near else None)
            num_behind = num_behind + 1 if time_s > end_s + AROUND_S else 0
            if num_behind > 1:  # one alone may have a spoilt stamp
                break
    return list(tracks.values()) if tracks or not seek else _decoded(uri, start_s, end_s, seek=False)


def _on_grid(track: SampleTrack, first: int, last: int, rate: int) -> np.ndarray:
    span = ResampleSpan.around(first, last, source_rate=track.rate, rate=rate)
    samples_N = track.laid_out(span.source_first, span.source_last)
    return span.cut(resampled(samples_N, track.rate, rate, late=track.late))


def joined(frames: Iterable[av.AudioFrame]) -> Iterator[list[av.AudioFrame]]:
    """Frames, each alone, but tiny ones that follow each other together: some AVI have frames of a sample."""
    few: list[av.AudioFrame] = []
    num_samples = 0
    for frame in frames:
        if few and not (num_samples < JOINED and frame.samples <= TINY and _follows(few, num_samples, frame)):
            yield few
            few, num_samples = [], 0
        few.append(frame)
        num_samples += frame.samples
    if few:
        yield few


def _follows(few: list[av.AudioFrame], num_samples: int, frame: av.AudioFrame) -> bool:
    first = few[0]
    if (first.sample_rate, first.format.name) != (frame.sample_rate, frame.format.name):
        return False
    late_s = time_s_of(frame) - time_s_of(first) - num_samples / frame.sample_rate
    return first.layout.nb_channels == frame.layout.nb_channels and abs(late_s) <= float(frame.time_base or 0)


def mono(*few: av.AudioFrame) -> np.ndarray:
    """float32 mean of all channels of frames that follow each other."""
    first = few[0]
    channels = first.layout.nb_channels
    if first.format.is_planar and channels > MAX_PLANES:
        resampler = av.AudioResampler(format=first.format.packed, layout=first.layout)
        few = tuple(packed for frame in few for packed in resampler.resample(frame))
    data = few[0].to_ndarray() if len(few) == 1 else np.concatenate([f.to_ndarray() for f in few], axis=1)
    return to_mono(data, sample_format=few[0].format.name, channels=channels)
