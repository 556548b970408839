"""`worldmodel demo --pretrained` and `worldmodel rollout bounce`: the model that ships, without training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.models import find_model
from worldmodel.export import load_model
from worldmodel.model_folder import FACTS_FILE, SHIPPED, WEIGHTS, shipped_models

CLIPS = 3
MOST_BYTES = 10_000_000


def worldmodel(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_shows_the_shipped_model_without_training(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = worldmodel("demo", "--pretrained", f"--clips={CLIPS}", f"--out={out}", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (Path(said["run"]), said["status"]) == (out, "finished")
    assert "training" not in done.stderr
    assert not (out / "metrics.jsonl").exists()
    rows = json.loads((out / "rollouts" / "rollouts.json").read_text())
    assert len(rows) == CLIPS
    html = (out / "report.html").read_text()
    assert html.count("<video") == 2 * CLIPS
    assert "demo of bounce" in html
    checks = json.loads((out / "checks.json").read_text())["checks"]
    assert {"permanence", "valid_prediction_time", "onset_f1"} <= checks.keys()

    again = worldmodel(
        "rollout", "bounce", f"--prompts={out / 'clips' / 'manifest.jsonl'}", f"--out={tmp_path / 'again'}"
    )
    assert again.returncode == 0, again.stderr
    rolled = json.loads((tmp_path / "again" / "rollouts.json").read_text())
    assert [row["latents_sha256"] for row in rolled] == [row["latents_sha256"] for row in rows]


@pytest.mark.ray
@pytest.mark.slow
def test_a_folder_of_a_training_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: mine")
    done = worldmodel("demo", "--pretrained", f"--out={tmp_path}")
    assert done.returncode == 2
    assert "holds a training run; give another folder with --out" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


MOVING = {"position error", "onset f1", "permanence", "energy drift", "sound identity"}
MEASURED = {"bounce": MOVING, "pusher": MOVING - {"permanence"}, "talker": {"word error rate", "lip offset"}}


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_is_small_and_says_how_it_was_made_and_what_it_can(name: str) -> None:
    folder = find_model(name)
    assert folder == SHIPPED / name
    assert (folder / "transformer" / WEIGHTS).stat().st_size <= MOST_BYTES
    facts = json.loads((folder / FACTS_FILE).read_text())
    card = (folder / "README.md").read_text()
    assert {
        "steps",
        "training minutes",
        "device",
        "made by",
        "clips",
        "checked on",
    } | MEASURED[name] <= facts.keys()
    assert all(f"| {key} | {value} |" in card for key, value in facts.items())
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] >= 0.95 * facts["steps"]
    _, cfg, _ = load_model(folder)
    assert cfg.name == name


def test_a_model_ships_for_bodies_and_for_a_face() -> None:
    assert {"bounce", "talker"} <= set(shipped_models())
