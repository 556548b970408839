"""What the index knows of a file, held to files made so: streams, stamps, loudness, drift, cost."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avtok.decode import ClipError, decode_clip, probe
from avtok.decode_cost import decode_cost_s

# N samples, C channels.

RATE = 48000


def tone(seconds: float, level_dbfs: float, hz: float = 997.0, rate: int = RATE) -> np.ndarray:
    """A sine whose peak lies at level_dbfs."""
    return (
        10 ** (level_dbfs / 20) * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    ).astype(np.float32)


def write_sound(path: Path, blocks: list[tuple[float, np.ndarray]], *, rate: int = RATE) -> Path:
    """PCM in Matroska: each block of samples [C, N] stamped with a time of its own, in ticks of 1/rate."""
    with av.open(str(path), "w") as container:
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[np.atleast_2d(blocks[0][1]).shape[0]]
        stream = container.add_stream("pcm_f32le", rate=rate, layout=layout)
        for time_s, samples in blocks:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(np.atleast_2d(samples).T.reshape(1, -1)), format="flt", layout=layout
            )
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(time_s * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def in_blocks(samples: np.ndarray, *, seconds: float = 0.02, stretch: float = 1.0, rate: int = RATE):
    """(stamp, samples) of each block; stretch: how much faster the stamps run than the samples."""
    size = round(seconds * rate)
    return [
        (start / rate * stretch, samples[..., start : start + size])
        for start in range(0, samples.shape[-1], size)
    ]


@pytest.mark.parametrize("level_dbfs", [-6.0, -23.0, -40.0])
def test_loudness_is_that_of_the_standard(tmp_path, level_dbfs):
    """EBU Tech 3341: a stereo sine of 997 Hz at -23 dBFS in both channels measures -23 LUFS."""
    sine_CN = np.stack([tone(4.0, level_dbfs)] * 2)
    info = probe(str(write_sound(tmp_path / "a.mkv", in_blocks(sine_CN))))
    assert info.loudness_lufs == pytest.approx(level_dbfs, abs=0.1)
    assert info.peak_dbfs == pytest.approx(level_dbfs, abs=0.05)
    assert info.rms_dbfs == pytest.approx(level_dbfs - 3.01, abs=0.05)
    assert (info.channels, info.silent_fraction, info.audio_codec) == (2, 0.0, "pcm_f32le")


def test_loudness_agrees_with_torchaudio_on_a_sound_that_changes(tmp_path):
    import torch
    from torchaudio.functional import loudness

    noise_CN = 0.1 * np.random.default_rng(0).standard_normal((2, 6 * RATE)).astype(np.float32)
    noise_CN *= np.linspace(0.05, 1, 6 * RATE, dtype=np.float32)
    info = probe(str(write_sound(tmp_path / "a.mkv", in_blocks(noise_CN))))
    assert info.loudness_lufs == pytest.approx(float(loudness(torch.from_numpy(noise_CN), RATE)), abs=0.15)


def test_too_short_or_too_quiet_for_the_standard_is_not_known_rather_than_minus_seventy(tmp_path):
    short = probe(str(write_sound(tmp_path / "a.mkv", in_blocks(tone(0.3, -20)))))
    assert (short.loudness_lufs, short.has_sound) == (None, True)
    still = probe(str(write_sound(tmp_path / "b.mkv", in_blocks(np.zeros(RATE, np.float32)))))
    assert (still.loudness_lufs, still.has_audio, still.has_sound) == (None, True, False)
    assert still.silent_fraction == 1.0


def test_one_click_in_a_long_silence_is_sound_and_the_silence_is_told(tmp_path):
    samples_N = np.zeros(60 * RATE, np.float32)
    samples_N[30 * RATE : 30 * RATE + 9] = 0.02
    info = probe(str(write_sound(tmp_path / "a.mkv", in_blocks(samples_N, seconds=0.1))))
    assert info.rms_dbfs < -80
    assert info.has_sound
    assert info.silent_fraction == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("stretch", [1.01, 0.995, 1.0])
def test_a_sound_whose_stamps_run_faster_than_its_samples_has_drifted_by_so_much(tmp_path, stretch):
    blocks = in_blocks(tone(5.0, -20), stretch=stretch)
    info = probe(str(write_sound(tmp_path / "a.mkv", blocks)))
    assert info.clock_drift_s == pytest.approx(5.0 * (stretch - 1), abs=2e-3)
    assert info.drift_s == pytest.approx(abs(5.0 * (stretch - 1)), abs=2e-3)
    assert info.num_gaps == 0


def test_a_pause_in_the_recording_is_a_gap_and_no_drift(tmp_path):
    blocks = in_blocks(tone(3.0, -20))
    blocks = [(time_s + (0.7 if time_s >= 1 else 0) + (0.3 if time_s >= 2 else 0), s) for time_s, s in blocks]
    info = probe(str(write_sound(tmp_path / "a.mkv", blocks)))
    assert (info.num_gaps, round(info.clock_drift_s, 3)) == (2, 0.0)
    assert info.missing_s == pytest.approx(1.0, abs=2e-3)
    assert info.duration_s == pytest.approx(4.0, abs=2e-3)


def test_a_wrong_sample_rate_is_drift_and_a_late_start_or_a_shift_is_none(write_media):
    times = [Fraction(index, 25) for index in range(100)]
    wrong = probe(str(write_media("a.mkv", frame_times_s=times, event_s=1, audio_end_s=4.0 * 44100 / 48000)))
    assert wrong.drift_s == pytest.approx(4.0 * (1 - 44100 / 48000), abs=0.03)
    late = {"frame_times_s": times, "event_s": 1, "audio_start_s": 0.7, "audio_codec": "flac"}
    info = probe(str(write_media("b.mkv", audio_end_s=4.0, **late)))
    assert info.av_start_s == pytest.approx(0.7, abs=2e-3)
    assert info.av_end_s == pytest.approx(0.0, abs=0.01)
    assert info.drift_s < 0.02
    info = probe(str(write_media("c.mkv", audio_end_s=4.7, **late)))
    assert info.av_end_s == pytest.approx(0.7, abs=0.01)
    assert info.drift_s < 0.02


def test_stamps_of_the_picture_are_told(write_media):
    even = probe(str(write_media("a.mp4", frame_times_s=[Fraction(i, 30) for i in range(60)], event_s=0)))
    assert (even.num_frames, even.num_keyframes, even.longest_gop, even.is_vfr) == (60, 5, 12, False)
    assert even.min_frame_s == pytest.approx(1 / 30, abs=1e-4)
    milliseconds = [Fraction(i * 1000 // 30, 1000) for i in range(60)]
    rounded = probe(str(write_media("b.mkv", frame_times_s=milliseconds, event_s=1)))
    assert not rounded.is_vfr  # 33 and 34 ms are one rate in a container that counts milliseconds
    uneven = [Fraction(i, 30) + Fraction(i // 10, 10) for i in range(60)]
    info = probe(str(write_media("c.mp4", frame_times_s=uneven, event_s=1)))
    assert info.is_vfr
    assert info.max_frame_s == pytest.approx(1 / 30 + 0.1, abs=1e-3)
    assert info.min_frame_s == pytest.approx(1 / 30, abs=1e-3)


def test_streams_codecs_and_colour_are_told(write_media):
    times = [Fraction(index, 25) for index in range(10)]
    info = probe(str(write_media("a.mp4", frame_times_s=times, event_s=0.1)))
    assert (info.container, info.video_codec, info.audio_codec) == ("mov", "h264", "aac")
    assert (info.pixel_format, info.bit_depth, info.is_hdr, info.is_interlaced) == (
        "yuv420p",
        8,
        False,
        False,
    )
    assert (info.num_video_streams, info.num_audio_streams, info.num_other_streams) == (1, 1, 0)
    assert (info.video_stream, info.audio_stream) == (0, 1)
    size_kbit = Path(info.uri).stat().st_size * 8 / 1000
    assert info.bitrate_kbps == pytest.approx(size_kbit / info.duration_s)


def test_the_larger_picture_and_its_index_are_chosen(tmp_path):
    path = tmp_path / "two.ts"  # a container that marks no stream as the default one
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((64, 48), (160, 120)):
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for index in range(10):
            for stream in streams:
                picture = np.full((stream.height, stream.width, 3), 20 * index, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    info = probe(str(path))
    assert (info.width, info.height, info.video_stream, info.num_video_streams) == (160, 120, 1, 2)


# What decoding costs.


def decode_s(path: Path) -> float:
    """CPU time of this thread for every frame, the least of three."""
    taken = []
    for _ in range(3):
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            begin = time.thread_time()
            for _ in container.decode(video=0):
                pass
            taken.append(time.thread_time() - begin)
    return min(taken)


def write_texture(path: Path, codec: str, size: tuple[int, int], num_frames: int) -> Path:
    random = np.random.default_rng(0)
    blocks = random.integers(0, 255, (size[0] // 16 + 4, size[1] // 16 + 4, 3), dtype=np.uint8)
    texture = np.kron(blocks, np.ones((16, 16, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for index in range(num_frames):
            part = texture[index % 48 :, index * 2 % 48 :][: size[0], : size[1]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(part), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_the_estimate_of_decoding_ranks_files_as_the_clock_does(tmp_path):
    """Sizes and codecs whose costs lie a factor of two apart and more."""
    kinds = [
        ("mpeg2video", (96, 128)),
        ("mpeg2video", (288, 352)),
        ("libx264", (360, 640)),
        ("libx264", (720, 1280)),
    ]
    paths = [write_texture(tmp_path / f"{i}.mkv", codec, size, 40) for i, (codec, size) in enumerate(kinds)]
    infos = [probe(str(path)) for path in paths]
    estimated = [info.decode_cost_s for info in infos]
    measured = [decode_s(path) / info.duration_s for path, info in zip(paths, infos, strict=True)]
    assert np.argsort(estimated).tolist() == np.argsort(measured).tolist() == [0, 1, 2, 3]
    ratios = np.array(estimated) / np.array(measured)
    assert ratios.max() / ratios.min() < 6  # one scale fits all within a factor of 2.5 either way


def test_what_has_no_picture_costs_its_sound_alone():
    sound = {"mbit_s": 0.1, "sample_rate": 48000, "channels": 2}
    alone = decode_cost_s("", pixels=0, fps=0.0, **sound)
    assert 0 < alone < decode_cost_s("h264", pixels=64 * 64, fps=25.0, **sound)
    assert decode_cost_s("nobody", pixels=10**6, fps=25.0, **sound) >= decode_cost_s(
        "h264", pixels=10**6, fps=25.0, **sound
    )


# Real files.


@pytest.mark.media
def test_the_facts_of_awkward_clips(media_folder: Path):
    awkward = media_folder / "awkward"
    nasa = probe(str(media_folder / "general/nasa_13013.mp4"))
    assert (nasa.video_stream, nasa.audio_stream, nasa.num_other_streams) == (3, 4, 2)
    assert probe(str(awkward / "hlg10-color-test.mp4")).is_hdr
    assert probe(str(awkward / "bt2020_10bit.mp4")).bit_depth == 10
    assert probe(str(awkward / "decord_video_90.mov")).rotation_deg == 90
    assert probe(str(awkward / "nasa_13013_rotated.mp4")).rotation_deg == 270
    phone = probe(str(awkward / "sample_android_slow_motion.mp4"))
    assert (phone.is_vfr, round(phone.min_frame_s, 4), round(phone.max_frame_s, 4)) == (True, 0.0333, 0.3253)
    assert probe(str(awkward / "sample_edit_list_no_sync_frame_before_edit.mp4")).origin_s < 0
    late = probe(str(media_folder / "derived/audio_starts_0.7s_late_from_friday.mkv"))
    assert late.av_start_s == pytest.approx(0.7, abs=2e-3)
    holes = probe(str(awkward / "sample_eac3.mp4"))  # a sixth of its sound is there
    assert holes.num_gaps > 50
    assert holes.missing_s > 1


@pytest.mark.media
def test_probing_decodes_what_decoding_decodes(media_folder: Path):
    path = str(media_folder / "speech/friday.mp4")
    info = probe(path)
    clip = decode_clip(path, start_s=0, end_s=info.duration_s, fps=8, size=(32, 32), sample_rate=44100)
    assert 20 * np.log10(np.abs(clip.audio_N).max()) == pytest.approx(info.peak_dbfs, abs=0.01)
    assert 20 * np.log10(np.sqrt(np.square(clip.audio_N).mean())) == pytest.approx(info.rms_dbfs, abs=0.1)
    with pytest.raises(ClipError):
        probe(str(media_folder / "awkward/zero_length.webm"))
