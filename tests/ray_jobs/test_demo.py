"""`worldmodel demo` from an empty folder to a report, and what a second call does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, CLIPS = 6, 24
SETTINGS = {
    "model.depth": 2,
    "model.width": 64,
    "model.head_dim": 32,
    "train.steps": STEPS,
    "train.checkpoint_every": STEPS,
    "train.evaluate_every": STEPS,
    "train.evaluate_clips": 2,
    "rollout.clips": 3,
    "rollout.steps": 2,
    "rollout.actors": 1,
    "rollout.show": 1,
}


@dataclass(frozen=True)
class Called:
    said: dict[str, Any]
    progress: str


def demo(out: Path) -> Called:
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ray_jobs.cli",
            "demo",
            f"--out={out}",
            f"--clips={CLIPS}",
            *settings,
            "--json",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return Called(json.loads(done.stdout), done.stderr)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "2026"  # a name that YAML would take for a number


@pytest.fixture(scope="module")
def first(out: Path) -> Called:
    return demo(out)


def test_the_demo_renders_trains_rolls_out_checks_and_reports(first, out):
    assert first.said["status"] == "finished"
    assert Path(first.said["run"]) == out
    assert 0 < first.said["startup_s"] < first.said["wall_s"]
    assert first.said["position_error_025s_over_frozen"] > 0
    assert len(list((out / "clips").glob("*.mp4"))) == CLIPS
    found = json.loads((out / "accounting.json").read_text())
    assert found["planned"] + found["held_out"] == CLIPS
    rows = json.loads((out / "rollouts" / "rollouts.json").read_text())
    assert len(rows) == min(SETTINGS["rollout.clips"], found["held_out"])
    checks = json.loads((out / "checks.json").read_text())["checks"]
    assert checks["position_error"]["value"] > 0
    assert {"energy_drift", "sound_identity"} <= checks.keys()


def test_the_report_shows_before_training_after_the_shipped_model_and_truth(first, out):
    shown, *others = json.loads((out / "rollouts" / "rollouts.json").read_text())
    assert not any("beside" in row for row in others)
    files = (shown["beside"]["untrained"], shown["rollout"], shown["beside"]["bounce"], shown["truth"])
    assert len({(out / "rollouts" / name).read_bytes() for name in files}) == 4
    html = Path(first.said["report"]).read_text()
    assert html.count("<video") == 4
    names = ("Before training", "After training", "Model bounce", "Truth")
    titles = [html.find(f"<figcaption>{title}") for title in names]
    assert -1 not in titles
    assert titles == sorted(titles)


def test_progress_is_said_on_standard_error_stage_by_stage(first):
    stages = (
        "starting Ray",
        "rendering clips",
        "training",
        "continuing clips",
        "checking",
        "writing the report",
    )
    places = [first.progress.find(stage) for stage in stages]
    assert -1 not in places, first.progress
    assert places == sorted(places)


def test_a_second_call_trains_and_renders_nothing_again(first, out):
    kept = [out / "metrics.jsonl", out / "clips" / "truth.parquet", out / "rollouts" / "rollouts.json"]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    again = demo(out)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept] == before
    assert "rendering clips" not in again.progress
    assert "training" not in again.progress
    same = ("run", "report", "status", "position_error_025s_over_frozen")
    assert [again.said[key] for key in same] == [first.said[key] for key in same]
