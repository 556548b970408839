"""Ten training jobs killed at random moments: what of the plan was lost or doubled in committed history.

Real Ray Train, 2 ZeRO-3 workers, a small model, a commit every 2 steps; a clip that broke after it was
planned is in every epoch. At seeded moments spread over training a worker or the driver dies by SIGKILL; then
the job comes back by itself or by the same command. Prediction: none lost, none doubled, and the last weights
equal those of a job that nothing happened to, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.makers.killing import Drivers, config_of, run_and_kill
from ray_jobs.bench import Measured, run_ranks
from ray_jobs.plan import Plan
from ray_jobs.render import clip_name, render_clip
from ray_jobs.train import prepare
from worldmodel.load_config import load_config

CLIPS = 43  # 11 micro-batches of 4 an epoch, the last one padded: steps of 2 do not end with an epoch
BROKEN = 17
WORKERS = 2
SETTINGS = [
    *("data.clip_s=1.0", "data.batch_clips=4", "data.held_out=0.0", "model.depth=2", "model.width=64"),
    *("model.head_dim=32", f"train.workers={WORKERS}", "train.checkpoint_every=2", "train.evaluate_clips=0"),
    *("train.device=cpu", "train.max_failures=3"),
]
KILLS = [("trainer",)] * 5 + [("trainer", "trainer"), ("trainer", "trainer", "trainer")]
KILLS += [("driver",), ("driver",), ("trainer", "driver")]
SMOKE_KILLS = [("trainer",), ("driver",)]
PLACE = "FOLDER"  # stands for the temporary folder in the filed config


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
                run_and_kill(folder, name, planned, moments, drivers)
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


def _reslice(folder: Path) -> dict[str, Any]:
    """A checkpoint of one ZeRO-3 worker, read and written by two, read and written by one: the same bytes."""
    places = [folder / "reslice" / name for name in ("one", "two", "one-again")]
    for ranks, source, target in ((1, "", places[0]), (2, places[0], places[1]), (1, places[1], places[2])):
        target.mkdir(parents=True)
        run_ranks(Path(__file__), ranks, [str(folder), str(source), str(target)], log=folder / "log.txt")
    files = [{file.name: file.read_bytes() for file in place.iterdir()} for place in places]
    return {
        "identical": files[0] == files[2],
        "files": [sorted(found) for found in files],
        "bytes": sum(len(content) for content in files[0].values()),
    }


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


if __name__ == "__main__":
    _reslice_rank(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
