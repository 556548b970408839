"""Shots at known times are found there, each a row with its own words and actions."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_jobs.filters.shots import shots_of
from ray_jobs.index import index_sources
from tests.ray_jobs.filter_clips import melody, moving, write
from worldmodel.config import FilterConfig

FPS = 25
SHOTS = FilterConfig(shots=True)


def spans(manifest):
    return [(row["start_s"], row["end_s"]) for row in pq.read_table(manifest).to_pylist()]


def index(source, tmp_path, filters=SHOTS):
    return index_sources([str(source)], out=str(tmp_path / "m.parquet"), filters=filters)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.avi"])
def test_three_shots_are_three_rows_within_a_frame_of_where_they_change(tmp_path, name):
    video = np.concatenate([moving(1, 40), moving(2, 55), moving(3, 35)])
    write(tmp_path / name, video, melody(0, 130 / FPS), fps=FPS)
    index(tmp_path / name, tmp_path)
    found = np.array(spans(tmp_path / "m.parquet"))
    wanted = np.array([[0, 40], [40, 95], [95, 130]]) / FPS
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1 / FPS + 1e-3


def test_cuts_lie_by_stamps_where_the_rate_varies(tmp_path, write_vfr):
    """Every frame after the first second lasts twice as long: counting frames would be off by seconds."""
    video = np.concatenate([moving(4, 25), moving(4, 50)[25:], moving(5, 25)])
    times_s = [Fraction(i, 25) if i < 25 else 1 + Fraction(i - 25, 12) for i in range(75)]
    write_vfr(tmp_path / "a.mkv", video, times_s)
    index(tmp_path / "a.mkv", tmp_path)
    (_, cut_s), (again_s, _) = spans(tmp_path / "m.parquet")
    assert cut_s == again_s == pytest.approx(float(times_s[50]), abs=2e-3)


def test_a_cut_behind_the_first_piece_of_a_long_film_is_found_there(tmp_path):
    video = np.concatenate([moving(6, 410, (48, 64), speed=0.2), moving(7, 60, (48, 64), speed=0.2)])
    write(tmp_path / "a.mp4", video, None, fps=FPS)
    index(tmp_path / "a.mp4", tmp_path)
    (_, cut_s), _ = spans(tmp_path / "m.parquet")
    assert cut_s == pytest.approx(410 / FPS, abs=1 / FPS + 1e-3)


def test_a_fade_through_black_is_one_change_and_a_fast_motion_is_none(tmp_path):
    first, second = moving(8, 60).astype(np.float32), moving(9, 60).astype(np.float32)
    ramp_T = np.clip(np.linspace(1.3, -0.3, 25), 0, 1)[:, None, None, None]
    first[35:], second[:25] = first[35:] * ramp_T, second[:25] * ramp_T[::-1]
    write(tmp_path / "fade.mp4", np.concatenate([first, second]).astype(np.uint8), None, fps=FPS)
    index(tmp_path / "fade.mp4", tmp_path)
    (_, cut_s), _ = spans(tmp_path / "m.parquet")
    assert cut_s == pytest.approx(60 / FPS, abs=4 / FPS)
    write(tmp_path / "fast.mp4", moving(10, 100, speed=3.0), None, fps=FPS)
    index(tmp_path / "fast.mp4", tmp_path)
    assert len(spans(tmp_path / "m.parquet")) == 1


def test_a_shot_that_is_too_short_is_left_out_with_its_reason(tmp_path):
    video = np.concatenate([moving(1, 40), moving(2, 10), moving(3, 40)])
    write(tmp_path / "a.mp4", video, None, fps=FPS)
    result = index(tmp_path / "a.mp4", tmp_path, FilterConfig(shots=True, min_shot_s=1.0))
    assert result.kept == 2
    ((uri, reason),) = [(bad["uri"], bad["reason"]) for bad in result.quarantined]
    assert uri == str(tmp_path / "a.mp4")
    assert reason == "shot of 0.40 s at 1.60 s: shorter than min_shot_s=1"


def test_words_and_actions_go_with_their_shot(tmp_path):
    video = np.concatenate([moving(1, 50), moving(2, 50)])
    write(tmp_path / "a.mp4", video, None, fps=FPS)
    cues = [
        {"start": 0.5, "end": 1, "text": "one"},
        {"start": 1.5, "text": "two"},
        {"start": 2.5, "text": "three"},
    ]
    row = {
        "video": "a.mp4",
        "speech": cues,
        "actions": [[i] for i in range(90)],
        "start_s": 0.4,
        "caption": "c",
    }
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    index(tmp_path / "m.jsonl", tmp_path)
    first, second = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert (first["transcript"], second["transcript"]) == ("one two", "three")
    assert [cue["text"] for cue in json.loads(second["speech_json"])] == ["three"]
    told = [np.array(json.loads(shot["actions"]))[:, 0] for shot in (first, second)]
    assert told[0].tolist() == list(range(40))  # row 0 belongs to the frame at 0.4 s, the tenth
    assert told[1].tolist() == list(range(40, 90))
    assert first["caption"] == second["caption"] == "c"
    assert first["group"] == second["group"]  # never on both sides of a split


def test_a_transcript_without_times_stays_with_every_shot():
    row = {
        "uri": "a",
        "start_s": 0.0,
        "end_s": 4.0,
        "fps": 25.0,
        "speech_json": "",
        "actions": "",
        "transcript": "all of it",
    }
    kept, short = shots_of(row, [2.0, 3.9], min_shot_s=0.5)
    assert [shot["transcript"] for shot in kept] == ["all of it"] * 2
    assert len(short) == 1
    assert shots_of(row, [0.0, 4.0], min_shot_s=0.5) == ([row], [])


@pytest.fixture
def write_vfr():
    import av

    def write_frames(path, video_THWC, times_s):
        tick = Fraction(1, 1000)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width = video_THWC.shape[1:3]
            stream.pix_fmt, stream.codec_context.time_base = "yuv420p", tick
            for image, time_s in zip(video_THWC, times_s, strict=True):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = round(time_s / tick), tick
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    return write_frames
