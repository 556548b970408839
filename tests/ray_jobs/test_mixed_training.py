"""One run over stills, silent films, sound alone and films with sound, of several lengths and sizes.

It goes through phases, loses its workers and goes on with another number of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from avtok.mux import write_clip
from ray_jobs.accounting import Ledger
from ray_jobs.cluster import connect
from ray_jobs.errors import JobError
from ray_jobs.plan import Plan
from ray_jobs.run_folder import RunFolder, last_commit
from ray_jobs.train import run_training
from ray_jobs.train_worker import FAILPOINT
from worldmodel.config import RunConfig
from worldmodel.worlds.bounce import BounceSettings, simulate

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS, PRE_STEPS = 12, 4


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("films", "rest")}
    for seed in range(8):
        episode = simulate(BounceSettings(), seed=seed, duration_s=1.5)
        video, sound = episode.video_THWC, episode.audio_N
        write_clip(folders["films"] / f"{seed}.mp4", video, sound, fps=16, sample_rate=16000)
        wide = np.concatenate([video, video[:, :, ::-1]], axis=2)
        write_clip(folders["rest"] / f"wide_{seed}.mp4", wide[::-1], None, fps=16, sample_rate=16000)
        reversed_N = sound[::-1].copy()
        write_clip(folders["rest"] / f"sound_{seed}.mp4", None, reversed_N, fps=16, sample_rate=16000)
        Image.fromarray(video[seed]).save(folders["rest"] / f"still_{seed}.png")
    return folders


def config(storage: Path, sources: dict[str, Path], workers: int) -> RunConfig:
    mixture = [{"name": name, "manifest": str(folder)} for name, folder in sources.items()]
    return RunConfig.model_validate(
        {
            "name": "mixed",
            "storage": str(storage),
            "data": {
                "mixture": mixture,
                "phases": [
                    {"name": "pre", "steps": PRE_STEPS, "weights": {"films": 1}},
                    {"name": "main", "weights": {"films": 1, "rest": 3}},
                ],
                "clip_s": 1.0,
                "buckets": [{"clip_s": 0.5, "size": [64, 64]}, {"clip_s": 1.0, "size": [64, 128]}],
                "batch_tokens": 700,
                "held_out": 0.2,
                "cache": str(storage / "cache"),
            },
            "model": {"depth": 2, "width": 64, "head_dim": 32},
            "train": {
                "steps": STEPS,
                "precision": "fp32",  # many processors take ten times as long in bf16
                "workers": workers,
                "checkpoint_every": 2,
                "evaluate_every": STEPS,
                "evaluate_clips": 12,
                "max_failures": 0,
                "keep_checkpoints": 10,
                "device": "cpu",
            },
            "rollout": {"prefix_s": 0.5},
        }
    )


@pytest.fixture
def dying_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers inherit the environment that Ray was started with; the second rank dies once, at step 7."""
    monkeypatch.setenv(FAILPOINT, "kill:rank1:step7")
    connect(num_cpus=8)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("dying_cluster")
def test_kinds_lengths_sizes_and_phases_train_as_one_stream_and_resume_on_fewer_workers(sources, tmp_path):
    two, one = (config(tmp_path, sources, workers) for workers in (2, 1))
    with pytest.raises(JobError, match=r"last commit: step-000000[246]"):  # written by a thread
        run_training(two, command="pytest")
    result = run_training(one, command="pytest")
    assert (result.status, result.step) == ("finished", STEPS)

    folder = RunFolder(one)
    plan = Plan.load(folder.plan)
    used = {plan.buckets[number].name for number in np.unique(plan.bucket_of)}
    assert used == {
        "1s-64x64-16fps",
        "1s-64x128-16fps",
        "0.5s-64x64-16fps",
        "1s-sound",
        "0.5s-sound",
        "still-64x64",
    }
    commit = last_commit(folder.path)
    assert commit is not None
    ledger = Ledger.from_files(commit)
    ledger.check(plan)
    assert not any(ledger.quarantined.values())
    read = Counter()
    for position in range(STEPS * one.train.micro_batches):
        _, _, ids = plan.batch_at(position)
        sample = plan.sample(int(ids[0]))
        read[sample.source] += 1
        if position < PRE_STEPS * one.train.micro_batches:
            assert sample.source == "films"
        assert plan.bucket(ids).batch_clips == len(ids)
    assert read == {"films": 12, "rest": 12}

    first = Ledger.from_files(next((folder.path / "checkpoints").glob(f"step-{PRE_STEPS:07d}-*")))
    assert {plan.sample(i).source for ids in first.consumed.values() for i in ids} == {"films"}
    books = json.loads((folder.path / "accounting.json").read_text())
    assert books["planned"] == books["consumed"] + len(books["quarantined"]) + books["remaining"]
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    again = [row["step"] for row in steps if row["attempt"] > 1]
    assert again in [[*range(commit, STEPS)] for commit in (2, 4, 6)]  # from the last commit on
    assert all(np.isfinite(row["loss"]) for row in steps)
    (evaluation,) = [row for row in rows if "eval_video" in row]
    assert {"eval_video", "eval_audio", "eval_video_history"} <= evaluation.keys()
