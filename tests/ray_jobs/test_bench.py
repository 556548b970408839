"""The frame around benchmarks: what is asked for, measured and filed; memory; and the judge of `resume`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.makers.killing import Trace, committed_history, faults
from ray_jobs.accounting import Ledger
from ray_jobs.bench import known_benchmarks, run_benchmark, run_ranks
from ray_jobs.errors import JobError, UserError
from ray_jobs.memory import SessionMemory, session_pids
from ray_jobs.plan import PADDING, Plan
from tests.ray_jobs.tiny_plans import tiny_plan

MEASURES = """
from ray_jobs.bench import Measured

def run(smoke):
    repeats = [1.0] if smoke else [1.0, 2.0, 3.0]
    figures, baseline = {"median_s": 2.0}, {"before_s": 4.0}
    return Measured(figures, repeats, len(repeats), baseline=baseline, config="a: 1", log="said")
"""
MB = 1 << 20


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").write_text(MEASURES)
    return tmp_path


def test_a_result_says_what_was_measured_on_what_and_is_filed(checkout: Path) -> None:
    result = run_benchmark("speed", smoke=False, root=checkout)
    assert result["figures"] == {"median_s": 2.0}
    assert (result["raw"], result["n"], result["baseline"]) == ([1.0, 2.0, 3.0], 3, {"before_s": 4.0})
    assert result["command"] == "worldmodel bench speed --json"
    assert result["machine"]["cores"] >= 1
    assert "torch" in result["versions"]
    (folder,) = (checkout / "benchmarks" / "results").iterdir()
    assert folder.name == f"{result['date'][:10]}_speed"
    assert json.loads((folder / "result.json").read_text()) == result
    assert {file.name for file in folder.iterdir()} == {"result.json", "config.yaml", "log.txt"}


def test_a_smoke_run_is_not_filed(checkout: Path) -> None:
    result = run_benchmark("speed", smoke=True, root=checkout)
    assert (result["smoke"], result["raw"]) == (True, [1.0])
    assert not (checkout / "benchmarks" / "results").exists()


def test_an_unknown_name_is_answered_with_the_known_ones(checkout: Path) -> None:
    with pytest.raises(UserError, match=r"'sped'; there is speed"):
        run_benchmark("sped", smoke=True, root=checkout)


def test_outside_a_checkout_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="clone the repository"):
        run_benchmark("demo", smoke=True, root=tmp_path)


def test_the_promised_benchmarks_are_there() -> None:
    promised = {"demo", "zero3_parity", "resume", "render", "codecs", "learn", "stack", "shipped"}
    promised |= {"speech", "prompt_following", "actions", "env", "serve", "same_seed"}
    promised |= {"decode", "stream", "plan", "sync", "fuzz", "kill_data", "memory"}
    promised |= {"mfu", "objective_cost", "zero3_memory", "dry_run", "checkpoint", "objectives"}
    assert promised <= set(known_benchmarks())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("learn", {"position_error_025s_over_frozen", "onset_f1_gain_ci_low", "cpu_minutes", "variants"}),
        ("shipped", {"model", "hash", "training_hours", "nvpt", "sound_lag_ms", "permanence", "episodes"}),
        ("speech", {"prompts", "wer", "wer_minus_codec", "shuffled_minus_wer", "lip_offset_ms"}),
        ("prompt_following", {"factors", "accuracy", "chance"}),
        ("env", {"sim_fps_per_core", "vector_overhead"}),
        ("actions", {"episodes", "nafe", "r2", "shuffle_ratio", "lag_frames"}),
    ],
)
def test_a_smoke_run_measures_what_is_promised(name: str, promised: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", "bench", name, "--smoke", "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert promised <= json.loads(done.stdout)["figures"].keys()


def test_a_failed_rank_ends_the_others(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, time\nif os.environ['RANK'] == '1': raise SystemExit('broke')\ntime.sleep(60)"
    )
    began = time.monotonic()
    with pytest.raises(JobError, match="broke"):
        run_ranks(script, 2, [], log=tmp_path / "log.txt")
    assert time.monotonic() - began < 30


def test_memory_counts_orphans_in_other_groups_and_shared_pages_once() -> None:
    # the leader's child leaves its group, forks and ends; 64 MB are shared with the orphan, 32 MB are its own
    program = f"""
