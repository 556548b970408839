"""ViZDoom collected by Ray actors: in sync, repeatable, its actions in training where they belong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from avtok.decode import decode_clip
from avtok.mux import write_clip
from ray_jobs import collect as collecting
from ray_jobs.actions import resampled
from ray_jobs.collect import Collection, check_collection, collect
from ray_jobs.dataset import local_stream
from ray_jobs.errors import JobError, UserError
from ray_jobs.index import index_sources
from ray_jobs.plan import make_plan
from ray_jobs.simulators import vizdoom
from ray_jobs.train import run_training
from worldmodel.load_config import load_config

REPO = Path(__file__).parents[2]
CONFIG = REPO / "configs" / "vizdoom.yaml"
TIC_S = 1 / vizdoom.TICS_PER_S
LATENCY_TICS = 5  # from the tic in which the trigger is pulled to the shot, in picture and sound; measured
WANTED = Collection("defend_the_center", episodes=5, seconds=2.1, seed=7, out="")
needs_vizdoom = pytest.mark.skipif(not vizdoom.is_playable(), reason="vizdoom or OpenAL is not installed")


def players() -> list[psutil.Process]:
    """Actors that play, of the Ray that this process started."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::EpisodePl")
    ]


@pytest.fixture(scope="module")
def collected(ray_cluster, tmp_path_factory) -> dict[str, Path]:
    """One collection by one player, and by two that are all killed when the first episode is in."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "killed")}
    collect("vizdoom", collection_in(folders["whole"]), actors=1)
    killed: list[int] = []

    def kill_once(done: int, total: int) -> None:
        if done and not killed:
            for process in players():
                killed.append(process.pid)
                process.kill()

    collect("vizdoom", collection_in(folders["killed"]), actors=2, progress=kill_once)
    assert killed
    return folders


def collection_in(folder: Path, **changes) -> Collection:
    return Collection(**{**vars(WANTED), "out": str(folder), **changes})


@needs_vizdoom
@pytest.mark.ray
def test_killed_players_are_replaced_and_every_byte_is_the_same(collected: dict[str, Path]):
    names = {path.name for path in collected["whole"].iterdir()}
    clips = {f"clip_{index:05d}.mp4" for index in range(WANTED.episodes)}
    assert names == clips | {"manifest.jsonl", "simulator.json"}
    for name in names:
        assert (collected["whole"] / name).read_bytes() == (collected["killed"] / name).read_bytes()
    assert len({(collected["whole"] / name).read_bytes() for name in clips}) == WANTED.episodes


@needs_vizdoom
def test_a_killed_player_leaves_no_engine_no_folder_and_no_shared_memory(tmp_path: Path):
    script = (
        "import numpy as np, time\nfrom ray_jobs.simulators import vizdoom\n"
        "class Endless(np.ndarray):\n    def __iter__(self):\n        while True:\n"
        "            print('up', flush=True)\n            time.sleep(0.05)\n            yield np.zeros(3)\n"
        "vizdoom.play_episode('basic', seed=1, num_tics=9999, actions_TA=np.zeros((1, 3)).view(Endless))\n"
    )
    paths = {"PYTHONPATH": f"{REPO}:{REPO / 'tokenizers'}", "TMPDIR": str(tmp_path)}
    player = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | paths, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert player.stdout is not None
    assert player.stdout.readline() == b"up\n"
    (engine,) = [child for child in psutil.Process(player.pid).children() if child.name() == "vizdoom"]
    command = engine.cmdline()
    shared = f"ViZDoom*{command[command.index('+viz_instance_id') + 1]}"
    assert list(Path("/dev/shm").glob(shared))
    player.kill()
    player.wait()
    psutil.wait_procs([engine], timeout=20)
    assert not engine.is_running()
    for _ in range(200):  # the guard removes files after the engine's end
        left = [*Path("/dev/shm").glob(shared), *tmp_path.glob("vizdoom-*")]
        if not left:
            break
        time.sleep(0.05)
    assert left == []


@needs_vizdoom
@pytest.mark.ray
def test_an_episode_that_always_fails_ends_the_job(ray_cluster, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(collecting, "TRIES", 1)
    (tmp_path / "clip_00000.part").mkdir()  # so that the clip cannot be written
    with pytest.raises(JobError, match="episode 0 of defend_the_center failed 1 times"):
        collect("vizdoom", collection_in(tmp_path, episodes=1), actors=1)
    assert not (tmp_path / "manifest.jsonl").exists()


@needs_vizdoom
@pytest.mark.ray
def test_actions_reach_the_batch_as_means_over_the_tics_between_two_pictures(
    collected: dict[str, Path], tmp_path: Path
):
    rows = [json.loads(line) for line in (collected["whole"] / "manifest.jsonl").read_text().splitlines()]
    told = {row["video"]: np.array(row["actions"]) for row in rows}
    assert {row["scenario"] for row in rows} == {WANTED.scenario}
    assert len({row["seed"] for row in rows}) == WANTED.episodes
    index_sources([str(collected["whole"] / "manifest.jsonl")], out=str(tmp_path / "m.parquet"))
    cfg = load_config(CONFIG, [f"data.manifest={tmp_path / 'm.parquet'}", "data.held_out=0"])
    plan = make_plan(str(tmp_path / "m.parquet"), cfg)
    seen = 0
    for step in local_stream(plan, cfg, start_step=0, end_step=1):
        for batch in step:
            for place, sample_id in enumerate(batch.sample_ids_B.tolist()):
                if sample_id < 0:
                    continue
                assert batch.reasons == {}
                assert batch.actions_valid_BF[place].all()
                played_TA = told[Path(plan.sample(sample_id).uri).name]
                # 35 tics a second on 16 pictures a second: picture i is that of tic floor(35 i / 16)
                for frame in range(32):
                    first, last = 35 * frame // 16, 35 * (frame + 1) // 16
                    mean_A = played_TA[first:last].mean(0)
                    assert np.allclose(batch.actions_BFA[place, frame, :3], mean_A, atol=1e-6)
                assert not batch.actions_BFA[place, :, 3:].any()
                seen += 1
    assert seen == WANTED.episodes


@needs_vizdoom
@pytest.mark.ray
def test_the_config_trains_on_what_was_collected(collected: dict[str, Path], tmp_path: Path):
    cfg = load_config(
        CONFIG,
        [
            *(f"data.manifest={collected['whole'] / 'manifest.jsonl'}", f"storage={tmp_path}"),
            *("model.depth=2", "model.width=64", "model.head_dim=32", "data.batch_clips=2"),
            *("train.device=cpu", "train.workers=1", "train.steps=2", "train.checkpoint_every=2"),
            *("train.evaluate_every=2", "train.evaluate_clips=2", "optim.warmup_steps=1"),
        ],
    )
    trained = run_training(cfg, command="pytest")
    assert (trained.status, trained.step) == ("finished", 2)
    rows = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    losses = [row[key] for row in rows if "loss_video" in row for key in ("loss_video", "loss_audio")]
    assert len(losses) == 4
    assert np.isfinite(losses).all()


@needs_vizdoom
def test_a_shot_is_heard_in_the_frame_that_shows_it_a_fixed_time_after_the_trigger(tmp_path: Path):
    pulled = (20, 60)
    names = vizdoom.buttons_of("basic")
    actions_TA = np.zeros((90, len(names)))
    actions_TA[list(pulled), names.index("ATTACK")] = 1
    episode = vizdoom.play_episode("basic", seed=5, num_tics=90, actions_TA=actions_TA)
    rate, per_tic = vizdoom.SAMPLE_RATE, vizdoom.SAMPLE_RATE // vizdoom.TICS_PER_S
    assert len(episode.audio_N) == per_tic * len(episode.video_THWC)
    clip = tmp_path / "clip.mp4"
    write_clip(clip, episode.video_THWC, episode.audio_N, fps=vizdoom.TICS_PER_S, sample_rate=rate)
    shown = decode_clip(
        str(clip), start_s=0, end_s=90 * TIC_S, fps=vizdoom.TICS_PER_S, size=vizdoom.SIZE, sample_rate=rate
    )
    assert shown.video_THWC is not None
    assert shown.audio_N is not None
    change_T = np.abs(np.diff(shown.video_THWC.astype(float), axis=0)).mean((1, 2, 3))
    for tic in pulled:
        flash = tic + 1 + int(np.argmax(change_T[tic : tic + 8] > 2))
        heard = tic * per_tic + int(np.argmax(np.abs(shown.audio_N[tic * per_tic :]) > 0.05))
        assert flash == tic + LATENCY_TICS
        assert abs(heard / per_tic - flash) < 0.25  # of a tic of 29 ms


@needs_vizdoom
def test_the_same_seed_plays_the_same_episode_and_another_does_not():
    first, again, other = (
        vizdoom.play_episode("defend_the_center", seed=seed, num_tics=35) for seed in (3, 3, 4)
    )
    for one, two in zip(vars(first).values(), vars(again).values(), strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(first.actions_TA, other.actions_TA)
    assert not np.array_equal(first.video_THWC, other.video_THWC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "--episodes must be at least 1, got 0"),
        ({"seconds": 0.01}, "--seconds 0.01: a frame takes 1/35 s; use more seconds"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"scenario": "doom"}, "--scenario 'doom': not known; there is basic, deadly_corridor"),
    ],
)
def test_what_cannot_be_collected_is_refused_before_ray_is_needed(tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        check_collection("vizdoom", collection_in(tmp_path, **change), actors=1)


def test_a_simulator_that_is_not_there_says_what_to_install(tmp_path: Path, monkeypatch):
    with pytest.raises(UserError, match="no simulator is named 'doom'; there is vizdoom"):
        check_collection("doom", collection_in(tmp_path), actors=1)
    monkeypatch.setattr(vizdoom, "OPENAL", "libopenal.so.none")
    monkeypatch.setattr(vizdoom, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="apt install libopenal1"):
        check_collection("vizdoom", collection_in(tmp_path), actors=1)
    monkeypatch.setattr(vizdoom, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'worldmodel\[simulators\]'"):
        check_collection("vizdoom", collection_in(tmp_path), actors=1)


def test_other_clips_in_the_folder_are_refused(tmp_path: Path):
    (tmp_path / "clip_00009.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 1 other clips, such as clip_00009\.mp4; use an empty folder"):
        check_collection("vizdoom", collection_in(tmp_path), actors=1)


@pytest.mark.parametrize(
    ("clip_hz", "grid_hz", "expected"),
    [
        (16, 16, [1, 2, 3, 4, 5, 6]),
        (0, 16, [1, 2, 3, 4, 5, 6]),
        (32, 16, [1.5, 3.5, 5.5]),
        (24, 16, [1, 2.5, 4, 5.5]),
        (8, 16, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]),
        (32.0001, 32, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_actions_move_to_another_rate_as_means_and_stay_where_the_picture_stays(clip_hz, grid_hz, expected):
    actions_FA = np.arange(1.0, 7.0)[:, None]
    assert resampled(actions_FA, clip_hz=clip_hz, grid_hz=grid_hz)[:, 0].tolist() == expected


def test_a_cut_between_two_pictures_begins_with_the_one_that_is_shown():
    # 30 Hz from 0.05 s on: tic 1 is shown; the pictures of 10 Hz are those at 0.05, 0.15, 0.25 s: 1, 4, 7
    actions_FA = np.arange(6.0)[:, None]  # row 0 takes frame 1 to frame 2
    assert resampled(actions_FA, clip_hz=30, grid_hz=10, start_s=0.05)[:, 0].tolist() == [1, 4]
