"""train.tracker at work: a process of low priority follows the run's own files and hands on what they gain.

Training writes metrics.jsonl and warnings.txt as ever, and waits for nobody: a library that is slow, asks for
a password, prints or hangs does so there. What it says goes to RUN/tracker.log; why it ended, too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.run_folder import WARNINGS, write_whole
from ray_jobs.trackers import KINDS, Tracker
from worldmodel.config import RunConfig

ID_FILE, LOG = "tracker.json", "tracker.log"  # ids, so that a resumed run goes on where it was
METRICS = "metrics.jsonl"
POLL_S = 1.0
PATIENCE_S = 30.0  # for what is still under way at the end


class Tracking:
    """The driver's side. Follows what is written from now on; nothing where train.tracker is none."""

    def __init__(self, cfg: RunConfig, run: Path) -> None:
        self.kind, self.log, self.is_told = cfg.train.tracker, run / LOG, False
        self.process: subprocess.Popen[bytes] | None = None
        if self.kind == "none":
            return
        starts = [str(_size(run / name)) for name in (METRICS, WARNINGS)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray_jobs.tracking", self.kind, str(run), *starts],
                stdin=subprocess.PIPE,  # by which it hears of the end; no terminal to ask for a login on
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the driver
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            assert self.process.stdin is not None, "a pipe was asked for"
            self.process.stdin.write(cfg.model_dump_json().encode() + b"\n")
            self.process.stdin.flush()

    def problem(self) -> str:
        """Why nothing arrives there any more, the first time that it is asked after it happened."""
        if self.process is None or self.is_told or not self.process.poll():
            return ""
        self.is_told = True
        said = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        return f"{self.kind} failed and gets no more rows: {said[-1] if said else 'no reason given'}"

    def close(self, status: str) -> str:
        """Waits a while for what is under way; the problem, if there is one that was not told."""
        if self.process is None or self.process.stdin is None:
            return ""
        with suppress(BrokenPipeError):
            self.process.stdin.write(status.encode() + b"\n")
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.is_told = True
            return (
                f"{self.kind} was not done {PATIENCE_S:g} s after the run and was ended; "
                f"what it lacks is in {METRICS}"
            )
        return self.problem()


@dataclass
class Lines:
    """Whole lines that a file has gained since the last call."""

    path: Path
    start: int

    def new(self) -> Iterator[str]:
        if _size(self.path) <= self.start:
            return
        with self.path.open("rb") as file:
            file.seek(self.start)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.start += len(whole)
        yield from whole.decode().splitlines()


def follow(tracker: Tracker, cfg: RunConfig, kind: str, run: Path, rows: Lines, warnings: Lines) -> None:
    """Until the driver says how the run ended, or is gone."""
    known = json.loads((run / ID_FILE).read_text()) if (run / ID_FILE).exists() else {}
    known[kind] = tracker.open(cfg, run, known.get(kind, ""))
    write_whole(run / ID_FILE, json.dumps(known))
    has_ended = False
    while not has_ended:
        has_ended = bool(select.select([sys.stdin], [], [], POLL_S)[0])
        for line in rows.new():
            tracker.row({name: value for name, value in json.loads(line).items() if value is not None})
        for line in warnings.new():
            tracker.warning(line)
    tracker.close(sys.stdin.readline().strip() or "failed")


def main(kind: str, run: str, *starts: str) -> None:
    os.nice(10)
    cfg = RunConfig.model_validate_json(sys.stdin.readline())
    files = [
        Lines(Path(run) / name, int(start)) for name, start in zip((METRICS, WARNINGS), starts, strict=True)
    ]
    try:
        follow(KINDS[kind](), cfg, kind, Path(run), *files)
    except Exception as error:  # of whatever library or server: the driver tells it in a line
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sys.exit(f"\n{lines[0]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