import mmap, os, time
shared = mmap.mmap(-1, {64 * MB})
shared.write(b"x" * {64 * MB})
if os.fork() == 0:
    os.setpgid(0, 0)
    [shared[i] for i in range(0, {64 * MB}, 4096)]
    if os.fork() == 0:
        own = b"y" * {32 * MB}
        [shared[i] for i in range(0, {64 * MB}, 4096)]
        print("ready", flush=True)
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(60)
"""
    leader = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "ready\n"
        with SessionMemory(leader.pid, every_s=0.05) as memory:
            time.sleep(0.2)
        pids = session_pids(leader.pid)
    finally:
        for pid in session_pids(leader.pid):
            subprocess.run(["kill", "-9", str(pid)], check=False)
        leader.wait()
    assert len(pids) == 2
    assert 96 * MB < memory.peak_bytes < 140 * MB
    assert len(memory.samples) > 1


def test_a_session_s_processes_are_also_children_with_sessions_of_their_own() -> None:
    program = """
import subprocess
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
    leader = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        assert sorted(session_pids(leader.pid)) == sorted([leader.pid, child])
    finally:
        os.kill(child, signal.SIGKILL)
        leader.wait()


@pytest.fixture
def plan() -> Plan:
    return tiny_plan([24], batch_clips=4, held_out=0)


class Job:
    """Two ranks, a micro-batch each a step, that commit every step; what a benchmark's workers note."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.traces = plan, []

    def group(self, attempt: int, restored: str, steps: list[int], *, commits: list[int]) -> None:
        for rank in range(2):
            events = []
            for step in steps:
                epoch, _, ids = self.plan.batch_at(2 * step + rank)
                events.append({"epoch": epoch, "ids": ids.tolist()})
                if step in commits:
                    events.append({"commit": name(step + 1, attempt)})
            self.traces.append(Trace(rank, attempt, restored, float(attempt), events))

    def faults(self, last: str, position: int) -> dict[str, int]:
        ledger = Ledger(self.plan.hash, position)
        for index in range(position):
            epoch, _, ids = self.plan.batch_at(index)
            ledger.add(epoch, [i for i in ids if i != PADDING], {})
        return faults(committed_history(self.traces, last, workers=2), self.plan, ledger)


def name(step: int, attempt: int) -> str:
    return f"step-{step:07d}-{attempt:03d}"


def test_what_was_rolled_back_is_neither_lost_nor_doubled(plan: Plan) -> None:
    job = Job(plan)
    job.group(1, "", [0, 1, 2], commits=[0, 1])  # step 2 was trained and rolled back
    job.group(2, name(2, 1), [2, 3], commits=[3])
    found = job.faults(name(4, 2), 8)
    assert (found["lost"], found["doubled"], found["stray"]) == (0, 0, 0)
    assert found["planned"] > plan.num_train  # into the second epoch


def test_a_step_that_is_trained_again_after_its_commit_is_doubled(plan: Plan) -> None:
    job = Job(plan)
    job.group(1, "", [0, 1], commits=[1])
    job.group(2, name(2, 1), [1, 2], commits=[2])
    assert job.faults(name(3, 2), 6)["doubled"] == 8


def test_a_step_that_is_skipped_is_lost(plan: Plan) -> None:
    job = Job(plan)
    job.group(1, "", [0], commits=[0])
    job.group(2, name(1, 1), [2], commits=[2])
    assert job.faults(name(3, 2), 6)["lost"] == 8


def test_a_rank_without_a_note_is_an_error(plan: Plan) -> None:
    job = Job(plan)
    job.group(1, "", [0], commits=[0])
    job.traces.pop()
    with pytest.raises(JobError, match="not by all 2"):
        job.faults(name(1, 1), 2)
