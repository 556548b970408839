"""The script that makes what ships: it runs without Ray and DeepSpeed, and resumes to the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.gpu.train_world import check_same
from worldmodel.export import codecs_of, load_model
from worldmodel.load_config import load_config
from worldmodel.worlds.clips import WorldClips

pytestmark = pytest.mark.slow  # processes of their own

ROOT = Path(__file__).parents[2]
SMALL = (
    *("codec.video=pca-4x8x8-48", "codec.audio=logmel-64", "data.clip_s=1.0", "data.batch_clips=2"),
    *("model.depth=2", "model.width=32", "model.head_dim=16", "train.device=cpu", "train.precision=fp32"),
    *("train.steps=6", "train.checkpoint_every=3", "train.evaluate_every=3", "train.evaluate_clips=2"),
    *("rollout.prefix_s=0.5", "rollout.seconds=0.5", "rollout.steps=2"),
)
WEIGHTS = "export/transformer/diffusion_pytorch_model.safetensors"
# A module that is None cannot be imported: what a machine with nothing but a GPU lacks.
LACKING = "import sys; sys.modules.update(dict.fromkeys(['ray', 'deepspeed', 'av', 'decord', 'ray_jobs']))"


def run(out: Path, *options: str) -> list[dict]:
    script = ROOT / "benchmarks" / "gpu" / "train_world.py"
    arguments = [str(script), str(ROOT / "configs" / "shipped" / "bounce.yaml"), "--out", str(out)]
    arguments += ["--world", "bounce:6", "--world", "bounce_one:2", "--threads", "1", "--held-out", "2"]
    arguments += [part for setting in SMALL for part in ("--set", setting)] + list(options)
    site = out.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(LACKING)
    path = f"{site}:{ROOT}:{ROOT / 'tokenizers'}"
    done = subprocess.run(
        [sys.executable, *arguments],
        env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_cannot_be_gone_on_with_or_measured_is_told(tmp_path):
    cfg = load_config(ROOT / "configs" / "shipped" / "bounce.yaml", list(SMALL))
    of_it = {"config": cfg.model_dump(mode="json"), "clips": "6 of world bounce"}
    (tmp_path / "model.json").write_text(json.dumps(of_it))
    facts = {"clips": "6 of world bounce"}
    check_same(cfg, facts, tmp_path)
    check_same(load_config(None, []), {}, tmp_path / "nothing")
    faster = load_config(ROOT / "configs" / "shipped" / "bounce.yaml", [*SMALL, "optim.lr=0.5"])
    with pytest.raises(
        ValueError, match=r"was trained with others \(optim.lr: .* -> 0.5\); give another --out"
    ):
        check_same(faster, facts, tmp_path)
    with pytest.raises(ValueError, match="clips: 6 of world bounce -> 7 of world bounce"):
        check_same(cfg, {"clips": "7 of world bounce"}, tmp_path)
    clips = WorldClips(np.arange(1), *(np.zeros((1, 1)) for _ in range(5)))
    with pytest.raises(
        ValueError, match="1 clips do not fill a micro-batch of 2, so nothing would be measured"
    ):
        clips.batches(cfg, num_clips=32)
    assert clips.batches(cfg, num_clips=0) == []


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path):
    said = run(tmp_path / "whole", "--check", "2")
    run(tmp_path / "parts", "--until", "4")
    assert json.loads((tmp_path / "parts" / "checkpoint" / "model.json").read_text())["step"] == 4
    with (tmp_path / "parts" / "log.jsonl").open("a") as log:
        log.write('{"step": 4}\n{"step": 5, "lo')  # as a kill after the checkpoint leaves it
    run(tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    for log in logs:  # an evaluation after 3 and after 6 steps; step 4 was trained once
        assert [json.loads(line)["step"] for line in log] == [0, 1, 2, 3, 3, 4, 5, 6]
    card = (tmp_path / "whole" / "export" / "README.md").read_text()
    for fact in (
        "| steps | 6 |",
        "| clips | 6 of world bounce, 2 of world bounce_one |",
        "| position error |",
    ):
        assert fact in card
    logged = (tmp_path / "whole" / "export" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [0, 3, 6]  # each 100th, and each evaluation
    assert said[-1]["checks"]["position_error"] > 0
    assert (tmp_path / "whole" / "checks.json").exists()
    model, cfg, prediction = load_model(tmp_path / "whole" / "export")
    assert (cfg.model.depth, prediction) == (2, "x")
    assert next(model.parameters()).dtype == torch.float32
    assert all(w.dtype == torch.bfloat16 for w in whole.values())  # half the bytes
    assert codecs_of(tmp_path / "whole" / "export", cfg) == ("pca-4x8x8-48", "logmel-64")  # they ship
