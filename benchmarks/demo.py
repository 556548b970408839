"""`make demo` as a newcomer runs it, once: time, time to the first step, memory, and what the model learned.

Prediction: on 2 cores it ends within 12 minutes, its first step comes within 60 s, under 12 GB in all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray_jobs.bench import Measured, last_lines
from ray_jobs.errors import JobError
from ray_jobs.memory import SessionMemory

GB = 1e9
POLL_S = 0.1
PLACE = "FOLDER"  # stands for the temporary folder in the filed config and log
SMOKE = [
    "--clips",
    "24",
    *("--set", "train.steps=4", "--set", "train.checkpoint_every=4", "--set", "train.evaluate_every=4"),
    *("--set", "train.evaluate_clips=4", "--set", "data.batch_clips=4", "--set", "rollout.clips=2"),
]


def run(smoke: bool) -> Measured:
    """One whole job in a process of its own, in a session of its own."""
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-demo-") as folder:
        out, log = Path(folder) / "demo", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "ray_jobs.cli", "demo", "--out", str(out), "--json"]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}  # a cluster of its own
        began = time.monotonic()
        with log.open("w", encoding="utf-8") as errors:
            job = subprocess.Popen(
                [*command, *(SMOKE if smoke else [])],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,
            )
            with SessionMemory(job.pid) as memory:
                startup_s = _first_row(job, out / "metrics.jsonl", began)
                printed, _ = job.communicate()
        wall_s = time.monotonic() - began
        if job.returncode:
            raise JobError(f"worldmodel demo ended with {job.returncode}", *last_lines(log))
        summary = json.loads(printed.splitlines()[-1])
        raw = {
            "demo": summary | {"run": out.name, "report": Path(summary["report"]).name},
            "exit_code": job.returncode,
            "report_bytes": Path(summary["report"]).stat().st_size,
            "accounting": json.loads((out / "accounting.json").read_text()),
            "checks": json.loads((out / "checks.json").read_text()) if (out / "checks.json").exists() else {},
            "peak_gb_by_process": {name: part / GB for name, part in memory.at_peak.items()},
            "memory_gb_over_time": [round(sample / GB, 3) for sample in memory.samples],
        }
        return Measured(
            figures={
                "wall_s": wall_s,
                "startup_s": startup_s,
                "peak_gb": memory.peak_bytes / GB,
                "position_error_025s_over_frozen": summary["position_error_025s_over_frozen"],
                "onset_f1_gain_ci_low": raw["checks"].get("onset_f1_gain_ci_low"),
                "episodes": raw["checks"].get("episodes"),
            },
            raw=raw,
            n=1,
            config=(out / "config.yaml").read_text().replace(folder, PLACE),
            log=log.read_text("utf-8", errors="replace").replace(folder, PLACE),
        )


def _first_row(job: subprocess.Popen[str], metrics: Path, began: float) -> float:
    """Seconds until the first trained step is on record, the interpreter's own start included."""
    while job.poll() is None:
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(POLL_S)
    return time.monotonic() - began
