"""What a run's folder holds after crashes, and that one job at a time writes there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.accounting import Ledger
from ray_jobs.errors import UserError
from ray_jobs.model_card import objective_words
from ray_jobs.run_folder import SNAPSHOT, last_commit, sweep
from ray_jobs.run_lock import LOCK, only_job
from ray_jobs.train_worker import layout_of
from tests.worldmodel.synthetic import tiny_config
from worldmodel.train.checkpoint import shard_name, write_checkpoint
from worldmodel.train.engine import PlainEngine

KEEP = 2


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four whole commits, 10 to 40, and a folder that a crash cut short."""
    cfg = tiny_config()
    engine = PlainEngine(cfg, layout_of(cfg))
    for step in (10, 20, 30, 40):
        folder = commit(tmp_path, step)
        folder.mkdir(parents=True)
        write_checkpoint(folder, engine, step, {})
        Ledger("of a plan").to_files(folder, rank=0)
    commit(tmp_path, 50).mkdir()
    (commit(tmp_path, 50) / shard_name(0, 1)).write_bytes(b"half")
    return tmp_path


def commit(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:07d}-001"


def enter(run: Path, *steps: int) -> None:
    """Ray Train's list."""
    results = [{"checkpoint_dir_name": str(commit(run, step).relative_to(run))} for step in steps]
    listed = {"checkpoint_results": results, "latest_checkpoint_result": results[-1] if results else None}
    (run / SNAPSHOT).write_text(json.dumps(listed))


def steps_of(run: Path) -> list[int]:
    return sorted(int(folder.name.split("-")[1]) for folder in (run / "checkpoints").iterdir())


def test_what_ray_has_not_entered_is_removed_whole_or_not(run):
    enter(run, 20, 30)
    sweep(run, keep=KEEP)
    assert steps_of(run) == [20, 30]
    assert last_commit(run) == commit(run, 30)
    assert (run / SNAPSHOT).exists()


def test_commits_from_before_a_list_was_begun_anew_are_kept_as_far_as_they_may_be(run):
    enter(run, 30)
    sweep(run, keep=KEEP)
    assert steps_of(run) == [20, 30]


@pytest.mark.parametrize("damage", ["missing", "cut short", "empty"])
def test_without_a_list_the_newest_whole_folders_are_kept(run, damage):
    enter(run)
    if damage == "cut short":
        (run / SNAPSHOT).write_text('{"checkpoint_results": [')
    elif damage == "missing":
        (run / SNAPSHOT).unlink()
    sweep(run, keep=KEEP)
    assert steps_of(run) == [30, 40]
    assert last_commit(run) == commit(run, 40)


def test_a_run_goes_on_from_the_commit_before_one_that_was_removed_by_hand(run):
    enter(run, 30, 40)
    for file in commit(run, 40).iterdir():
        file.unlink()
    commit(run, 40).rmdir()
    assert last_commit(run) == commit(run, 30)
    sweep(run, keep=KEEP)
    assert last_commit(run) == commit(run, 30)
    assert not (run / SNAPSHOT).exists()  # Ray Train would not start with a list of what is gone


def test_a_second_job_of_a_run_is_refused_until_the_first_one_ends_or_dies(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from ray_jobs.run_lock import only_job\n"
        "with only_job(Path(sys.argv[1])): print('holds', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        said = (
            rf"process {process.pid} on \S+ is training this run; wait for its end, stop it, or use another"
        )
        with pytest.raises(UserError, match=said), only_job(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    for _ in range(2):
        with only_job(tmp_path):
            assert (tmp_path / LOCK).exists()


def test_the_model_card_names_the_objective_and_not_a_relative():
    named = {
        "Self-Flow (EMA teacher)": {},
        "SRA (EMA teacher, t less an offset)": {"dual": False, "teacher_t": "offset"},
        "Self-Flow (EMA teacher), features of another clip (control)": {"teacher_shuffled": True},
        "Self-Flow (EMA teacher), attention apart": {"attention_separation": True},
        "flow matching, two noise levels": {"rep": "none"},
        "flow matching": {"rep": "none", "dual": False},
        "EMA teacher, one noise level": {"dual": False},
        "LayerSync": {"rep": "layersync", "dual": False},
    }
    for words, objective in named.items():
        assert objective_words(tiny_config(objective=objective).objective) == words
