"""Does data ever hold training up, and what does it take? Real Ray, a real training job, films of 1920x1080.

stall_fraction_cached, stall_fraction_uncached: seconds that the steps of a job waited for data over all of
their seconds, with the latent cache filled by `worldmodel tokenize` and without; the first steps start
actors and codecs and do not count.
object_store_bytes_over_latent_bytes: all that one rank's stream puts into the object store (micro-batches,
the numbers of its tasks, the plan) over the float16 latents alone.
decode_peak_bytes_over_pixels: how far a decoder's memory rises while it cuts 2 s of 1920x1080, over the
bytes of the frames that it gives, at the worse of two places: in a process, and in the sandbox's.
spill_bytes: what Ray wrote to disk over all of it.
cores_per_gpu: cores that decode and encode, without a cache, as fast as one GPU of a data centre trains
configs/av_300m.yaml: seconds of a core for a clip as measured here, and the dry run's FLOPs at 400 TFLOP/s.

Prediction: a cached step waits for one file a clip, 0.01; without, decoding 1080p takes more than the core
that training leaves, 0.3 to 0.6. The store holds masks, times and actions besides latents: 1.05. A decoder
holds frames for reordering besides what it gives: 1.5. Bare limits: 0, 0, 1, 1 and 0.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.makers.films import write_film
from ray_jobs.bench import Measured
from ray_jobs.pools import GPU_FLOPS, demand, flops_of, measure_cost
from ray_jobs.runtime_env import ROOT

WARM_STEPS, STREAM_STEPS = 4, 8


def run(smoke: bool) -> Measured:
    from ray_jobs.cluster import connect
    from ray_jobs.plan import Plan
    from ray_jobs.run_folder import RunFolder
    from ray_jobs.tokenize import tokenize
    from ray_jobs.train import prepare, run_training
    from worldmodel.load_config import dump_config

    films, seconds, steps = (2, 5.0, 6) if smoke else (8, 20.0, 60)
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-stream-") as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        for number in range(films):
            write_film(folder / "clips" / f"{number}.mp4", seconds, seed=number)
        connect(None)
        stalls: dict[str, list[float]] = {}
        cfg = job_of(folder, "uncached", steps)
        run_training(cfg, command="benchmarks/stream.py")
        stalls["uncached"] = stall_of(RunFolder(cfg).path / "metrics.jsonl", smoke)
        cached = job_of(folder, "cached", steps, f"data.cache={folder / 'cache'}")
        _, plan, _ = prepare(cached, "benchmarks/stream.py")
        filled = tokenize(cached, plan)
        run_training(cached, command="benchmarks/stream.py")
        stalls["cached"] = stall_of(RunFolder(cached).path / "metrics.jsonl", smoke)
        store = store_bytes(Plan.load(RunFolder(cached).plan), cached)
        spilled = spill_bytes()
        peaks = {side: decode_peak(folder / "clips" / "0.mp4", side) for side in ("1080x1920", "256x256")}
        cost = cores_per_gpu(folder, clips=4 if smoke else 16)
    fractions = {key: sum(wait) / sum(step) for key, (wait, step) in stalls.items()}
    return Measured(
        figures={
            "stall_fraction_cached": fractions["cached"],
            "stall_fraction_uncached": fractions["uncached"],
            "cores_per_gpu": cost["cores_per_gpu"],
            "object_store_bytes_over_latent_bytes": store["put"] / store["latents"],
            "decode_peak_bytes_over_pixels": max(peaks["1080x1920"].values()),
            "spill_bytes": spilled,
        },
        raw={
            "stall_and_step_s": stalls,
            "store": store,
            "decode_peak_over_pixels": peaks,
            "cost": cost,
            "tokenize": {key: value for key, value in filled.items() if key != "quarantined"},
        },
        n=steps - (1 if smoke else WARM_STEPS),
        baseline={"bare_store": 1.0, "bare_peak": 1.0, "assumed_gpu_flops": GPU_FLOPS},
        config=dump_config(cached).replace(name, "FOLDER"),
    )


def job_of(folder: Path, name: str, steps: int, *options: str) -> Any:
    from worldmodel.load_config import load_config

    return load_config(
        ROOT / "configs" / "debug_cpu.yaml",
        [
            *(f"name={name}", f"storage={folder / 'runs'}", f"data.manifest={folder / 'clips'}"),
            *("data.clip_s=1.0", "data.batch_clips=4", "train.micro_batches=2", "data.held_out=0"),
            *("train.workers=1", "train.device=cpu", "train.evaluate_clips=0", "data.decode_actors=1"),
            *(f"train.steps={steps}", f"train.checkpoint_every={steps}", "rollout.prefix_s=0.5"),
            *options,
        ],
    )


def stall_of(metrics: Path, smoke: bool) -> list[list[float]]:
    """[seconds waited, seconds] of each step after the first ones."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row for row in rows if "loss" in row][1 if smoke else WARM_STEPS :]
    return [[row["stall_fraction"] * row["step_s"] for row in steps], [row["step_s"] for row in steps]]


