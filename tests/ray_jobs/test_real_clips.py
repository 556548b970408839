"""The same command on real clips: speech with transcripts, films, music, and files that are odd or broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avtok.decode import probe
from ray_jobs.accounting import Ledger
from ray_jobs.plan import Plan
from ray_jobs.run_folder import last_commit

pytestmark = [pytest.mark.media, pytest.mark.ray, pytest.mark.slow]

REPO = Path(__file__).parents[2]
SECONDS = 3.0  # of each file: two clips
STEPS = 8
SETTINGS = {
    "model.depth": 2,
    "model.width": 64,
    "model.head_dim": 32,
    "train.steps": STEPS,
    "train.precision": "fp32",  # many processors take ten times as long in bf16
    "train.checkpoint_every": STEPS,
    "train.evaluate_every": STEPS,
    "train.evaluate_clips": 4,
    "rollout.clips": 8,
    "rollout.steps": 2,
    "rollout.actors": 1,
    "rollout.show": 2,
}


def write_manifest(media: Path, folder: Path) -> Path:
    """Speech with its words from transcripts.json; films and music without words; broken files."""
    said = json.loads((media / "transcripts.json").read_text())
    rows: list[dict[str, Any]] = [
        {"video": str(media / name), "transcript": facts["text"], "end_s": SECONDS}
        for name, facts in said.items()
        if name.startswith("speech/")
    ]
    listed = {row["video"] for row in rows}
    for kind in ("speech", "general", "derived"):
        paths = [path for path in sorted((media / kind).iterdir()) if str(path) not in listed]
        rows += [{"video": str(path), "end_s": SECONDS} for path in paths]
    whole = (media / "speech" / "friday.mp4").read_bytes()
    (folder / "head.mp4").write_bytes(whole[:300])
    rows.append({"video": "head.mp4"})
    rows.append({"video": str(media / "awkward" / "sample_fragmented_clearkey.mp4")})  # encrypted
    manifest = folder / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    media = Path(os.environ.get("WORLDMODEL_MEDIA", REPO.parent / "shared" / "media"))
    if not media.is_dir():
        pytest.skip(f"no real clips at {media}; set WORLDMODEL_MEDIA")
    folder = tmp_path_factory.mktemp("real_clips")
    places = {
        "storage": folder,
        "data.manifest": write_manifest(media, folder),
        "data.cache": folder / "cache",
    }
    settings = [f"--set={key}={value}" for key, value in (places | SETTINGS).items()]
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", "train", "configs/real_clips.yaml", *settings, "--json"],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert (said["status"], said["step"]) == ("finished", STEPS)
    assert Path(said["report"]) == folder / "real_clips" / "report.html"
    return Path(said["run"])


def test_every_planned_clip_is_consumed_or_quarantined_at_the_end_of_the_epoch(run):
    plan, commit = Plan.load(run / "plan.parquet"), last_commit(run)
    assert commit is not None
    Ledger.from_files(commit).check(plan)
    found = json.loads((run / "accounting.json").read_text())
    first = found["epochs"][0]
    assert first["planned"] == first["consumed"] + first["quarantined"] == plan.num_train
    assert first["remaining"] == 0
    assert first["consumed"] > 40


def test_what_was_said_reaches_the_plan_as_text(run):
    plan = Plan.load(run / "plan.parquet")
    texts = {Path(plan.sample(i).uri).name: plan.sample(i).text for i in range(plan.num_samples)}
    assert texts["grid_bbaf2n.mpg"] == "bin blue at f two now"
    assert texts["gradio_b.mp4"] == ""


def test_clips_with_picture_only_sound_only_and_both_are_planned(run):
    plan = Plan.load(run / "plan.parquet")
    kinds = {(s.has_video, s.has_sound) for s in map(plan.sample, range(plan.num_samples))}
    assert kinds == {(True, True), (True, False), (False, True)}


def test_files_that_cannot_be_used_are_listed_with_a_reason_in_the_books_and_the_report(run):
    found = json.loads((run / "accounting.json").read_text())
    rows = found["quarantined"] + found["left_out"]
    reasons = {Path(row["uri"]).name: row["reason"] for row in rows}
    assert {"head.mp4", "sample_fragmented_clearkey.mp4"} <= reasons.keys()
    assert all(reasons.values())
    page = (run / "report.html").read_text()
    assert "could not be planned at all" in page
    assert all(row["uri"] in page for row in rows)


def test_held_out_clips_are_continued_as_files_that_play(run):
    plan = Plan.load(run / "plan.parquet")
    rows = json.loads((run / "rollouts" / "rollouts.json").read_text())
    assert rows
    for row in rows:
        sample = plan.sample(row["sample_id"])
        assert sample.split == "held_out"
        info = probe(str(run / "rollouts" / row["rollout"]))
        assert (info.has_video, info.has_audio) == (sample.has_video, sample.has_sound)
        # AAC ends in whole packets of 64 ms
        assert info.duration_s == pytest.approx(row["prefix_s"] + row["seconds"], abs=0.13)
    assert (run / "report.html").read_text().count("<video") >= 2
