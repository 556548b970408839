"""Ten training jobs killed at random moments: what of the plan was lost or doubled in committed history.

Real Ray Train, 2 ZeRO-3 workers, a small model, a commit every 2 steps; a clip that broke after it was
planned is in every epoch. At seeded moments spread over training a worker or the driver dies by SIGKILL; then
the job comes back by itself or by the same command. Prediction: none lost, none doubled, and the last weights
equal those of a job that nothing happened to, byte for byte.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.makers.killing import Drivers, config_of, run_and_kill
from benchmarks.makers.reslice import reslice
from ray_jobs.bench import Measured
from ray_jobs.render import clip_name, render_clip
from ray_jobs.train import prepare

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
        resliced = reslice(folder / "reslice", (1, 2, 1))
        config = (folder / "runs" / "reference" / "config.yaml").read_text().replace(place, PLACE)
    reference, killed = rows[0], rows[1:]
    return Measured(
        figures={
            "runs": sum(any(kill["hit"] for kill in row["kills"]) for row in killed),
            "lost": sum(row["lost"] for row in rows),
            "doubled": sum(row["doubled"] for row in rows),
            "reslice_identical": resliced["identical"],
        },
        raw={
            "runs": killed,
            "weights_equal_reference": [
                row["weights_sha256"] == reference["weights_sha256"] for row in killed
            ],
            "reslice": resliced,
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
