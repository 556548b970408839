"""Training jobs of which processes are killed, and a judge of what of their plan was lost or doubled.

Committed history is what led to the last commit: each worker group's samples from the commit that it began
with to the commit that the next one began with. What a group trained after that was rolled back with its
weights. Workers note every trained micro-batch as it happens, in files of their own: the ledger, which
refuses doubles, is not its own witness.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.accounting import Ledger
from ray_jobs.bench import last_lines
from ray_jobs.errors import JobError
from ray_jobs.memory import session_pids
from ray_jobs.plan import Plan
from ray_jobs.run_folder import last_commit
from worldmodel.config import RunConfig
from worldmodel.load_config import load_config

# Who can be killed, by how its process is named.
TITLES = {
    "trainer": "ray::RayTrainWorker",
    "tokenizer": "ray::MapWorker",  # decodes and encodes; its decoder is a process of its own
    "coordinator": "ray::TrainController",
    "decoder": "avtok.sandbox",
}
LONGEST_DELAY_S = 0.5  # after the chosen step was trained: inside the next step or its commit
# Reading a small plan is over before it is trained: these are killed this long at most after they are there.
READERS, LONGEST_READING_S = ("decoder", "tokenizer"), 1.5
LIMIT_S = 600.0
POLL_S = 0.01
MAX_STARTS = 5  # of one job by its driver, which gives the same command again when the job breaks


def config_of(folder: Path, name: str) -> RunConfig:
    """folder/settings.yaml, and what folder/settings-NAME.json sets over it where there is one."""
    own = folder / f"settings-{name}.json"
    more = json.loads(own.read_text()) if own.exists() else []
    return load_config(folder / "settings.yaml", [f"name={name}", *more])


class Drivers:
    """The process that runs every job in turn; started again, with the same command, after it was killed."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names, self.starts, self.sessions = folder, list(names), 0, list[int]()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}  # a cluster of its own
        command = [sys.executable, __file__, str(self.folder), *self.names]
        with (self.folder / "log.txt").open("a") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment | {"OMP_NUM_THREADS": "1"},
            )
        self.sessions.append(process.pid)
        return process

    def kill(self, victim: str, moments: random.Random) -> bool:
        """False when there was nobody to kill."""
        if victim == "driver":
            return self._kill_driver()
        pids = self.present(victim)
        if not pids:
            return False
        try:
            os.kill(moments.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def present(self, victim: str) -> list[int]:
        return sorted(pid for pid in session_pids(self.process.pid) if TITLES[victim] in _title(pid))

    def _kill_driver(self) -> bool:
        self.process.kill()
        self.process.wait()
        self.process = self._start()  # at once: what the first one left behind may still be there
        return True

    def check(self) -> None:
        if self.process.poll() not in (None, 0):
            raise JobError(
                f"the driver ended with {self.process.returncode}", *last_lines(self.folder / "log.txt")
            )

    def end(self) -> None:
        """Kills what is left of the sessions that were started here."""
        for session in self.sessions:
            for pid in session_pids(session):
                with suppress(ProcessLookupError):  # a decoder goes with its parent
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


def run_and_kill(
    folder: Path, name: str, planned: tuple[str, ...], moments: random.Random, drivers: Drivers
) -> dict[str, Any]:
    """Runs one job, kills each victim at a random moment, and judges.

    Readers die while they read, all others in the step, or the commit after it, that they are due in.
    """
    began = time.monotonic()
    cfg = config_of(folder, name)
    done, place = folder / "done" / f"{name}.json", folder / "trace" / name
    kills = []
    for victim in planned:
        group = _wait(drivers, lambda: _present_group(place))
        before = {file.name for file in place.iterdir()}
        restored = _steps_at(group)
        step = moments.randrange(restored, max(restored + 1, cfg.train.steps - 2))
        if victim in READERS:
            delay_s = moments.uniform(0, LONGEST_READING_S)
            _wait(drivers, lambda v=victim: drivers.present(v) or done.exists())
        else:
            delay_s = moments.uniform(0, LONGEST_DELAY_S)
            _wait(drivers, lambda at=step, group=group: _steps_at(group) > at)
        time.sleep(delay_s)
        trained = _steps_at(group)
        hit = not done.exists() and drivers.kill(victim, moments)
        kills.append(
            {"victim": victim, "step": step, "delay_s": delay_s, "trained_steps": trained, "hit": hit}
        )
        if done.exists():
            break
        if victim not in READERS:  # the others take the worker group with them
            _wait(drivers, lambda before=before: done.exists() or _present_group(place, besides=before))
    _wait(drivers, done.exists)
    plan = Plan.load(folder / "runs" / name / "plan.parquet")
    commit = last_commit(folder / "runs" / name)
    assert commit is not None, "a finished job has committed"
    traces = read_traces(folder / "trace" / name)
    history = committed_history(traces, commit.name, workers=cfg.train.workers)
    ledger = Ledger.from_files(commit)
    return {
        "name": name,
        "kills": kills,
        **faults(history, plan, ledger),
        "worker_groups": sum(trace.rank == 0 for trace in traces),
        "trained_and_rolled_back": sum(len(trace.entries()) for trace in traces) - len(history),
        "quarantined": {str(e): bad for e, bad in ledger.quarantined.items()},
        "weights_sha256": digest_of(commit),
        "seconds": time.monotonic() - began,
    }


def _wait(drivers: Drivers, what: Callable[[], Any]) -> Any:
    """What `what` returns as soon as it is true. JobError when that takes longer than LIMIT_S."""
    ends_at = time.monotonic() + LIMIT_S
    while time.monotonic() < ends_at:
        drivers.check()
        if found := what():
            return found
        time.sleep(POLL_S)
    raise JobError(f"nothing happened for {LIMIT_S:.0f} s", *last_lines(drivers.folder / "log.txt"))


def _present_group(place: Path, besides: Collection[str] = ()) -> Path | None:
    """The trace of the newest worker group's rank 0."""
    files = [f for f in place.glob("rank0-*.jsonl") if f.name not in besides and f.stat().st_size]
    return max(files, key=lambda file: file.name, default=None)


def _steps_at(trace: Path) -> int:
    """The step that a worker group stands at."""
    first, *events = trace.read_text().splitlines()
    return _step_of(json.loads(first)["restored"]) + sum('"ids"' in event for event in events)


def _step_of(commit: str) -> int:
    return int(commit.split("-")[1]) if commit else 0


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def digest_of(commit: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(commit.glob("shard-*")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


# What was trained, and what of it counts


@dataclass(frozen=True)
class Trace:
    """One rank of one worker group: what it began with and then did, in order."""

    rank: int
    attempt: int
    restored: str
    began: float
    events: list[dict[str, Any]]

    def entries(self, commit: str | None = None) -> list[tuple[int, int]]:
        """(epoch, sample) of everything it trained, or of what it trained before that commit."""
        found = []
        for event in self.events:
            if event.get("commit") == commit and commit is not None:
                return found
            found += [(event["epoch"], sample) for sample in event.get("ids", []) if sample >= 0]
        return found


def read_traces(folder: Path) -> list[Trace]:
    traces = []
    for file in folder.glob("rank*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
        if lines:
            traces.append(Trace(**lines[0], events=lines[1:]))
    return traces


def committed_history(traces: list[Trace], commit: str, *, workers: int) -> list[tuple[int, int]]:
    """Every (epoch, sample) that led to a commit, as often as it was trained. JobError when a rank's part is
    missing."""
    history: list[tuple[int, int]] = []
    while commit:
        wrote = [trace for trace in traces if any(e.get("commit") == commit for e in trace.events)]
        # The newest: a group whose commit left no folder may have had the same number.
        ranks = {trace.rank: trace for trace in sorted(wrote, key=lambda trace: trace.began)}
        if sorted(ranks) != list(range(workers)):
            raise JobError(f"{commit}: noted by ranks {sorted(ranks)}, not by all {workers}")
        for trace in ranks.values():
            history += trace.entries(commit)
        restored = {trace.restored for trace in ranks.values()}
        if len(restored) != 1:
            raise JobError(f"{commit}: its ranks began with different commits: {sorted(restored)}")
        commit = restored.pop()
    return history


def faults(history: list[tuple[int, int]], plan: Plan, ledger: Ledger) -> dict[str, int]:
    """Against the plan up to the committed position; lost: not trained, or not in the ledger."""
    planned = plan.sample_ids_before(ledger.position)
    expected = {(epoch, int(sample)) for epoch, ids in planned.items() for sample in ids}
    trained = Counter(history)
    entered = {
        (epoch, sample)
        for epoch in ledger.epochs()
        for sample in [*ledger.consumed[epoch], *ledger.quarantined[epoch]]
    }
    return {
        "planned": len(expected),
        "lost": len((expected - trained.keys()) | (expected - entered)),
        "doubled": sum(count - 1 for count in trained.values()),
        "stray": len((trained.keys() | entered) - expected),
    }


def traced_worker(settings: dict[str, Any]) -> None:
    """`train_worker`, with a note of every trained micro-batch and commit. Runs on the Ray worker."""
    import ray_jobs.train_worker as worker

    cfg = RunConfig.model_validate_json(settings["config"])
    place = Path(cfg.storage).parent / "trace" / cfg.name
    restored: list[str] = []
    load, plain_commits = worker.load_checkpoint, worker.Commits

    def load_and_note(folder: Path, engine: Any) -> int:
        restored.append(folder.name)
        return load(folder, engine)

    class TracedCommits(plain_commits):
        def __init__(self, cfg: RunConfig, engine: Any, ledger: Ledger, attempt: int, *more: Any) -> None:
            super().__init__(cfg, engine, ledger, attempt, *more)
            self.file = (place / f"rank{engine.rank}-{time.time_ns()}-{os.getpid()}.jsonl").open("w")
            about = {"rank": engine.rank, "attempt": attempt, "began": time.time()}
            self.note(about | {"restored": restored[0] if restored else ""})

        def note(self, event: dict[str, Any]) -> None:
            self.file.write(json.dumps(event) + "\n")
            self.file.flush()

        def consumed(self, batch: Any) -> None:
            self.note({"epoch": batch.epoch, "batch_id": batch.batch_id, "ids": batch.sample_ids_B.tolist()})
            super().consumed(batch)

        def commit(self, step: int) -> None:
            self.note({"commit": f"step-{step:07d}-{self.attempt:03d}"})
            super().commit(step)

    worker.load_checkpoint, worker.Commits = load_and_note, TracedCommits
    worker.train_worker(settings)


def _trained(job: Any, cfg: RunConfig) -> Any:
    """The same command again where the job broke: what an operator does, or a RayJob's backoffLimit."""
    for start in range(1, MAX_STARTS + 1):
        try:
            return job.run_training(cfg, command="benchmark")
        except JobError as error:
            print(f"{cfg.name}: start {start}: {error}", flush=True)
    raise JobError(f"{cfg.name}: broke {MAX_STARTS} times")


def _drive(folder: Path, names: list[str]) -> None:
    """`worldmodel train` of every run in turn; a finished one is passed at once."""
    import ray_jobs.train as job
    from ray_jobs.cluster import connect

    connect()
    job.train_worker = traced_worker  # goes to the workers by value, as it lies in __main__
    for name in names:
        result = _trained(job, config_of(folder, name))
        partial = folder / "done" / f".{name}"
        partial.write_text(json.dumps({"status": result.status, "attempts": result.attempts}))
        partial.rename(folder / "done" / f"{name}.json")


if __name__ == "__main__":
    _drive(Path(sys.argv[1]), sys.argv[2:])
