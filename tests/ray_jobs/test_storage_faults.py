"""Storage that is full or fails ends a job in words, and what was committed stays."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from avtok.mux import write_clip
from ray_jobs.accounting import Ledger
from ray_jobs.cluster import connect
from ray_jobs.errors import JobError
from ray_jobs.plan import Plan
from ray_jobs.run_folder import SNAPSHOT, RunFolder, last_commit
from ray_jobs.train import run_training
from tests.ray_jobs.faulty_runs import assert_books_close, config, steps_of
from worldmodel.train.checkpoint import CheckpointReader
from worldmodel.worlds.bounce import BounceSettings, simulate

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    connect(num_cpus=8)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(8):
        episode = simulate(BounceSettings(), seed=seed, duration_s=1.0)
        path = folder / f"clip_{seed}.mp4"
        write_clip(path, episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with space for one commit and a half."""
    yield from mounted(tmp_path / "disk", "9m")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "256m")


def mounted(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


# TensorBoard's writer is a thread, and it meets the full disk too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_ends_the_job_in_words_keeps_the_commits_and_the_same_command_finishes_later(
    cluster, clips, small_disk
):
    cfg = config(
        small_disk,
        "full",
        clips,
        train={"steps": 12, "checkpoint_every": 4, "evaluate_clips": 0, "keep_best": False},
    )
    with pytest.raises(
        JobError, match=r"full: the disk is full; make space and start the same command"
    ) as error:
        run_training(cfg, command="pytest")
    assert error.value.exit_code == 1
    run = small_disk / "full"
    commit = last_commit(run)
    assert commit is not None
    assert commit.name in error.value.lines[1]
    assert commit.name.startswith("step-0000004-")
    assert CheckpointReader(commit).ema_weights()
    Ledger.from_files(commit).check(Plan.load(RunFolder(cfg).plan))

    (run / SNAPSHOT).write_text("")  # Ray writes its list in place: this is what a full disk may leave of it
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    trained = run_training(cfg, command="pytest")
    assert (trained.status, trained.step) == ("finished", 12)
    assert sorted(steps_of(run).values())[-1] == list(range(4, 12))
    assert_books_close(cfg, step=12)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_storage_that_fails_while_a_commit_is_written_ends_the_job_in_words_and_keeps_the_commits(
    cluster, clips, disk
):
    cfg = config(
        disk,
        "failing",
        clips,
        train={"steps": 400, "checkpoint_every": 4, "evaluate_clips": 0, "keep_best": False},
    )
    run = disk / "failing"

    def fail_once(stage: str, info: dict[str, Any]) -> None:
        if stage == "train" and not failed and last_commit(run):
            failed.append(True)
            # Files that are open for writing would keep it writable: what fails is the next one.
            mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(run / "checkpoints")]
            subprocess.run(mount, check=True)

    failed: list[bool] = []
    with pytest.raises(
        JobError, match=r"failing: the storage failed \(Read-only file system\); mend it and start"
    ):
        run_training(cfg, command="pytest", progress=fail_once)
    subprocess.run(["umount", str(run / "checkpoints")], check=True)
    commit = last_commit(run)
    assert commit is not None
    assert CheckpointReader(commit).ema_weights()
    Ledger.from_files(commit).check(Plan.load(RunFolder(cfg).plan))
