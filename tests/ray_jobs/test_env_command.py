"""`worldmodel env`: spaces and a clip of what an agent sees, and mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
from PIL import Image

from avtok.decode import decode_clip
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.settings import world_settings


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray_jobs.cli", "env", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def expected_sound(*, seed: int, steps: int) -> np.ndarray:
    """Of the same episode, from the first frame shown to the last: four frames before the first action."""
    env = gymnasium.make("worldmodel.envs:worldmodel/pusher")
    env.action_space.seed(seed)
    told_T2 = np.concatenate(
        [np.zeros((15, 2)), *(env.action_space.sample() for _ in range(steps)), np.zeros((1, 2))]
    )
    settings = world_settings("pusher")
    episode = simulate(settings, seed=seed, duration_s=len(told_T2) / 16, actions_T2=told_T2)
    return episode.audio_N[12_000:-1000]


def correlation(one_N: np.ndarray, other_N: np.ndarray) -> float:
    return float(one_N @ other_N / (np.linalg.norm(one_N) * np.linalg.norm(other_N)))


def test_the_simulator_is_played_and_its_clip_has_picture_and_sound_in_step(tmp_path: Path):
    files = ("--out", str(tmp_path / "new" / "clip.mp4"), "--picture", str(tmp_path / "seen.png"))
    done = run("sim", "--steps", "5", "--seed", "3", *files, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["action_space"] == "Box(-0.8, 0.8, (4, 2), float32)"
    assert found["caption"] == simulate(world_settings("pusher"), seed=3, duration_s=0.1).truth.caption
    assert (found["steps"], found["state_from"], len(found["last_state"])) == (5, "simulator", 14)
    clip = decode_clip(found["out"], start_s=0, end_s=1.5, fps=16, size=(64, 64), sample_rate=16000)
    assert clip.video_THWC is not None
    assert clip.audio_N is not None
    assert (len(clip.video_THWC), len(clip.audio_N)) == (24, 24000)
    assert correlation(clip.audio_N[:23000], expected_sound(seed=3, steps=5)) > 0.9
    width, height = Image.open(tmp_path / "seen.png").size
    assert width > 4 * height / 2


def test_mistakes_are_one_line_and_exit_2():
    for arguments, said in (
        (("nosuch",), "nosuch: not an exported model"),
        (("sim", "--split", "far"), "no split is named 'far'"),
        (("sim", "--prefix", "0.3"), "prefix_s=0.3 is not of whole chunks"),
        (("sim", "--out", "clip.gif"), "clips are written as .mp4; use clip.mp4"),
        (("sim", "--picture", "seen.jpg"), "it is written as .png; use seen.png"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
