"""Awkward and bad files: what is whole is used, and everything else is one clear line."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avtok.decode import ClipError, decode_clip, probe
from avtok.mux import write_clip


def cut(path, end_s=1.0, start_s=0.0, size=(64, 64)):
    return decode_clip(str(path), start_s=start_s, end_s=end_s, fps=16, size=size, sample_rate=16000)


@pytest.fixture
def picture() -> np.ndarray:
    levels_T = np.arange(32, dtype=np.uint8) * 7
    return np.broadcast_to(levels_T[:, None, None, None], (32, 64, 64, 3)).copy()


@pytest.fixture
def tone() -> np.ndarray:
    return (0.5 * np.sin(np.arange(32000) * 2 * np.pi * 440 / 16000)).astype(np.float32)


def test_a_written_clip_comes_back_frame_for_frame_and_sample_for_sample(tmp_path, picture, tone):
    tone[[100, 8000, 31990]] = 0.95
    write_clip(tmp_path / "a.mp4", picture, tone, fps=16, sample_rate=16000)
    clip = cut(tmp_path / "a.mp4", 2.0)
    assert np.abs(clip.video_THWC.astype(int) - picture).max() <= 2
    found = np.flatnonzero(np.abs(clip.audio_N) > 0.75)
    assert np.abs(found[:, None] - np.array([100, 8000, 31990])).min(axis=1).max() == 0
    info = probe(str(tmp_path / "a.mp4"))
    assert (info.duration_s, info.fps, info.sample_rate, info.origin_s) == (2.0, 16.0, 16000, 0.0)
    assert info.has_video
    assert info.has_sound
    assert info.reason == ""


def test_the_same_clip_gives_the_same_file(tmp_path, picture, tone):
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, picture, tone, fps=16, sample_rate=16000)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_fractional_frame_rate_is_exact(tmp_path, picture):
    write_clip(tmp_path / "a.mp4", picture, None, fps=Fraction(24000, 1001), sample_rate=16000)
    assert probe(str(tmp_path / "a.mp4")).fps == pytest.approx(24000 / 1001, abs=1e-4)


@pytest.mark.parametrize(
    ("video", "audio", "words"),
    [
        (None, None, "neither"),
        (np.zeros((4, 63, 64, 3), np.uint8), None, "even height"),
        (np.zeros((4, 64, 64, 3), np.float32), None, "uint8"),
        (None, np.zeros((2, 16000), np.float32), "mono"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, video, audio, words):
    with pytest.raises(ValueError, match=words):
        write_clip(tmp_path / "a.mp4", video, audio, fps=16, sample_rate=16000)


def test_a_track_of_silence_is_sound_that_is_there_but_not_heard(tmp_path, picture):
    write_clip(tmp_path / "a.mp4", picture, np.zeros(32000, np.float32), fps=16, sample_rate=16000)
    info = probe(str(tmp_path / "a.mp4"))
    assert (info.has_audio, info.has_sound) == (True, False)


def test_clips_without_sound_or_picture_say_none(tmp_path, picture, tone):
    write_clip(tmp_path / "mute.mp4", picture, None, fps=16, sample_rate=16000)
    write_clip(tmp_path / "blind.mp4", None, tone, fps=16, sample_rate=16000)
    assert cut(tmp_path / "mute.mp4").audio_N is None
    assert cut(tmp_path / "blind.mp4").video_THWC is None
    assert not probe(str(tmp_path / "mute.mp4")).has_audio
    assert probe(str(tmp_path / "blind.mp4")).duration_s == pytest.approx(2.0, abs=0.065)


def test_an_image_is_repeated(tmp_path):
    from PIL import Image

    Image.new("RGB", (30, 50), (200, 30, 40)).save(tmp_path / "a.png")
    clip = cut(tmp_path / "a.png", 3.0)
    assert clip.video_THWC.shape == (48, 64, 64, 3)
    assert np.abs(clip.video_THWC.astype(int) - (200, 30, 40)).max() <= 2
    assert probe(str(tmp_path / "a.png")).duration_s == 0


def test_the_shorter_side_is_fitted_and_the_centre_kept(tmp_path):
    wide = np.zeros((16, 64, 192, 3), np.uint8)
    wide[:, :, 64:128] = 255
    write_clip(tmp_path / "a.mp4", wide, None, fps=16, sample_rate=16000)
    assert cut(tmp_path / "a.mp4", size=(32, 32)).video_THWC[:, :, 2:-2].mean() > 245


def test_channels_are_averaged(write_media):
    times = [Fraction(index, 16) for index in range(20)]
    path = write_media("a.mkv", frame_times_s=times, event_s=0.5, audio_codec="flac", layout="5.1")
    assert np.abs(cut(path).audio_N).max() < 1
    assert np.abs(cut(path).audio_N).max() > 0.25  # one sample at 48 kHz, seen through the low-pass to 16 kHz


def test_a_cut_past_the_end_is_refused_not_frozen(tmp_path, picture):
    write_clip(tmp_path / "a.mp4", picture, None, fps=16, sample_rate=16000)
    with pytest.raises(ClipError, match=r"ends at 2\.000 s"):
        cut(tmp_path / "a.mp4", end_s=4.0, start_s=1.0)


def test_a_truncated_file_gives_what_is_whole(write_media):
    times = [Fraction(index, 16) for index in range(160)]
    path = write_media("a.ts", frame_times_s=times, event_s=0.5)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 50])
    duration_s = probe(str(path)).duration_s
    assert 3 < duration_s < 7
    assert cut(path, end_s=3.0).video_THWC.shape[0] == 48


def test_spoilt_bytes_cost_their_packets_only(write_media):
    times = [Fraction(index, 16) for index in range(96)]
    path = write_media("a.mkv", frame_times_s=times, event_s=3.0, gop=8)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 2, len(data) * 3 // 4, 97):
        data[place] ^= 0xFF
    path.write_bytes(data)
    assert cut(path, end_s=2.0).video_THWC.shape[0] == 32


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("missing.mp4", "No such file"),
        ("https://example.org/a.mp4", "only local files"),
        ("rtsp://example.org/a", "only local files"),
        ("concat:a.mp4|b.mp4", "No such file"),
        (".", "not a file"),
    ],
)
def test_what_is_not_a_local_file_is_one_line(uri, words):
    for read in (probe, cut):
        with pytest.raises(ClipError, match=words) as caught:
            read(uri)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello " * 400, bytes(5000)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_not_media_is_refused(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ClipError):
        probe(str(tmp_path / "a.mp4"))


def test_a_playlist_does_not_reach_other_files(tmp_path, picture):
    write_clip(tmp_path / "secret.mp4", picture, None, fps=16, sample_rate=16000)
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", "secret.mp4", "#EXT-X-ENDLIST", ""]
    (tmp_path / "list.m3u8").write_text("\n".join(lines))
    for name in ("list.ffconcat", "list.m3u8"):
        with pytest.raises(ClipError):
            probe(str(tmp_path / name))


@pytest.mark.parametrize(("start_s", "end_s"), [(1.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_an_impossible_cut_is_refused(tmp_path, picture, start_s, end_s):
    write_clip(tmp_path / "a.mp4", picture, None, fps=16, sample_rate=16000)
    with pytest.raises(ClipError, match="0 <= start < end"):
        cut(tmp_path / "a.mp4", start_s=start_s, end_s=end_s)


# Real files.

UNUSABLE = {"sample_fragmented_clearkey.mp4", "sample_malformed_free_box.mp4", "zero_length.webm"}


@pytest.mark.media
def test_every_awkward_clip_decodes_or_says_why(media_folder: Path):
    unusable = set()
    for path in sorted([*media_folder.glob("awkward/*"), *media_folder.glob("derived/*")]):
        try:
            info = probe(str(path))
            end_s = min(info.duration_s, 0.5)
            clip = cut(path, end_s=end_s)
        except ClipError:
            unusable.add(path.name)
            continue
        assert (clip.video_THWC is not None) == info.has_video, path.name
        assert (clip.audio_N is not None) == info.has_audio, path.name
        assert clip.audio_N is None or len(clip.audio_N) == round(end_s * 16000), path.name
        assert clip.audio_N is None or np.abs(clip.audio_N).max() <= 1, path.name
    assert unusable == UNUSABLE


@pytest.mark.media
def test_real_cuts_equal_the_same_cut_of_the_whole(media_folder: Path):
    for name in (
        "speech/friday.mp4",
        "speech/grid_bbaf2n.mpg",
        "general/flower.webm",
        "speech/movie-hello.mp4",
    ):
        path = media_folder / name
        end_s = 2.5 if "grid" in name else 5.0
        whole, part = cut(path, end_s=end_s), cut(path, start_s=end_s - 1, end_s=end_s)
        assert np.array_equal(part.video_THWC, whole.video_THWC[-16:]), name
        assert np.abs(part.audio_N - whole.audio_N[-16000:]).max() < 1e-3, name


@pytest.mark.media
def test_the_facts_of_real_clips(media_folder: Path):
    facts = {name: probe(str(media_folder / name)) for name in REAL_FACTS}
    assert {name: (f.width, f.height, f.has_sound) for name, f in facts.items()} == REAL_FACTS
    spliced = probe(str(media_folder / "derived/ts_discontinuity_from_friday.ts"))
    assert spliced.duration_s < 4
    assert "jump" in spliced.reason


REAL_FACTS = {
    "general/nasa_13013.mp4": (480, 270, True),  # two pictures: the larger
    "general/flower.mp4": (960, 540, False),  # a track of silence
    "awkward/decord_video_90.mov": (320, 568, False),  # a phone held upright
    "awkward/embedded_cover_h264-mjpeg.mp4": (640, 360, True),  # not the cover
    "awkward/SAR-2by3.mp4": (427, 360, True),  # pixels that are not square
    "awkward/testsrc2_odd_height_and_width_vp9.mp4": (321, 241, False),
}