def store_bytes(plan: Any, cfg: Any) -> dict[str, int]:
    """What one rank's stream puts into the object store, by Ray Data's own count, and the latents in it."""
    from ray_jobs import dataset
    from ray_jobs.paced_executor import PacedExecutor

    put: dict[str, int] = {}

    class Counting(PacedExecutor):
        def after_execution_succeeds(self, executor: Any) -> None:
            for operator in executor._topology:
                put[operator.name] = int(operator.metrics.bytes_task_outputs_generated)
                put["tasks"] = max(put.get("tasks", 0), int(operator.metrics.bytes_inputs_received))

    before, dataset.PacedExecutor = dataset.PacedExecutor, Counting
    try:
        latents = 0
        for step in dataset.rank_stream(plan, cfg, start_step=0, end_step=STREAM_STEPS, rank=0, world_size=1):
            for batch in step:
                latents += 2 * (batch.video.latents.numel() + batch.audio.latents.numel())
    finally:
        dataset.PacedExecutor = before
    put["plan"] = len(pickle.dumps(plan))
    return {"put": sum(put.values()), "latents": latents, **put}


def spill_bytes() -> int:
    """Of all nodes since the cluster started."""
    import ray
    from ray._private.internal_api import node_stats

    nodes = [node for node in ray.nodes() if node["Alive"]]
    stats = [node_stats(n["NodeManagerAddress"], n["NodeManagerPort"], False).store_stats for n in nodes]
    return sum(int(each.spilled_bytes_total) for each in stats)


PEAK = """
import json, os, sys
from pathlib import Path
from avtok.media import Limits
from avtok.reader import open_reader
path, height, width, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
cut = dict(fps=16, size=(height, width), sample_rate=16000)

def status(pid, key):
    line = next(l for l in Path(f"/proc/{pid}/status").read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024

found = {}
for name, limits in (("process", None), ("sandbox", Limits())):
    reader = open_reader(limits=limits)
    reader.decode_clip(path, start_s=0, end_s=0.25, **cut | {"size": (64, 64)})  # tables are there
    Path(f"/proc/{reader.pid}/clear_refs").write_text("5")  # the highest use so far is forgotten
    base = status(reader.pid, "VmRSS")
    clip = reader.decode_clip(path, start_s=1.0, end_s=1.0 + seconds, **cut)
    found[name] = (status(reader.pid, "VmHWM") - base) / clip.video_THWC.nbytes
    del clip
    reader.close()
print(json.dumps(found))
"""


def decode_peak(film: Path, side: str) -> dict[str, float]:
    """Peak over base of a decoder's resident memory, over the bytes of the frames that it gives."""
    height, width = side.split("x")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(film), height, width, "2.0"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tokenizers")])},
    )
    return json.loads(done.stdout)


def cores_per_gpu(folder: Path, *, clips: int) -> dict[str, float]:
    """Of configs/av_300m.yaml: what one GPU trains in a second against what one core decodes and encodes."""
    from ray_jobs.index import index_sources
    from ray_jobs.plan import make_plan
    from worldmodel.load_config import load_config

    media = Path(os.environ.get("WORLDMODEL_MEDIA", ROOT.parent / "shared" / "media"))
    sources = [str(media / name) for name in ("general", "speech", "actions") if (media / name).is_dir()]
    are_real = bool(sources)
    sources = sources or [str(folder / "clips")]
    index_sources(sources, out=str(folder / "real.parquet"))
    cfg = load_config(
        ROOT / "configs" / "av_300m.yaml", [f"data.manifest={folder / 'real.parquet'}", "data.held_out=0"]
    )
    plan = make_plan(str(folder / "real.parquet"), cfg)
    cost = measure_cost(plan, cfg, clips=clips)
    clips_per_s = demand(cfg, flops_per_step=flops_of(cfg)) / cfg.train.workers
    return {
        "cores_per_gpu": clips_per_s * cost.cores_s,
        "clips_per_s_of_a_gpu": clips_per_s,
        "decode_core_s_per_clip": cost.decode_s,
        "encode_core_s_per_clip": cost.encode_s,
        "media_s_per_core_s": cfg.data.clip_s / cost.cores_s,
        "clips_are_real": float(are_real),
    }
