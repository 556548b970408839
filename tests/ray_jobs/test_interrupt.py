"""SIGTERM to a whole command: to it and to all that it started, as `timeout`, systemd and Slurm send it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import typer

from avtok.mux import write_clip
from ray_jobs.cli import app
from ray_jobs.cli_jobs import submit
from ray_jobs.cli_output import INTERRUPTED
from ray_jobs.run_folder import last_commit
from ray_jobs.submit import SubmitResult
from tests.ray_jobs.faulty_runs import config, rows_of, until
from worldmodel.load_config import dump_config
from worldmodel.worlds.bounce import BounceSettings, simulate

ROOT = Path(__file__).parents[2]


def test_a_job_that_is_followed_no_more_is_not_taken_for_done(monkeypatch):
    def goes_on(kind, arguments, **settings):
        return SubmitResult("job", "RUNNING")

    monkeypatch.setattr("ray_jobs.submit.submit", goes_on)
    monkeypatch.setattr("ray_jobs.cli_jobs.answer", lambda *found: None)
    context = typer.Context(typer.main.get_command(app))
    with pytest.raises(typer.Exit) as ended:
        submit(context, "train", "http://127.0.0.1:8265")
    assert ended.value.exit_code == INTERRUPTED
    submit(context, "train", "http://127.0.0.1:8265", wait=False)


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_training_commits_first_and_leaves_none(tmp_path):
    clips, path = tmp_path / "clips", tmp_path / "run.yaml"
    clips.mkdir()
    for seed in range(6):
        episode = simulate(BounceSettings(), seed=seed, duration_s=1.0)
        write_clip(clips / f"{seed}.mp4", episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
    forever = {"steps": 100000, "checkpoint_every": 100000, "keep_best": False}
    cfg = config(tmp_path, "run", clips, train=forever)
    path.write_text(dump_config(cfg), "utf-8")
    paths = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "tokenizers"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", "train", str(path)],
        env={**environment, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: process.poll() is not None or bool(rows_of(tmp_path / "run")), "the first steps")
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "stopped and committed; resume with the same command" in said
    assert last_commit(tmp_path / "run") is not None
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left
