"""Flash and click come back together, whatever the container says about time."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from avtok.decode import DecodedClip, decode_clip, probe

FPS, RATE_HZ = 16, 16000
ONE_SAMPLE_S = 1 / RATE_HZ
FILM = Fraction(24000, 1001)


def regular(fps: Fraction | int, count: int) -> list[Fraction]:
    return [index / Fraction(fps) for index in range(count)]


def cut(path, start_s=0.0, end_s=2.0, **more) -> DecodedClip:
    settings = {"fps": FPS, "size": (32, 32), "sample_rate": RATE_HZ}
    return decode_clip(str(path), start_s=start_s, end_s=end_s, **(settings | more))


def flash_s(clip: DecodedClip) -> float:
    bright_T = clip.video_THWC.mean(axis=(1, 2, 3)) > 128
    assert bright_T.any()
    assert not bright_T[0]
    return clip.start_s + (int(bright_T.argmax()) - clip.context_frames) / FPS


def click_s(clip: DecodedClip) -> float:
    return clip.start_s + (int(np.abs(clip.audio_N).argmax()) - clip.context_samples) / RATE_HZ


VARIABLE = [
    Fraction(n, 1000)
    for n in np.cumsum([0, 17, 33, 120, 41, 8, 250, 33, 33, 90, 61, 33, 47, 150, 33] + [60] * 25).tolist()
]


@pytest.mark.parametrize(
    "times", [regular(16, 40), regular(FILM, 60), regular(30, 70), VARIABLE], ids=["16", "film", "30", "vfr"]
)
@pytest.mark.parametrize(
    ("name", "tick_s", "sample_rate"),
    [
        ("a.mp4", 1 / 90000, 48000),
        ("a.mov", 1 / 90000, 44100),
        ("a.mkv", 1e-3, 48000),
        ("a.ts", 1 / 90000, 44100),
    ],
)
def test_flash_and_click_come_back_at_their_time(write_media, name, tick_s, sample_rate, times):
    event_s = float(times[21])
    clip = cut(write_media(name, frame_times_s=times, event_s=event_s, sample_rate=sample_rate))
    assert clip.video_THWC.shape == (32, 32, 32, 3)
    assert clip.audio_N.shape == (2 * RATE_HZ,)
    # a transport stream does not say that its first frame of sound is the encoder's run-in: the origin is
    # there
    lead_s = 1024 / sample_rate if name.endswith(".ts") else 0.0
    assert abs(click_s(clip) - lead_s - event_s) <= ONE_SAMPLE_S + tick_s / 2 + 1e-9
    assert -tick_s - 1e-9 <= flash_s(clip) - lead_s - event_s < 1 / FPS


@pytest.mark.parametrize("audio_start_s", [0.7, 0.25])
@pytest.mark.parametrize("name", ["late.mkv", "late.mp4"])
def test_sound_that_starts_late_is_preceded_by_silence(write_media, name, audio_start_s):
    path = write_media(name, frame_times_s=regular(30, 70), event_s=1.5, audio_start_s=audio_start_s)
    clip = cut(path)
    tick_s = 1e-3  # the muxer truncates an .mp4's empty edit to a whole millisecond
    assert abs(click_s(clip) - 1.5) <= ONE_SAMPLE_S + tick_s
    assert not clip.audio_N[: round((audio_start_s - 0.06) * RATE_HZ)].any()


def test_picture_that_starts_late_is_held_backwards(write_media):
    times = [Fraction(1, 2) + time for time in regular(16, 40)]
    clip = cut(write_media("late.mkv", frame_times_s=times, event_s=1.5, audio_end_s=3.0))
    assert abs(click_s(clip) - 1.5) <= ONE_SAMPLE_S + 0.5e-3
    assert abs(flash_s(clip) - 1.5) <= 1 / FPS
    assert (clip.video_THWC[:8] == clip.video_THWC[8]).all()


def test_a_container_that_starts_at_ten_seconds_is_cut_from_its_own_origin(write_media):
    times = [10 + time for time in regular(30, 70)]
    path = write_media("ten.mkv", frame_times_s=times, event_s=11.0, audio_start_s=10.0)
    clip = cut(path)
    assert probe(str(path)).origin_s == pytest.approx(10.0, abs=0.025)
    assert abs(click_s(clip) - (11.0 - probe(str(path)).origin_s)) <= ONE_SAMPLE_S + 0.5e-3
    assert abs(flash_s(clip) - 1.0) <= 1 / FPS


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.ts"])
def test_a_cut_equals_the_same_cut_of_the_whole(write_media, name):
    path = write_media(name, frame_times_s=regular(30, 260), event_s=7.0, sample_rate=44100, gop=25)
    whole = cut(path, 0.0, 8.0)
    part = cut(path, 5.5, 7.5, context_frames=4, context_samples=750)
    frame, sample = round(5.5 * FPS), round(5.5 * RATE_HZ)
    assert np.array_equal(part.video_THWC, whole.video_THWC[frame - 4 : frame + 32])
    expected_N = whole.audio_N[sample - 750 : sample + 32000]
    assert len(part.audio_N) == len(expected_N)
    assert np.abs(part.audio_N - expected_N).max() < 2e-3


def test_a_context_before_the_start_is_the_first_picture_and_silence(write_media):
    path = write_media("a.mp4", frame_times_s=regular(16, 40), event_s=0.5)
    clip = cut(path, 0.0, 1.0, context_frames=4, context_samples=750)
    assert clip.video_THWC.shape[0] == 20
    assert (clip.video_THWC[:4] == clip.video_THWC[4]).all()
    assert len(clip.audio_N) == 16750
    assert not clip.audio_N[:750].any()


def test_a_separate_sound_file_starts_with_the_picture(write_media):
    picture = write_media("p.mp4", frame_times_s=regular(30, 70), event_s=1.0, audio_codec=None)
    sound = write_media("s.mkv", frame_times_s=regular(30, 70), event_s=1.0, sample_rate=44100)
    clip = cut(picture, audio_uri=str(sound))
    assert abs(click_s(clip) - 1.0) <= ONE_SAMPLE_S + 0.5e-3
    assert abs(flash_s(clip) - 1.0) <= 1 / FPS
