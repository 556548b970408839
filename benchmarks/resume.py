"""Ten training jobs killed at random moments: what of the plan was lost or doubled in committed history.

Real Ray Train, 2 ZeRO-3 workers, a small model, a commit every 2 steps; a clip that broke after it was
planned is in every epoch. At seeded moments spread over training a worker or the driver dies by SIGKILL; then
the job comes back by itself or by the same command. Prediction: none lost, none doubled, and the last weights
equal those of a job that nothing happened to, byte for byte.

Committed history is what led to the last commit: each worker group's samples from the commit that it began
with to the commit that the next one began with. What a group trained after that was rolled back with its
weights. Workers note every trained micro-batch as it happens, in files of this benchmark's own: the ledger,
which refuses doubles, is not its own witness.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.accounting import Ledger
from ray_jobs.bench import Measured, last_lines, run_ranks
from ray_jobs.errors import JobError
from ray_jobs.memory import session_pids
from ray_jobs.plan import Plan
from ray_jobs.render import clip_name, render_clip
from ray_jobs.run_folder import last_commit
from ray_jobs.train import prepare
from worldmodel.config import RunConfig
from worldmodel.load_config import load_config

CLIPS = 43  # 11 micro-batches of 4 an epoch, the last one padded: steps of 2 do not end with an epoch
BROKEN = 17
WORKERS = 2
SETTINGS = [
    *("data.clip_s=1.0", "data.batch_clips=4", "data.held_out=0.0", "model.depth=2", "model.width=64"),
    *("model.head_dim=32", f"train.workers={WORKERS}", "train.checkpoint_every=2", "train.evaluate_clips=0"),
    *("train.device=cpu", "train.max_failures=3"),
]
KILLS = [("worker",)] * 5 + [("worker", "worker"), ("worker", "worker", "worker")]
KILLS += [("driver",), ("driver",), ("worker", "driver")]
SMOKE_KILLS = [("worker",), ("driver",)]
PLACE = "FOLDER"  # stands for the temporary folder in the filed config
WORKER_TITLE = "ray::RayTrainWorker"
LONGEST_DELAY_S = 0.5  # after the chosen step was trained: inside the next step or its commit
LIMIT_S = 600.0
POLL_S = 0.01


def run(smoke: bool) -> Measured:
    kills, steps = (SMOKE_KILLS, 8) if smoke else (KILLS, 20)
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-resume-") as place:
        folder = Path(place)
        names = ["reference", *(f"run-{number:02d}" for number in range(len(kills)))]
        _prepare(folder, names, steps)
        moments = random.Random(0)
        drivers = Drivers(folder, names)
        try:
            rows = [
                _one_run(folder, name, planned, moments, drivers)
                for name, planned in zip(names, [(), *kills], strict=True)
            ]
        finally:
            drivers.end()
        reslice = _reslice(folder)
        config = (folder / "runs" / "reference" / "config.yaml").read_text().replace(place, PLACE)
    reference, killed = rows[0], rows[1:]
    return Measured(
        figures={
            "runs": sum(any(kill["hit"] for kill in row["kills"]) for row in killed),
            "lost": sum(row["lost"] for row in rows),
            "doubled": sum(row["doubled"] for row in rows),
            "reslice_identical": reslice["identical"],
        },
        raw={
            "runs": killed,
            "weights_equal_reference": [
                row["weights_sha256"] == reference["weights_sha256"] for row in killed
            ],
            "reslice": reslice,
            "driver_starts": drivers.starts,
        },
        n=len(killed),
        baseline={"reference": reference},
        config=config,
        log="".join(_line(row) for row in rows),
    )


def _line(row: dict[str, Any]) -> str:
    killed = ", ".join(
        f"{kill['victim']} at step {kill['trained_steps']}{'' if kill['hit'] else ' (had ended)'}"
        for kill in row["kills"]
    )
    return (
        f"{row['name']}: killed: {killed or 'nobody'}; planned {row['planned']}, lost {row['lost']}, "
        f"doubled {row['doubled']}, rolled back {row['trained_and_rolled_back']}, weights "
        f"{row['weights_sha256'][:12]}, {row['seconds']:.0f} s\n"
    )


def config_of(folder: Path, name: str) -> RunConfig:
    return load_config(folder / "settings.yaml", [f"name={name}"])


def _prepare(folder: Path, names: list[str], steps: int) -> None:
    """Clips, one plan a run; then one of the planned clips breaks."""
    source = folder / "clips"
    source.mkdir()
    for index in range(CLIPS):
        render_clip("bounce_one", index, out=str(source), seed=0, duration_s=1.0)
    nested: dict[str, Any] = {"storage": str(folder / "runs"), "data": {"manifest": str(source)}}
    for setting in [*SETTINGS, f"train.steps={steps}"]:
        key, _, value = setting.partition("=")
        part, _, name = key.partition(".")
        nested.setdefault(part, {})[name] = json.loads(value) if value[0].isdigit() else value
    (folder / "settings.yaml").write_text(json.dumps(nested))  # JSON is YAML
    (folder / "done").mkdir()
    for name in names:
        prepare(config_of(folder, name), "worldmodel bench resume")
        (folder / "trace" / name).mkdir(parents=True)
    (source / clip_name(BROKEN)).write_bytes(b"broken since it was planned")


# Killing


class Drivers:
    """The process that runs every job in turn; started again, with the same command, after it was killed."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names, self.starts, self.sessions = folder, names, 0, list[int]()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}  # a cluster of its own
        command = [sys.executable, __file__, "drive", str(self.folder), *self.names]
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
        return self._kill_worker(moments) if victim == "worker" else self._kill_driver()

    def _kill_worker(self, moments: random.Random) -> bool:
        workers = [pid for pid in session_pids(self.process.pid) if _title(pid).startswith(WORKER_TITLE)]
        if workers:
            os.kill(moments.choice(sorted(workers)), signal.SIGKILL)
        return bool(workers)

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
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _one_run(
    folder: Path, name: str, planned: tuple[str, ...], moments: random.Random, drivers: Drivers
) -> dict[str, Any]:
    began = time.monotonic()
    cfg = config_of(folder, name)
    done, place = folder / "done" / f"{name}.json", folder / "trace" / name
    kills = []
    for victim in planned:
        group = _wait(drivers, lambda: _present_group(place))
        before = {file.name for file in place.iterdir()}
        restored = _steps_at(group)
        step = moments.randrange(restored, max(restored + 1, cfg.train.steps - 2))
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
        _wait(drivers, lambda before=before: done.exists() or _present_group(place, besides=before))
    _wait(drivers, done.exists)
    plan = Plan.load(folder / "runs" / name / "plan.parquet")
    commit = last_commit(folder / "runs" / name)
    assert commit is not None, "a finished job has committed"
    traces = read_traces(folder / "trace" / name)
    history = committed_history(traces, commit.name)
    return {
        "name": name,
        "kills": kills,
        **faults(history, plan, Ledger.from_files(commit)),
        "worker_groups": sum(trace.rank == 0 for trace in traces),
        "trained_and_rolled_back": sum(len(trace.entries()) for trace in traces) - len(history),
        "quarantined": len(Ledger.from_files(commit).quarantined[0]),
        "weights_sha256": _digest(commit),
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


def _digest(commit: Path) -> str:
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


def committed_history(traces: list[Trace], commit: str) -> list[tuple[int, int]]:
    """Every (epoch, sample) that led to a commit, as often as it was trained. JobError when a rank's part is
    missing."""
    history: list[tuple[int, int]] = []
    while commit:
        wrote = [trace for trace in traces if any(e.get("commit") == commit for e in trace.events)]
        # The newest: a group whose commit left no folder may have had the same number.
        ranks = {trace.rank: trace for trace in sorted(wrote, key=lambda trace: trace.began)}
        if sorted(ranks) != list(range(WORKERS)):
            raise JobError(f"{commit}: noted by ranks {sorted(ranks)}, not by all {WORKERS}")
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
    full_epochs = ledger.position // plan.num_batches_per_epoch
    expected = {(epoch, sample) for epoch in range(full_epochs) for sample in range(plan.num_train)}
    expected |= {(epoch, int(sample)) for epoch, ids in planned.items() for sample in ids}
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


def _reslice(folder: Path) -> dict[str, Any]:
    """A checkpoint of one ZeRO-3 worker, read and written by two, read and written by one: the same bytes."""
    places = [folder / "reslice" / name for name in ("one", "two", "one-again")]
    for ranks, source, target in ((1, "", places[0]), (2, places[0], places[1]), (1, places[1], places[2])):
        target.mkdir(parents=True)
        run_ranks(
            Path(__file__), ranks, ["reslice", str(folder), str(source), str(target)], log=folder / "log.txt"
        )
    files = [{file.name: file.read_bytes() for file in place.iterdir()} for place in places]
    return {
        "identical": files[0] == files[2],
        "files": [sorted(found) for found in files],
        "bytes": sum(len(content) for content in files[0].values()),
    }


# What runs in processes of its own


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
        def __init__(self, cfg: RunConfig, engine: Any, ledger: Ledger, attempt: int) -> None:
            super().__init__(cfg, engine, ledger, attempt)
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


def _drive(folder: Path, names: list[str]) -> None:
    """`worldmodel train` of every run in turn; a finished one is passed at once."""
    import ray_jobs.train as job
    from ray_jobs.cluster import connect

    connect()
    job.train_worker = traced_worker  # goes to the workers by value, as it lies in __main__
    for name in names:
        result = job.run_training(config_of(folder, name), command="worldmodel bench resume")
        partial = folder / "done" / f".{name}"
        partial.write_text(json.dumps({"status": result.status, "attempts": result.attempts}))
        partial.rename(folder / "done" / f"{name}.json")


def _reslice_rank(folder: Path, source: str, target: Path) -> None:
    """One rank: a fresh engine, a few steps or a checkpoint to read, a checkpoint to write."""
    import torch
    import torch.distributed as dist

    from ray_jobs.dataset import local_stream
    from ray_jobs.train_worker import layout_of
    from worldmodel.train.checkpoint import load_checkpoint, write_checkpoint
    from worldmodel.train.engine import ZeroEngine
    from worldmodel.train.loop import Hooks, train

    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    cfg = load_config(folder / "settings.yaml", ["name=reslice", "train.steps=3"])
    layout = layout_of(cfg)
    engine = ZeroEngine(cfg, layout, micro_batches=cfg.train.micro_batches // world_size)
    if source:
        step = load_checkpoint(Path(source), engine)
    else:
        plan, step = Plan.load(folder / "runs" / "reference" / "plan.parquet"), cfg.train.steps
        stream = local_stream(plan, cfg, start_step=0, end_step=step)
        train(engine, stream, cfg, layout, start_step=0, hooks=Hooks(commit=lambda step: None))
    write_checkpoint(target, engine, step, {"seed": cfg.seed})
    dist.destroy_process_group()


def _main() -> None:
    parser = argparse.ArgumentParser()
    modes = parser.add_subparsers(dest="mode", required=True)
    drive = modes.add_parser("drive")
    drive.add_argument("folder", type=Path)
    drive.add_argument("names", nargs="+")
    reslice = modes.add_parser("reslice")
    reslice.add_argument("folder", type=Path)
    reslice.add_argument("source")
    reslice.add_argument("target", type=Path)
    given = parser.parse_args()
    if given.mode == "drive":
        _drive(given.folder, given.names)
    else:
        _reslice_rank(given.folder, given.source, given.target)


if __name__ == "__main__":
    _main()
