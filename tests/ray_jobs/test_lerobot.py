"""Clips with actions as a LeRobot data set: what its files hold, and what LeRobot's reader makes of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from avtok.decode import decode_clip, probe
from avtok.evaluate import psnr_db
from avtok.mux import write_clip
from ray_jobs import lerobot_writer
from ray_jobs.errors import UserError
from ray_jobs.lerobot_export import export_episodes
from ray_jobs.lerobot_files import Limits
from ray_jobs.lerobot_writer import PICTURE
from ray_jobs.render import _row, render_clip
from worldmodel.worlds.truth import Truth, write_truth

FPS, RATE, SAMPLES = 16, 16000, 1000
LENGTHS_S = (2.0, 5.0, 1.0, 2.0)  # the second takes more than one piece
FRAMES = [round(FPS * length_s) for length_s in LENGTHS_S]
BEGINS = np.cumsum([0, *FRAMES])


@pytest.fixture(scope="module")
def pusher(tmp_path_factory) -> tuple[Path, list[Truth]]:
    """What `worldmodel render pusher` writes, with clips of several lengths."""
    folder = tmp_path_factory.mktemp("pusher")
    truths = [
        render_clip("pusher", index, out=str(folder), seed=3, duration_s=length_s)
        for index, length_s in enumerate(LENGTHS_S)
    ]
    write_truth(folder / "truth.parquet", truths)
    lines = [json.dumps(_row(truth)) for truth in truths]
    (folder / "manifest.jsonl").write_text("\n".join(lines), "utf-8")
    return folder, truths


@pytest.fixture(scope="module")
def exported(pusher, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lerobot") / "set"
    told: list[tuple[str, int, int]] = []
    result = export_episodes(str(pusher[0]), out, progress=lambda *said: told.append(said))
    assert (result["episodes"], result["frames"], result["left_out"]) == (4, sum(FRAMES), [])
    assert told[-1] == ("writing episodes", 4, 4)
    return out


def whole(uri: Path, frames: int, fps: int = FPS):
    return decode_clip(str(uri), start_s=0, end_s=frames / fps, fps=fps, size=(64, 64), sample_rate=RATE)


def data_of(out: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(sorted((out / "data").glob("*/*.parquet")))
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_rows_hold_actions_state_and_sound_of_each_frame(pusher, exported: Path):
    folder, truths = pusher
    data = data_of(exported)
    assert np.array_equal(data["index"], np.arange(sum(FRAMES)))
    assert np.array_equal(data["frame_index"], np.concatenate([np.arange(count) for count in FRAMES]))
    assert np.allclose(data["timestamp"], data["frame_index"] / FPS)
    for index, truth in enumerate(truths):
        rows = slice(BEGINS[index], BEGINS[index + 1])
        assert truth.actions_T2 is not None
        assert truth.pusher_T2 is not None
        assert set(data["episode_index"][rows]) == {index}
        assert np.allclose(data["action"][rows], truth.actions_T2, atol=1e-6)
        assert np.allclose(data["observation.state"][rows], truth.pusher_T2, atol=1e-6)
        heard_N = whole(folder / truth.clip, FRAMES[index]).audio_N
        assert np.array_equal(data["observation.audio"][rows].ravel().astype(np.float32), heard_N)


def test_the_pusher_of_a_frame_is_moved_by_its_action_to_where_the_next_frame_has_it(exported: Path):
    data = data_of(exported)
    rows = slice(BEGINS[1], BEGINS[2])
    moved_T2 = np.diff(data["observation.state"][rows], axis=0) * FPS
    told_T2 = data["action"][rows]
    own, late = (float(np.abs(moved_T2[1:] - told).mean()) for told in (told_T2[1:-1], told_T2[:-2]))
    assert own < 0.5 * late


def test_one_file_shows_and_sounds_the_episodes_in_turn(pusher, exported: Path):
    folder, truths = pusher
    episodes = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    file = exported / f"videos/{PICTURE}/chunk-000/file-000.mp4"
    found = probe(str(file))
    assert found.fps == pytest.approx(FPS)
    assert found.duration_s == pytest.approx(sum(FRAMES) / FPS, abs=0.5 / FPS)
    for index, (row, truth) in enumerate(zip(episodes, truths, strict=True)):
        assert row["tasks"] == [truth.caption]
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (BEGINS[index], BEGINS[index + 1])
        start_s, end_s = row[f"videos/{PICTURE}/from_timestamp"], row[f"videos/{PICTURE}/to_timestamp"]
        assert (start_s, end_s) == (BEGINS[index] / FPS, BEGINS[index + 1] / FPS)
        shown = decode_clip(str(file), start_s=start_s, end_s=end_s, fps=FPS, size=(64, 64), sample_rate=RATE)
        given = whole(folder / truth.clip, FRAMES[index])
        assert shown.video_THWC is not None
        assert psnr_db(given.video_THWC, shown.video_THWC) > 32
        assert psnr_db(given.video_THWC[1:], shown.video_THWC[:-1]) < 30  # a frame late would be seen
        assert np.corrcoef(given.audio_N, shown.audio_N)[0, 1] > 0.9


def test_statistics_are_those_of_all_rows(exported: Path):
    stats, data = json.loads((exported / "meta/stats.json").read_text()), data_of(exported)
    for name in ("action", "observation.state", "observation.audio"):
        assert np.allclose(stats[name]["mean"], data[name].mean(0), atol=1e-6)
        assert np.allclose(stats[name]["std"], data[name].std(0), atol=1e-5)
        assert np.allclose(stats[name]["min"], data[name].min(0), atol=1e-6)
        assert stats[name]["count"] == [sum(FRAMES)]
    assert np.shape(stats[PICTURE]["mean"]) == (3, 1, 1)
    assert 0 < stats[PICTURE]["mean"][0][0][0] < 1
    q50, least, most = (np.array(stats["action"][name]) for name in ("q50", "min", "max"))
    assert (least < q50).all()
    assert (q50 < most).all()


def test_files_are_split_where_they_are_full_and_an_episode_lies_in_one(pusher, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "LONGEST_VIDEO_S", 7)
    monkeypatch.setattr(lerobot_writer, "MIB", 1 << 19)  # two seconds are 129 kB of Parquet, all ten 644 kB
    export_episodes(str(pusher[0]), tmp_path / "set", limits=Limits(data_mib=1, files=1))
    rows = pq.read_table(tmp_path / "set/meta/episodes").to_pylist()
    assert [row[f"videos/{PICTURE}/chunk_index"] for row in rows] == [0, 0, 1, 1]
    assert [row[f"videos/{PICTURE}/from_timestamp"] for row in rows] == [0, 2, 0, 1]
    assert [row["data/chunk_index"] for row in rows] == [0, 0, 0, 1]
    assert {row["data/file_index"] for row in rows} == {0}
    assert np.array_equal(data_of(tmp_path / "set")["index"], np.arange(sum(FRAMES)))


def test_a_video_file_that_is_full_is_followed_by_the_next(pusher, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "MIB", 1 << 14)
    export_episodes(str(pusher[0]), tmp_path / "set", limits=Limits(data_mib=99999, video_mib=1))
    rows = pq.read_table(tmp_path / "set/meta/episodes").to_pylist()
    files = [row[f"videos/{PICTURE}/file_index"] for row in rows]
    assert files[2] > files[1]  # the second episode alone is more than 16 kB
    assert rows[2][f"videos/{PICTURE}/from_timestamp"] == 0
    assert len(list((tmp_path / "set/videos").rglob("*.mp4"))) == files[-1] + 1


def test_on_a_grid_of_half_the_rate_an_action_is_the_mean_of_two(pusher, tmp_path: Path):
    folder, truths = pusher
    export_episodes(str(folder), tmp_path / "set", fps=8)
    data = data_of(tmp_path / "set")
    assert truths[0].actions_T2 is not None
    assert np.allclose(data["action"][:16], truths[0].actions_T2.reshape(16, 2, 2).mean(1), atol=1e-6)
    assert np.allclose(data["observation.state"][:16], truths[0].pusher_T2[::2], atol=1e-6)
    assert data["observation.audio"].shape[1] == 2000


def broken_source(folder: Path, pusher: Path) -> Path:
    lines = (pusher / "manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"video": str(pusher / json.loads(line)["video"])} for line in lines[:3]]
    bad = folder / "broken.mp4"
    bad.write_bytes(b"this is no film" * 99)
    rows[1]["video"] = str(bad)
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder / "clips.jsonl"


def test_a_clip_that_does_not_decode_is_left_out_with_a_reason(pusher, tmp_path: Path):
    result = export_episodes(str(broken_source(tmp_path, pusher[0])), tmp_path / "set")
    assert result["episodes"] == 2
    assert [Path(row["uri"]).name for row in result["left_out"]] == ["broken.mp4"]
    assert result["left_out"][0]["reason"]


def test_clips_without_sound_make_a_set_without_it(pusher, tmp_path: Path):
    video_THWC = whole(pusher[0] / "clip_00000.mp4", 32).video_THWC
    write_clip(tmp_path / "mute.mp4", video_THWC, None, fps=16, sample_rate=RATE)
    row = {"video": "mute.mp4", "actions": [[0.5]] * 20}  # fewer actions than frames
    (tmp_path / "clips.jsonl").write_text(json.dumps(row), "utf-8")
    result = export_episodes(str(tmp_path / "clips.jsonl"), tmp_path / "set")
    assert (result["frames"], result["sample_rate"]) == (20, 0)
    features = json.loads((tmp_path / "set/meta/info.json").read_text())["features"]
    assert "observation.audio" not in features
    assert features["action"]["shape"] == [1]
    assert pq.read_schema(tmp_path / "set/data/chunk-000/file-000.parquet").field("action").type == "float"


def manifest(folder: Path, rows: list[dict]) -> str:
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(folder / "clips.jsonl")


def told(width: int = 2, **row) -> dict:
    return {"actions": [[0.0] * width] * 20} | row


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"video": "16.mp4"}],
            "no clip has actions; fill its column `actions` with a row of numbers per frame",
        ),
        ([told(video="16.mp4"), {"video": "10.mp4"}], r"1 of 2 clips, such as 10\.mp4, have no actions"),
        (
            [told(video="16.mp4"), told(video="10.mp4")],
            r"differ in frames/s: 16\.0 in 1 clips \(16\.mp4\), 10\.0 in 1 clips \(10\.mp4\); give --fps",
        ),
        ([told(video="16.mp4"), told(video="small.mp4")], r"\(64, 64\) in 1 clips .* \(32, 64\) in 1 clips"),
        ([told(video="16.mp4"), told(1, video="10.mp4")], r"actions are \[1, 2\] wide"),
        ([told(video="none.mp4")], "none of its 1 clips can be used: .*none.mp4: No such file"),
    ],
)
def test_clips_that_cannot_make_one_set_are_refused_in_one_line(rows, message: str, tmp_path: Path):
    picture_THWC = np.zeros((20, 64, 64, 3), np.uint8)
    for name, fps, height in (("16", 16, 64), ("10", 10, 64), ("small", 16, 32)):
        write_clip(tmp_path / f"{name}.mp4", picture_THWC[:, :height], fps=fps, sample_rate=RATE)
    with pytest.raises(UserError, match=message) as raised:
        export_episodes(manifest(tmp_path, rows), tmp_path / "out")
    assert len(raised.value.lines) == 1
    assert not list(tmp_path.glob("out*"))


def test_folders_without_a_manifest_and_an_out_that_holds_something_are_refused(pusher, tmp_path: Path):
    with pytest.raises(UserError, match="is empty; give a folder that"):
        export_episodes(str(tmp_path), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"has no manifest\.jsonl, so no actions; give a folder that"):
        export_episodes(str(tmp_path), tmp_path / "out")
    with pytest.raises(UserError, match="holds something already; name a new or an empty folder"):
        export_episodes(str(pusher[0]), tmp_path)


READ = """
import json, sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
dataset = LeRobotDataset("local/pusher", root=sys.argv[1], video_backend="pyav")
items = [dataset[int(index)] for index in sys.argv[3:]]
vectors = ("observation.images.main", "observation.audio", "action", "observation.state")
np.savez(
    sys.argv[2],
    about=json.dumps({
        "len": len(dataset), "fps": dataset.fps, "episodes": dataset.num_episodes,
        "tasks": [item["task"] for item in items], "in": [int(item["episode_index"]) for item in items],
        "bounds": [[e["dataset_from_index"], e["dataset_to_index"]] for e in dataset.meta.episodes],
        "spread": dataset.meta.stats["action"]["std"].tolist(),
    }),
    **{name: np.stack([item[name].numpy() for item in items]) for name in vectors},
)
"""


@pytest.fixture(scope="module")
def reader() -> str:
    python = os.environ.get("WORLDMODEL_LEROBOT_PYTHON")
    if not python:
        pytest.skip("no LeRobot: set WORLDMODEL_LEROBOT_PYTHON to what .ci/lerobot_env.sh prints")
    return python


def test_lerobots_own_reader_gives_back_pictures_sound_actions_tasks_and_bounds(
    reader: str, pusher, exported: Path, tmp_path: Path
):
    folder, truths = pusher
    # the first and the last frame of each episode, and one in a second piece
    indices = sorted({*BEGINS[:-1].tolist(), *(BEGINS[1:] - 1).tolist(), int(BEGINS[1]) + 70})
    asked = [str(index) for index in indices]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run(
        [reader, "-c", READ, str(exported), str(tmp_path / "read.npz"), *asked], check=True, env=offline
    )
    read = np.load(tmp_path / "read.npz")
    about = json.loads(str(read["about"]))
    assert (about["len"], about["fps"], about["episodes"]) == (sum(FRAMES), FPS, len(FRAMES))
    assert about["bounds"] == [[BEGINS[i], BEGINS[i + 1]] for i in range(len(FRAMES))]
    clips = [whole(folder / truth.clip, count) for truth, count in zip(truths, FRAMES, strict=True)]
    for place, index in enumerate(indices):
        episode = int(np.searchsorted(BEGINS, index, side="right")) - 1
        frame, truth, clip = index - BEGINS[episode], truths[episode], clips[episode]
        assert about["in"][place] == episode
        assert about["tasks"][place] == truth.caption
        shown_HWC = read["observation.images.main"][place].transpose(1, 2, 0) * 255
        assert psnr_db(clip.video_THWC[frame], shown_HWC) > 30
        heard_N = clip.audio_N[frame * SAMPLES : (frame + 1) * SAMPLES]
        assert np.array_equal(read["observation.audio"][place], heard_N)
        assert np.allclose(read["action"][place], truth.actions_T2[frame], atol=1e-6)
        assert np.allclose(read["observation.state"][place], truth.pusher_T2[frame], atol=1e-6)
