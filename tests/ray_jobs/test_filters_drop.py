"""What is static, black, silent, too small or out of step is dropped with its reason; what is not stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from avtok.media import MediaInfo
from ray_jobs.errors import UserError
from ray_jobs.filters.drift import drifts
from ray_jobs.filters.size import too_small
from ray_jobs.index import index_sources
from tests.ray_jobs.filter_clips import RATE, melody, moving, write
from worldmodel.config import FilterConfig

FPS = 25


def outcome(folder: Path, **filters):
    """Names that stay, and reasons by name of those that do not."""
    out = folder.parent / f"{folder.name}.parquet"
    result = index_sources([str(folder)], out=str(out), filters=FilterConfig(**filters))
    kept = {Path(row["uri"]).name for row in pq.read_table(out).to_pylist()}
    return kept, {Path(bad["uri"]).name: bad["reason"] for bad in result.quarantined}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    video, sound = moving(1, 50), melody(1, 2.0)
    write(folder / "lively.mp4", video, sound)
    grain = np.clip(video[:1] + random.integers(-4, 5, video.shape), 0, 255).astype(np.uint8)
    write(folder / "static.mp4", grain, melody(2, 2.0))  # one picture under the noise of a camera
    mouth = np.repeat(video[:1], 50, 0)
    mouth[::2, 60:68, 60:72] = 0  # a fortieth of the picture moves
    write(folder / "mouth.mp4", mouth, melody(3, 2.0))
    write(folder / "black.mp4", random.integers(0, 6, video.shape, dtype=np.uint8), melody(4, 2.0))
    write(folder / "night.mp4", video // 4, melody(5, 2.0))  # dark, with something to see
    write(folder / "hush.mp4", moving(2, 50), 1e-4 * random.standard_normal(2 * RATE).astype(np.float32))
    write(folder / "mute.mp4", moving(3, 50), None)
    click_N = np.zeros(2 * RATE, np.float32)
    click_N[RATE : RATE + RATE // 5] = melody(6, 0.2)
    write(folder / "click.mp4", moving(4, 50), click_N)
    write(folder / "small.mp4", moving(5, 50, (32, 128)), melody(7, 2.0))
    return folder


def test_nothing_is_dropped_unless_asked(folder):
    kept, reasons = outcome(folder)
    assert (len(kept), reasons) == (9, {})


def test_a_still_camera_with_grain_is_static_and_a_moving_mouth_is_not(folder):
    kept, reasons = outcome(folder, drop=("static",))
    assert set(reasons) == {"static.mp4", "black.mp4"}
    assert reasons["static.mp4"].startswith("static: no part of the picture changes by more than")
    assert "mouth.mp4" in kept


def test_black_is_dropped_and_a_night_scene_stays(folder):
    kept, reasons = outcome(folder, drop=("black",))
    assert reasons == {"black.mp4": "black: 100% of its pictures"}
    assert "night.mp4" in kept


def test_silence_and_no_sound_are_dropped_and_one_click_is_sound(folder):
    kept, reasons = outcome(folder, drop=("silent",))
    assert set(reasons) == {"hush.mp4", "mute.mp4"}
    assert reasons["mute.mp4"] == "silent: no sound, or none above silence"
    assert "click.mp4" in kept


def test_small_pictures_are_dropped_by_their_shorter_side(folder):
    _, reasons = outcome(folder, min_side=48)
    assert reasons == {"small.mp4": "too small: 128x32, min_side=48"}
    assert too_small({"has_video": False, "width": 0, "height": 0}, min_side=48) == ""


@pytest.mark.parametrize(("rate", "is_dropped"), [(15000, True), (16160, True), (16010, False)])
def test_a_sound_recorded_at_another_rate_drifts_by_a_known_amount(tmp_path, rate, is_dropped):
    """4 s recorded at `rate` and stamped as 16 kHz: it lasts 4 * rate / 16000 s beside 4 s of picture."""
    (tmp_path / "c").mkdir()
    sound_N = np.resize(melody(1, 4.0), round(4.0 * rate))
    write(tmp_path / "c" / "a.mkv", moving(1, 100), sound_N)
    write(tmp_path / "c" / "right.mkv", moving(2, 100), melody(2, 4.0))
    kept, reasons = outcome(tmp_path / "c", max_drift_s=0.03)
    assert "right.mkv" in kept
    assert set(reasons) == ({"a.mkv"} if is_dropped else set())
    if is_dropped:
        told_s = float(reasons["a.mkv"].split()[2])
        assert told_s == pytest.approx(abs(4.0 * (rate / RATE - 1)), abs=2e-3)
        assert "at the end" in reasons["a.mkv"]


def test_a_clock_that_runs_is_told_apart_from_a_wrong_length():
    info = MediaInfo("a", True, True, True, 9.0, 64, 64, 25.0, RATE, 0.0, "", drift_s=0.5, clock_drift_s=-0.5)
    reason = drifts(vars(info), max_drift_s=0.1)
    assert reason == "drifts by 0.500 s: the sound's stamps run -0.500 s against its samples; max_drift_s=0.1"
    assert drifts(vars(info), max_drift_s=0.6) == ""


def test_shots_are_judged_one_by_one(tmp_path):
    """A film of a lively shot with sound, a black one, and a still one without sound."""
    (tmp_path / "c").mkdir()
    video = np.concatenate(
        [moving(1, 50), np.zeros((50, 96, 128, 3), np.uint8), np.repeat(moving(2, 1), 50, 0)]
    )
    sound_N = np.concatenate([melody(1, 4.0), np.zeros(2 * RATE, np.float32)])
    write(tmp_path / "c" / "film.mp4", video, sound_N)
    out = tmp_path / "m.parquet"
    for drop, stays in [
        (("black",), [0, 4]),
        (("static",), [0]),
        (("silent",), [0, 2]),
        (("silent", "black"), [0]),
    ]:
        filters = FilterConfig(shots=True, drop=drop)
        result = index_sources([str(tmp_path / "c")], out=str(out), filters=filters)
        starts = [round(row["start_s"], 1) for row in pq.read_table(out).to_pylist()]
        assert starts == pytest.approx(stays, abs=0.05), drop
        assert all("(shot " in bad["reason"] for bad in result.quarantined)


def test_if_every_clip_is_dropped_the_index_says_so(folder, tmp_path):
    with pytest.raises(UserError, match=r"none of 1 clips(.|\n)*black"):
        index_sources(
            [str(folder / "black.mp4")],
            out=str(tmp_path / "m.parquet"),
            filters=FilterConfig(drop=("black", "static")),
        )
