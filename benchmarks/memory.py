"""Does memory stay flat while a job reads large films? Real Ray, a real job, 1920x1080 without a cache.

grown: PSS of all processes of a kind in the last quarter of the time in which films were read, over that in
the second quarter, minus 1, at the worst of four kinds: driver, actors that decode and encode, the decoders'
own processes, trainer. The model is small, so that reading, not training, sets the pace.
mb_per_1000_clips: the same as a slope in MB, by kind, by least squares over the second half.
spill_bytes: what Ray wrote to disk.

Prediction: nothing grows by more than 5 %: latents are small, and pixels live inside one call.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from benchmarks.makers.films import write_film
from benchmarks.stream import job_of, spill_bytes
from ray_jobs.bench import Measured

SAMPLE_EVERY_S = 1.0
KINDS = ("driver", "actor", "decoder", "trainer")
SMALL_MODEL = ("model.depth=2", "model.width=64", "model.head_dim=32")
CLIPS_A_STEP = 8


def run(smoke: bool) -> Measured:
    from ray_jobs.cluster import connect
    from ray_jobs.train import run_training
    from worldmodel.load_config import dump_config

    films, seconds, steps = (2, 5.0, 8) if smoke else (8, 20.0, 160)
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-memory-") as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        for number in range(films):
            write_film(folder / "clips" / f"{number}.mp4", seconds, seed=number)
        connect(None)
        cfg = job_of(folder, "long", steps, *SMALL_MODEL)
        with memory_sampled() as samples:
            run_training(cfg, command="benchmarks/memory.py")
        spilled = spill_bytes()
    reading = [sample for sample in samples if sample["actor"] and sample["trainer"]]
    grown = {kind: growth([sample[kind] for sample in reading]) for kind in KINDS}
    return Measured(
        figures={
            "clips": steps * CLIPS_A_STEP,
            "grown": max(grown.values()),
            "mb_per_1000_clips": slopes(reading, clips=steps * CLIPS_A_STEP),
            "spill_bytes": spilled,
        },
        raw={"grown": grown, "memory_mb": samples},
        n=len(reading),
        config=dump_config(cfg).replace(name, "FOLDER"),
    )


@contextmanager
def memory_sampled() -> Iterator[list[dict[str, float]]]:
    """PSS in MB, by kind of process, of this process and all that it started, every second."""
    samples: list[dict[str, float]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            samples.append({"at_s": time.monotonic(), **memory_mb()})

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def memory_mb() -> dict[str, float]:
    found = dict.fromkeys(KINDS, 0.0)
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            kind = "driver" if process.pid == own.pid else kind_of(command)
            if kind:
                found[kind] += process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def kind_of(command: str) -> str:
    if "avtok.sandbox_child" in command:
        return "decoder"
    if "MapWorker" in command:
        return "actor"
    return "trainer" if "TrainWorker" in command else ""


def growth(values: list[float]) -> float:
    """The last quarter over the second, minus 1; the first quarter fills caches."""
    quarter = len(values) // 4
    if not quarter:
        return 0.0
    return float(np.mean(values[-quarter:]) / np.mean(values[quarter : 2 * quarter]) - 1)


def slopes(samples: list[dict[str, float]], *, clips: int) -> dict[str, float]:
    """MB of growth for a thousand clips, over the second half of the samples."""
    late = samples[len(samples) // 2 :]
    if len(late) < 3:
        return {}
    clips_per_s = clips / (samples[-1]["at_s"] - samples[0]["at_s"])
    at_s = [sample["at_s"] for sample in late]
    return {
        kind: float(np.polyfit(at_s, [sample[kind] for sample in late], 1)[0] / clips_per_s * 1000)
        for kind in KINDS
    }
