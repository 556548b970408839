"""A million clips become a plan: seconds and memory, from the indexed manifest to the first micro-batch.

What is timed, in one process of one thread: reading the manifest (one row a file, names of real length, a
caption each, every tenth with timed words), cutting, splitting, hashing and writing the plan, loading it
again as a worker does, the order of the first epoch, and a position in the middle of the tenth. Peak memory
is the process's own, imports taken off. Prediction: 6 s, most of it Parquet and the hashes of groups, and
0.9 GB, since a row of text is held two to three times at the worst moment. Bare limit, timed beside it:
reading and writing the same rows as Parquet, which is what any planner must do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.bench import Measured

CLIPS, SMOKE_CLIPS, RUNS = 1_000_000, 20_000, 5
GB = 1 << 30


def run(smoke: bool) -> Measured:
    count = SMOKE_CLIPS if smoke else CLIPS
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-plan-") as place:
        manifest = Path(place) / "manifest.parquet"
        write_manifest(manifest, count)
        rows = [_measure(manifest, Path(place)) for _ in range(1 if smoke else RUNS)]
    middle = sorted(rows, key=lambda row: row["seconds"])[len(rows) // 2]
    return Measured(
        figures={
            "clips": middle["clips"],
            "seconds": middle["seconds"],
            "peak_gb": max(r["peak_gb"] for r in rows),
        },
        raw=rows,
        n=len(rows),
        baseline={"parquet_seconds": middle["parquet_seconds"]},
    )


def write_manifest(path: Path, count: int) -> None:
    """A manifest as `worldmodel index` writes it."""
    from ray_jobs.index import MANIFEST_SCHEMA

    random = np.random.default_rng(0)
    digests = [random.bytes(32).hex() for _ in range(count)]
    seconds = np.full(count, 2.0)
    cues = json.dumps(
        [{"start": 0.2, "end": 0.6, "text": "bin blue"}, {"start": 0.7, "end": 1.5, "text": "at f"}]
    )
    given: dict[str, Any] = {
        "uri": [f"s3://clips/part-{i // 1000:05d}/{digests[i][:16]}.mp4" for i in range(count)],
        "caption": [
            f"a red steel ball and {i % 7} blue wooden ones, moving left, take {i}" for i in range(count)
        ],
        "speech_json": [cues if i % 10 == 0 else "" for i in range(count)],
        "content_sha256": digests,
        "group": digests,
        "end_s": seconds,
        "duration_s": seconds,
        "fps": np.full(count, 25.0),
        "has_video": np.ones(count, bool),
        "has_sound": np.ones(count, bool),
        "width": np.full(count, 640, np.int32),
        "height": np.full(count, 360, np.int32),
    }
    columns = {}
    for field in MANIFEST_SCHEMA:
        empty = "" if pa.types.is_string(field.type) else pa.scalar(0).cast(field.type).as_py()
        columns[field.name] = pa.array(given.get(field.name, [empty] * count), field.type)
    pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), path)


def _measure(manifest: Path, place: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, str(manifest), str(place / "plan.parquet")],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _plan(manifest: str, out: str) -> dict[str, Any]:
    from ray_jobs.plan import Plan, make_plan
    from worldmodel.config import RunConfig

    pa.set_cpu_count(1)
    cfg = RunConfig()
    before = _peak_bytes()
    began = time.perf_counter()
    make_plan(manifest, cfg).save(out)
    planned = time.perf_counter()
    plan = Plan.load(out)
    plan.batch_at(0)
    per_epoch = plan.num_batches_per_epoch
    plan.batch_at(9 * per_epoch + per_epoch // 2)
    ended = time.perf_counter()
    peak = _peak_bytes()
    count = plan.num_samples
    del plan
    bare = time.perf_counter()
    pq.write_table(pq.read_table(manifest), Path(out).with_suffix(".bare"))
    return {
        "clips": count,
        "seconds": round(ended - began, 2),
        "plan_seconds": round(planned - began, 2),
        "load_seconds": round(ended - planned, 2),
        "peak_gb": round((peak - before) / GB, 3),
        "imported_gb": round(before / GB, 3),
        "parquet_seconds": round(time.perf_counter() - bare, 2),
    }


def _peak_bytes() -> int:
    """Of this program since it started; getrusage would count the parent that it was forked from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: this benchmark needs Linux")


if __name__ == "__main__":
    print(json.dumps(_plan(*sys.argv[1:])))
