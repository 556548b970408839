"""RUN/best holds the commit of the lowest held-out error, also when Ray Train has removed it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from ray_jobs import keep_best
from ray_jobs.errors import DISK_FULL, UserError
from ray_jobs.export import export_run
from ray_jobs.keep_best import BestCommit, best_error
from ray_jobs.run_folder import BEST, SNAPSHOT

CONTENT = "weights of step {}"


def enter(run: Path, *steps: int) -> None:
    """What Ray Train leaves: the folders of these commits and no others, and its list."""
    names = [f"checkpoints/step-{step:07d}-001" for step in steps]
    for folder in run.glob("checkpoints/*"):
        if f"checkpoints/{folder.name}" not in names:
            shutil.rmtree(folder)
    for step, name in zip(steps, names, strict=True):
        (run / name).mkdir(parents=True, exist_ok=True)
        if not (run / name / "shard").exists():
            (run / name / "shard").write_text(CONTENT.format(step))
    results = [{"checkpoint_dir_name": name} for name in names]
    (run / SNAPSHOT).write_text(json.dumps({"checkpoint_results": results}))


def kept(run: Path) -> str:
    return (run / BEST / "shard").read_text()


def evaluated(best: BestCommit, step: int, error: float) -> None:
    best.see({"step": step, "loss": 9.0})
    best.see({"step": step, "eval_video": error / 2, "eval_audio": error / 2})


def test_the_best_commit_stays_when_later_ones_are_worse_and_it_was_removed(tmp_path):
    best = BestCommit(tmp_path)
    for step, error in ((10, 3.0), (20, 1.0), (30, 2.0)):
        evaluated(best, step, error)
        enter(tmp_path, *sorted({max(10, step - 10), step}))
        best.keep()
    enter(tmp_path, 30)
    assert kept(tmp_path) == CONTENT.format(20)
    assert best_error(tmp_path) == 1.0


def test_a_commit_counts_only_when_it_was_entered_and_has_an_evaluation_of_its_own_step(tmp_path):
    best = BestCommit(tmp_path)
    evaluated(best, 20, 1.0)
    enter(tmp_path, 10)
    best.keep()
    assert not (tmp_path / BEST).exists()
    enter(tmp_path, 10, 20)  # entered after its evaluation was seen
    best.keep()
    assert kept(tmp_path) == CONTENT.format(20)


def test_it_takes_no_space_of_its_own_and_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    best = BestCommit(tmp_path)
    evaluated(best, 10, 3.0)
    enter(tmp_path, 10)
    best.keep()
    assert (tmp_path / BEST / "shard").stat().st_nlink == 2

    def refused(source: str, target: str) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(keep_best.os, "link", refused)
    evaluated(best, 20, 2.0)
    enter(tmp_path, 10, 20)
    best.keep()
    assert kept(tmp_path) == CONTENT.format(20)
    assert (tmp_path / BEST / "shard").stat().st_nlink == 1


def test_a_new_start_knows_the_best_so_far_also_when_it_was_stopped_between_two_renames(tmp_path):
    first = BestCommit(tmp_path)
    evaluated(first, 10, 1.0)
    enter(tmp_path, 10)
    first.keep()
    (tmp_path / BEST).rename(tmp_path / f"{keep_best.FORMER}x")
    second = BestCommit(tmp_path)
    evaluated(second, 20, 2.0)
    enter(tmp_path, 10, 20)
    second.keep()
    assert kept(tmp_path) == CONTENT.format(10)


def test_a_best_before_that_could_not_be_removed_is_in_no_one_s_way(tmp_path, monkeypatch):
    best = BestCommit(tmp_path)
    with monkeypatch.context() as patch:
        # As on a share where somebody reads it.
        patch.setattr(keep_best.shutil, "rmtree", lambda path, ignore_errors: None)
        for step, error in ((10, 3.0), (20, 2.0), (30, 1.0)):
            evaluated(best, step, error)
            enter(tmp_path, *range(10, step + 1, 10))
            best.keep()
    assert kept(tmp_path) == CONTENT.format(30)
    assert len(list(tmp_path.glob(f"{keep_best.FORMER}*"))) == 2
    BestCommit(tmp_path)
    assert not list(tmp_path.glob(f"{keep_best.FORMER}*"))


def test_a_commit_that_ray_takes_off_its_list_meanwhile_is_left_out(tmp_path, monkeypatch):
    best = BestCommit(tmp_path)
    evaluated(best, 10, 3.0)
    enter(tmp_path, 10)
    best.keep()

    def too_late(source: str, target: str) -> None:
        enter(tmp_path, 30)  # Ray Train enters a newer one, and removes the one that is being linked
        raise FileNotFoundError(source)

    monkeypatch.setattr(keep_best, "_link", too_late)
    evaluated(best, 20, 1.0)
    enter(tmp_path, 20)
    assert best.keep()
    assert kept(tmp_path) == CONTENT.format(10)
    assert not (tmp_path / keep_best.FRESH).exists()


def test_a_full_disk_is_told_once_and_the_best_before_stays(tmp_path, monkeypatch):
    best = BestCommit(tmp_path)
    evaluated(best, 10, 3.0)
    enter(tmp_path, 10)
    assert best.keep()

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(keep_best, "_link", full)
    evaluated(best, 20, 1.0)
    enter(tmp_path, 10, 20)
    assert not best.keep()
    assert not best.keep()
    assert best.problem == DISK_FULL
    assert kept(tmp_path) == CONTENT.format(10)
    (tmp_path / keep_best.FRESH).mkdir()  # of a driver that was killed
    BestCommit(tmp_path)
    assert not (tmp_path / keep_best.FRESH).exists()


def test_exporting_a_best_commit_that_is_not_there_says_how_to_get_one(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"has no best commit; train with train\.keep_best=true"):
        export_run(tmp_path, tmp_path / "out", best=True)
