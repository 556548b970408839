"""Writes real media files in which the picture turns white and a click is heard at one known time.

The flash is a picture that stays white; the click is a Ricker wavelet of 1 kHz, placed between samples where
its time falls between them: it survives every sound codec and a rate of 8 kHz, and cross-correlation finds it
to a few hundredths of a sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import av
import numpy as np

from benchmarks.makers.flash_click_kinds import (
    CONTAINERS,
    FRAME_RATES,
    LAYOUTS,
    SOUND_CODECS,
    VIDEO_CODECS,
    heard_priming_s,
    stored_priming_s,
)

# H W pixels, C channels, N samples.

os.environ.setdefault("SVT_LOG", "1")  # errors only: the AV1 encoder reports every file that it makes

PULSE_HZ = 1000.0
PULSE_REACH_S = 2.5e-3  # the wavelet is below 1e-6 outside
LOUDNESS = 0.7
DEEP_FILE_S, DEEP_EVENT_S = 10.0, (6.0, 9.0)
DARK, WHITE = 20, 235
VARIABLE_TICK = Fraction(1, 30000)  # fine enough, and the finest that MPEG-4 can say


@dataclass(frozen=True)
class Case:
    """One file and one cut of it. audio_offset_s: start of the sound minus start of the picture."""

    container: str
    video_codec: str
    audio_codec: str
    frame_rate: str
    sample_rate: int
    layout: str
    audio_offset_s: float
    start_s: float
    event: str  # "early": cut from the start; "deep": cut late in ten seconds, behind a seek
    target_fps: int
    target_rate: int
    seed: int = 0

    @property
    def name(self) -> str:
        told = (self.video_codec, self.audio_codec, self.frame_rate, f"{self.sample_rate}hz", self.layout)
        return f"{self.container}-{'-'.join(told)}-{self.audio_offset_s:+g}s-at{self.start_s:g}s-{self.event}"


@dataclass(frozen=True)
class Written:
    """A file, and when flash and click are: in seconds from the earlier first presented time of both streams.

    They are what the file says, which is not always what was meant: FFmpeg's muxer cuts the start of a track
    down to whole milliseconds, and AVI has no start of a track at all. moved_s: by how much that moved the
    click against the flash. tick_s: the coarsest clock that places the click; that of the samples at least.
    heard_priming_s: run-in of the encoder that no reader can know.
    """

    path: Path
    flash_s: float
    click_s: float
    tick_s: float
    heard_priming_s: float
    moved_s: float


def ricker(time_s: np.ndarray) -> np.ndarray:
    square = (np.pi * PULSE_HZ * time_s) ** 2
    return (1 - 2 * square) * np.exp(-square)


def picture_times(case: Case) -> Iterator[Fraction]:
    """Endless presentation times from 0."""
    steps = FRAME_RATES[case.frame_rate]
    if isinstance(steps, Fraction):
        index = 0
        while True:
            yield index / steps
            index += 1
    rng, now = np.random.default_rng(case.seed), Fraction(0)
    while True:
        yield now
        step_s = steps(float(now), rng)
        now += max(round(step_s / VARIABLE_TICK), 1) * VARIABLE_TICK


def write_flash_click(case: Case, path: Path) -> Written:
    """The file of a case, written to `path`, and where its event is."""
    tick = _tick(case)
    first_picture_s = float(_ticks(case.start_s + max(0.0, -case.audio_offset_s), tick) * tick)
    first_sound_s = (
        _ticks(case.start_s + max(0.0, case.audio_offset_s), Fraction(1, case.sample_rate)) / case.sample_rate
    )
    rng = np.random.default_rng(case.seed)
    wanted_s = abs(case.audio_offset_s) + 0.5 if case.event == "early" else rng.uniform(*DEEP_EVENT_S)
    duration_s = wanted_s + 0.9 if case.event == "early" else DEEP_FILE_S
    times, flash_index = _times_around(case, case.start_s + wanted_s - first_picture_s, duration_s)
    event_s = first_picture_s + float(times[flash_index])
    kind = CONTAINERS[case.container]
    with av.open(str(path), "w", format=kind.muxer, options=kind.options) as container:
        picture = _Picture(container, case, times, flash_index, first_picture_s)
        sound = _Sound(container, case, event_s, first_sound_s, case.start_s + duration_s)
        end_s = case.start_s + duration_s
        now_s = case.start_s
        while now_s < end_s + 1:  # in turns, as a recorder writes them
            now_s += 0.25
            picture.write_until(now_s)
            sound.write_until(now_s)
        picture.end()
        sound.end()
    return _stated(case, path, event_s, first_picture_s, first_sound_s)


def _stated(case: Case, path: Path, event_s: float, first_picture_s: float, first_sound_s: float) -> Written:
    """What the file says, which is what a reader can be held to."""
    kind = CONTAINERS[case.container]
    lead_s = heard_priming_s(case.container, case.audio_codec, case.sample_rate, first_sound_s)
    flash_s = click_s = event_s
    sound_starts_s, picture_starts_s = first_sound_s - lead_s, first_picture_s
    if kind.movie_hz:  # FFmpeg's muxer truncates the empty edit in front of a track
        stored_s = first_sound_s - stored_priming_s(case.audio_codec, case.sample_rate)
        lost_s = stored_s - _truncated(stored_s, kind.movie_hz) if stored_s > 0 else 0.0
        sound_starts_s, click_s = sound_starts_s - lost_s, click_s - lost_s
        lost_s = picture_starts_s - _truncated(picture_starts_s, kind.movie_hz)
        picture_starts_s, flash_s = picture_starts_s - lost_s, flash_s - lost_s
    if kind.counts_frames and lead_s > 0:  # FFmpeg's muxer shows the first picture until the priming is over
        rate = FRAME_RATES[case.frame_rate]
        assert isinstance(rate, Fraction)
        flash_s += ceil(lead_s * rate) / float(rate)
        click_s, sound_starts_s = click_s + lead_s, 0.0
    origin_s = min(picture_starts_s, sound_starts_s)
    tick_s = max(kind.tick_s, 1 / case.sample_rate)
    return Written(path, flash_s - origin_s, click_s - origin_s, tick_s, lead_s, click_s - flash_s)


def _truncated(time_s: float, clock_hz: int) -> float:
    return floor(time_s * clock_hz + 1e-6) / clock_hz


def _times_around(case: Case, wanted_s: float, duration_s: float) -> tuple[list[Fraction], int]:
    times: list[Fraction] = []
    for time in picture_times(case):
        if times and time >= duration_s:
            break
        times.append(time)
    return times, next(index for index, time in enumerate(times) if time >= wanted_s)


class _Picture:
    def __init__(
        self, container, case: Case, times: list[Fraction], flash_index: int, first_s: float
    ) -> None:
        codec, steps = VIDEO_CODECS[case.video_codec], FRAME_RATES[case.frame_rate]
        rate = steps if isinstance(steps, Fraction) else Fraction(30)
        self.tick = _tick(case)
        self.container, self.times, self.flash_index = container, times, flash_index
        self.first = _ticks(first_s, self.tick)
        self.stream = container.add_stream(codec.encoder, rate=rate, options=codec.options)
        self.stream.height, self.stream.width, self.stream.pix_fmt = *codec.size, codec.pixel_format
        self.stream.codec_context.thread_count = 1
        self.stream.time_base = self.stream.codec_context.time_base = self.tick
        self.images = [_flat(level, codec.size, codec.pixel_format) for level in (DARK, WHITE)]
        self.next = 0

    def write_until(self, end_s: float) -> None:
        while self.next < len(self.times):
            stamp = self.first + round(self.times[self.next] / self.tick)
            if stamp * self.tick >= end_s:
                return
            frame = self.images[self.next >= self.flash_index]
            frame.pts, frame.time_base = stamp, self.tick
            self.container.mux(self.stream.encode(frame))
            self.next += 1

    def end(self) -> None:
        self.container.mux(self.stream.encode(None))


class _Sound:
    def __init__(self, container, case: Case, event_s: float, first_s: float, end_s: float) -> None:
        codec = SOUND_CODECS[case.audio_codec]
        self.container, self.rate, self.layout = container, case.sample_rate, LAYOUTS[case.layout]
        self.stream = container.add_stream(
            codec.encoder, rate=case.sample_rate, layout=self.layout, options=codec.options
        )
        self.stream.time_base = self.stream.codec_context.time_base = Fraction(1, case.sample_rate)
        if codec.bits_per_sample:
            channels = av.AudioLayout(self.layout).nb_channels
            self.stream.bit_rate = min(codec.bits_per_sample * self.rate * channels, codec.most_bits_per_s)
        self.first = round(first_s * self.rate)
        self.event_s, self.end_sample, self.next = event_s, round(end_s * self.rate), self.first
        self.resampler = av.AudioResampler(
            format=self.stream.codec_context.format, layout=self.layout, rate=self.rate
        )

    def write_until(self, end_s: float) -> None:
        block = self.stream.codec_context.frame_size or 1024
        while self.next < self.end_sample and self.next / self.rate < end_s:
            size = min(block, self.end_sample - self.next)
            frame = av.AudioFrame.from_ndarray(self._samples(size), format="flt", layout=self.layout)
            frame.sample_rate, frame.time_base, frame.pts = self.rate, Fraction(1, self.rate), self.next
            for converted in self.resampler.resample(frame):
                self.container.mux(self.stream.encode(converted))
            self.next += size

    def _samples(self, size: int) -> np.ndarray:
        time_s = np.arange(self.next, self.next + size) / self.rate - self.event_s
        near = time_s[0] < PULSE_REACH_S and time_s[-1] > -PULSE_REACH_S
        wave_N = LOUDNESS * ricker(time_s) if near else np.zeros(size)
        channels = av.AudioLayout(self.layout).nb_channels
        return np.repeat(wave_N.astype(np.float32), channels)[None]  # interleaved: PyAV fills no 16 planes

    def end(self) -> None:
        self.container.mux(self.stream.encode(None))


def _tick(case: Case) -> Fraction:
    """What the encoder of the picture counts in: a few codecs and containers know only frames."""
    steps = FRAME_RATES[case.frame_rate]
    if not isinstance(steps, Fraction):
        return VARIABLE_TICK
    counts_frames = CONTAINERS[case.container].counts_frames or VIDEO_CODECS[case.video_codec].steady_only
    if counts_frames:
        return 1 / steps
    finer = 500 if steps >= 60 else 1000  # MPEG-4 counts to 65535 in a second
    return Fraction(1, steps.numerator * (finer if steps.denominator == 1 else 1))


def _ticks(time_s: float, tick: Fraction) -> int:
    """The first time on a clock at or after `time_s`: rounding it would spoil the truth."""
    return ceil(Fraction(time_s).limit_denominator(1000) / tick)


def _flat(level: int, size: tuple[int, int], pixel_format: str) -> av.VideoFrame:
    image = np.full((*size, 3), level, np.uint8)
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format)
