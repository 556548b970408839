"""The frame that is shown at a time is the one that comes back, in files of every kind."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from avtok.clock import frame_grid_s
from avtok.media import ClipError
from avtok.reading import picture, showing
from avtok.reading.container import kept_open, open_media, packets
from avtok.reading.picture import read_picture
from tests.avtok.picture_files import begin_at, numbered, numbers_of, write_frames

VARIABLE = [Fraction(n, 1000) for n in np.cumsum([25, 40, 17, 33, 120, 41, 9, 250, 33, 90] * 12).tolist()]
REGULAR = [Fraction(n, 30) for n in range(120)]
B_FRAMES = {"crf": "4", "g": "30", "bf": "3", "x264-params": "b-pyramid=normal:b-adapt=0:scenecut=0"}


def expected(times_s, grid_s, tick_s=1 / 90000) -> list[int]:
    """Of a file whose first frame is its origin and whose stamps are rounded to ticks."""
    shown_s = np.array([float(time) - float(times_s[0]) for time in times_s])
    return np.maximum(np.searchsorted(shown_s, grid_s + tick_s, side="right") - 1, 0).tolist()


def shown(path, grid_s) -> list[int]:
    return numbers_of(read_picture(str(path), grid_s, (48, 48)))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
@pytest.mark.parametrize("times_s", [REGULAR, VARIABLE], ids=["regular", "variable"])
def test_each_time_has_its_frame_at_the_start_and_behind_a_seek(tmp_path, name, times_s):
    path = write_frames(tmp_path / name, times_s, numbered(len(times_s)), options=B_FRAMES)
    end_s = float(times_s[-1])
    for start_s in (0.0, 2.51, end_s - 1):
        grid_s = frame_grid_s(start_s, start_s + 1, fps=11)  # no multiple: frames are skipped unevenly
        assert shown(path, grid_s) == expected(times_s, grid_s, 1e-3 if name == "a.mkv" else 1 / 90000)


def test_frames_before_an_edit_list_are_hidden_and_only_those(tmp_path):
    path = write_frames(tmp_path / "a.mp4", REGULAR, numbered(120), tick=Fraction(1, 30000))
    begin_at(path, 40 * 1000 + 2000)  # frame 40: two frames of delay are in the media's times
    grid_s = frame_grid_s(0.0, 1.0, fps=30)
    assert shown(path, grid_s) == list(range(40, 70))
    with pytest.raises(ClipError, match="ends at"):
        read_picture(str(path), frame_grid_s(2.0, 3.5, fps=30), (32, 32))


def test_a_late_start_is_the_origin(tmp_path):
    times_s = [time + Fraction(7, 2) for time in REGULAR]
    path = write_frames(tmp_path / "a.mkv", times_s, numbered(120), tick=Fraction(1, 1000))
    grid_s = frame_grid_s(0.5, 1.5, fps=30)
    assert shown(path, grid_s) == list(range(15, 45))


def test_times_before_zero_are_not_shown_where_the_container_hides_them(tmp_path):
    times_s = [time - Fraction(1, 2) for time in REGULAR]
    path = write_frames(
        tmp_path / "a.mp4", times_s, numbered(120), container_options={"avoid_negative_ts": "disabled"}
    )
    grid_s = frame_grid_s(0.25, 1.25, fps=30)
    assert shown(path, grid_s) == [15 + index for index in expected(REGULAR, grid_s)]


def test_frames_that_nobody_sees_or_needs_are_not_decoded_and_the_rest_is_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(150)]
    times_s = [Fraction(n, 30) for n in range(150)]
    options = B_FRAMES | {"g": "150", "crf": "18"}
    path = str(write_frames(tmp_path / "a.mp4", times_s, images, options=options))
    grid_s = frame_grid_s(3.0, 4.5, fps=8)
    decoded = []
    count = picture.decode
    monkeypatch.setattr(picture, "decode", lambda *given: decoded.append(list(count(*given))) or decoded[-1])
    fewer = read_picture(path, grid_s, (48, 64))
    num_fewer = sum(len(frames) for frames in decoded)
    decoded.clear()
    monkeypatch.setattr(showing, "_SKIPPING", frozenset())
    assert np.array_equal(read_picture(path, grid_s, (48, 64)), fewer)
    assert num_fewer < 0.7 * sum(len(frames) for frames in decoded)


def test_a_file_cut_short_gives_what_is_whole(tmp_path):
    fast = {"movflags": "+faststart"}
    path = write_frames(tmp_path / "a.mp4", REGULAR, numbered(120), container_options=fast)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    grid_s = frame_grid_s(0.5, 1.5, fps=30)
    assert shown(path, grid_s) == list(range(15, 45))
    with pytest.raises(ClipError, match="ends at"):
        read_picture(str(path), frame_grid_s(2.9, 3.9, fps=30), (32, 32))


def test_a_transport_stream_with_lost_packets_and_a_spliced_clock_is_cut_in_its_first_part(tmp_path):
    first = write_frames(tmp_path / "a.ts", REGULAR, numbered(120)).read_bytes()
    later = [time + 400 for time in REGULAR]
    second = write_frames(tmp_path / "b.ts", later, numbered(120)).read_bytes()
    lost = len(first) // 188 * 9 // 10 * 188
    (tmp_path / "c.ts").write_bytes(first[:lost] + first[lost + 5 * 188 :] + second)
    grid_s = frame_grid_s(0.5, 2.5, fps=30)
    assert shown(tmp_path / "c.ts", grid_s) == list(range(15, 75))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_file_that_is_opened_once_reads_as_one_that_is_opened_anew(tmp_path, name):
    path = str(write_frames(tmp_path / name, REGULAR, numbered(120), options=B_FRAMES))
    for start_s in (0.0, 2.6):
        grid_s = frame_grid_s(start_s, start_s + 1, fps=30)
        anew = read_picture(path, grid_s, (32, 32))
        with kept_open():
            with open_media(path) as container:  # somebody read it to its end
                assert len(list(packets(container, [container.streams.video[0]], []))) > 100
            assert np.array_equal(read_picture(path, grid_s, (32, 32)), anew)
