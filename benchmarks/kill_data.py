"""Fifty training jobs; a decoder, tokenizer, coordinator, trainer or driver of each is killed at random.

Real Ray Train and Ray Data, a small model, a commit every 2 steps, and everything that the plan can hold: two
sources mixed by weight, two phases, clips of picture and of sound alone, a clip that broke after it was
planned. Every fifth job has two ZeRO-3 workers; the others one. At a seeded moment the victim gets SIGKILL:

- decoder: the sandboxed process that reads media; its clip is read again by a fresh one
- tokenizer: the Ray Data actor that decodes and encodes; Ray starts another and gives it the same rows
- coordinator: the controller of Ray Train; the job breaks, and the same command is given again
- trainer: a ZeRO-3 worker; the group starts again from the last commit
- driver: the process of the user's command; the same command is given again

Prediction: none lost, none doubled in committed history, and no good clip quarantined: a decoder that is shot
from outside is no fault of the clip's.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from avtok.mux import write_clip
from benchmarks.makers.killing import TITLES, Drivers, config_of, run_and_kill
from ray_jobs.bench import Measured
from ray_jobs.render import clip_name, render_clip
from ray_jobs.train import prepare

FILMS, SOUNDS, BROKEN = 22, 9, 5
RUNS, STEPS = 50, 10
VICTIMS = (*TITLES, "driver")
SETTINGS = {
    "data": {"clip_s": 1.0, "batch_clips": 4, "held_out": 0.0},
    "model": {"depth": 2, "width": 64, "head_dim": 32},
    "train": {"workers": 1, "checkpoint_every": 2, "evaluate_clips": 0, "device": "cpu", "max_failures": 3},
}
PLACE = "FOLDER"  # stands for the temporary folder in the filed config


def run(smoke: bool) -> Measured:
    victims = planned_victims(2 if smoke else RUNS)
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-kill-") as place:
        folder = Path(place)
        names = [f"run-{number:02d}" for number in range(len(victims))]
        _prepare(folder, names)
        moments = random.Random(1)
        drivers = Drivers(folder, names)
        rows = []
        try:
            for name, planned in zip(names, victims, strict=True):
                rows.append(run_and_kill(folder, name, planned, moments, drivers))
                print(_line(rows[-1]), end="", flush=True)
        finally:
            drivers.end()
        config = (folder / "runs" / names[0] / "config.yaml").read_text().replace(place, PLACE)
        log = (folder / "log.txt").read_text("utf-8", errors="replace").replace(place, PLACE)
    hits = Counter(kill["victim"] for row in rows for kill in row["kills"] if kill["hit"])
    good_quarantined = sum(len(_quarantined_good(row)) for row in rows)
    return Measured(
        figures={
            "runs": sum(any(kill["hit"] for kill in row["kills"]) for row in rows),
            "lost": sum(row["lost"] for row in rows) + good_quarantined,
            "doubled": sum(row["doubled"] for row in rows),
            "stray": sum(row["stray"] for row in rows),
            "kills": dict(hits),
        },
        raw=json.loads(json.dumps({"runs": rows, "driver_starts": drivers.starts}).replace(place, PLACE)),
        n=len(rows),
        config=config,
        log="".join(map(_line, rows))
        + "\n"
        + "\n".join(line for line in log.splitlines() if "start " in line),
    )


def planned_victims(count: int) -> list[tuple[str, ...]]:
    """Every kind equally often, in random order; every fifth job loses two."""
    random_kinds = random.Random(0)
    kinds = [VICTIMS[number % len(VICTIMS)] for number in range(count)]
    random_kinds.shuffle(kinds)
    return [(kind, random_kinds.choice(VICTIMS)) if n % 5 == 4 else (kind,) for n, kind in enumerate(kinds)]


def _prepare(folder: Path, names: list[str]) -> None:
    """Two sources, one plan a job; then one of the planned clips breaks."""
    films, sounds = folder / "films", folder / "sounds"
    films.mkdir()
    sounds.mkdir()
    for index in range(FILMS):
        render_clip("bounce_one", index, out=str(films), seed=0, duration_s=1.0)
    for index in range(SOUNDS):
        noise_N = np.random.default_rng(index).standard_normal(16000).astype(np.float32) * 0.1
        write_clip(sounds / f"{index}.mp4", None, noise_N, fps=16, sample_rate=16000)
    mixture = [
        {"name": "films", "manifest": str(films), "weight": 2.0},
        {"name": "sounds", "manifest": str(sounds), "weight": 1.0},
    ]
    phases = [{"name": "pre", "steps": 3, "weights": {"films": 1.0}}, {"name": "main"}]
    settings: dict[str, Any] = {**SETTINGS, "storage": str(folder / "runs")}
    settings["data"] = settings["data"] | {"mixture": mixture, "phases": phases}
    settings["train"] = settings["train"] | {"steps": STEPS}
    (folder / "settings.yaml").write_text(json.dumps(settings))  # JSON is YAML
    (folder / "done").mkdir()
    for number, name in enumerate(names):
        if number % 5 == 4:
            (folder / f"settings-{name}.json").write_text(json.dumps(["train.workers=2"]))
        prepare(config_of(folder, name), "worldmodel bench kill_data")
        (folder / "trace" / name).mkdir(parents=True)
    (films / clip_name(BROKEN)).write_bytes(b"broken since it was planned")


def _quarantined_good(row: dict[str, Any]) -> list[str]:
    """Reasons of clips that nothing is wrong with."""
    reasons = [reason for bad in row["quarantined"].values() for reason in bad.values()]
    return [reason for reason in reasons if clip_name(BROKEN) not in reason]


def _line(row: dict[str, Any]) -> str:
    killed = ", ".join(
        f"{kill['victim']} at step {kill['trained_steps']}{'' if kill['hit'] else ' (nobody there)'}"
        for kill in row["kills"]
    )
    return (
        f"{row['name']}: killed: {killed}; planned {row['planned']}, lost {row['lost']}, doubled "
        f"{row['doubled']}, good clips quarantined {len(_quarantined_good(row))}, rolled back "
        f"{row['trained_and_rolled_back']}, worker groups {row['worker_groups']}, {row['seconds']:.0f} s\n"
    )
