"""How long training waits for its commits, and whether they come back the same from any number of ranks.

A real job (Ray Train, 2 ZeRO-3 workers, clips through Ray Data) trains `av_25m` on the CPU and commits every
60 s or so; `commit_s` of the rows is what the loop waited: for the ranks to meet, for the copy of the shards,
and for the commit before if it is still being written. What a thread writes beside training takes cores from
it where there are few, so the steps after a commit are compared with the others, too.

Prediction: 16 bytes a parameter over 2 ranks are 0.27 GB each; copied at some 3 GB/s 0.1 s and as much again
for new pages at the first commit, so 0.2 to 0.4 % of 60 s. Writing and hashing them takes 2 s of a core.
Outcome: 0.18 %, 0.30 % at the worst commit; steps beside a writing thread are no slower (-0.7 %, noise).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.makers.reslice import reslice
from ray_jobs.bench import Measured
from ray_jobs.runtime_env import ROOT

EVERY_S, COMMITS, CLIPS = 60.0, 5, 32
CHAIN = (1, 2, 3, 1)


def run(smoke: bool) -> Measured:
    from ray_jobs.cluster import connect
    from ray_jobs.render import render_clip
    from ray_jobs.train import run_training
    from worldmodel.load_config import dump_config, load_config

    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-checkpoint-") as place:
        clips = Path(place) / "clips"
        clips.mkdir()
        for index in range(CLIPS):
            render_clip("bounce_one", index, out=str(clips), seed=0, duration_s=2.0)
        settings = [
            *(f"storage={place}/runs", f"data.manifest={clips}", f"data.cache={place}/cache"),
            *("train.device=cpu", "train.precision=fp32", "train.workers=2", "data.batch_clips=1"),
            *("train.micro_batches=2", "train.evaluate_clips=0", "data.decode_actors=1", "data.held_out=0"),
        ]
        if smoke:
            settings += ["model.depth=2", "model.width=64", "model.head_dim=32"]
        connect(None)
        probe = load_config(ROOT / "configs/av_25m.yaml", [*settings, "name=probe", "train.steps=8"])
        run_training(probe, command="benchmark")
        step_s = median(row["step_s"] for row in _rows(Path(place) / "runs" / "probe")[2:])
        every = 4 if smoke else max(8, round(EVERY_S / step_s))
        steps = every * (3 if smoke else COMMITS)
        sized = [f"train.steps={steps}", f"train.checkpoint_every={every}", "name=commits"]
        cfg = load_config(ROOT / "configs/av_25m.yaml", [*settings, *sized])
        run_training(cfg, command="benchmark")
        rows = _rows(Path(place) / "runs" / "commits")
        sizes = _sizes(Path(place) / "runs" / "commits")
        resliced = reslice(Path(place) / "reslice", CHAIN)
        config = dump_config(cfg).replace(place, "FOLDER")
    waits = [row["commit_s"] for row in rows if "commit_s" in row]
    return Measured(
        figures={
            "blocked_fraction": mean(waits) / EVERY_S,
            "blocked_fraction_max": max(waits) / EVERY_S,
            "slowed_fraction": _slowed_s(rows, every) / EVERY_S,
            "reslice_identical": resliced["identical"] and resliced["differ_on_the_way"],
        },
        raw={
            "commit_s": waits,
            "step_s": [row["step_s"] for row in rows],
            "every": every,
            **sizes,
            "reslice": resliced,
        },
        n=len(waits),
        config=config,
    )


def _slowed_s(rows: list[dict[str, Any]], every: int) -> float:
    """Seconds that the steps after a commit take more than the last half of steps before the next one."""
    after_commit = [row["step_s"] for row in rows[every:]]
    spans = [after_commit[i : i + every] for i in range(0, len(after_commit), every)]
    return mean(sum(span[: every // 2]) - every // 2 * median(span[every // 2 :]) for span in spans)


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "step_s" in row]


def _sizes(run: Path) -> dict[str, int]:
    """Bytes of one rank's shard."""
    shards = sorted((run / "checkpoints").glob("*/*.safetensors"))
    return {"shard_bytes": shards[-1].stat().st_size}
