"""The experiment on objectives: its arms share what they must, its measures measure, its statements need
intervals."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from avtok.mux import write_clip
from benchmarks.experiment.arms import (
    ARMS,
    CPU,
    GPU,
    PLAIN,
    SELF_FLOW,
    SMOKE,
    Run,
    Size,
    compared_runs,
    config_of,
    flops_of_step,
    layout_of,
    num_runs,
)
from benchmarks.experiment.frechet import Space, frechet_distance
from benchmarks.experiment.manifest_clips import prepare_manifest
from benchmarks.experiment.page import figures, page
from benchmarks.experiment.paired import interval, paired
from benchmarks.experiment.probes import SILENT, Factors, factors_of, probe
from benchmarks.experiment.readouts import _bounded, _probes
from benchmarks.experiment.run_arms import (
    _asked,
    _end_with_parent,
    _take,
    _trained,
    _trained_as,
    best_learning_rate,
    finished,
    run_arm,
    run_experiment,
)
from benchmarks.experiment.summary import by_chance, first_below, said, statements, summarise
from benchmarks.objectives import measured
from ray_jobs.errors import UserError
from worldmodel.train.engine import build_student
from worldmodel.train.loop import TrainingDiverged
from worldmodel.worlds.catalog import make_episode, world_settings
from worldmodel.worlds.sound import MATERIALS


def config(arm: str, seed: int = 0):
    return config_of(SMOKE, Run("0.1M", arm, seed, 2e-3))


def test_arms_differ_in_their_objective_alone_and_begin_with_the_same_weights():
    plain = config(PLAIN)
    first = build_student(plain, layout_of(plain)).transformer.state_dict()
    for arm in ARMS:
        cfg = config(arm)
        changed = {part for part in type(cfg).model_fields if getattr(cfg, part) != getattr(plain, part)}
        assert changed <= ({"objective", "train"} if ARMS[arm].equal_flops else {"objective"}), arm
        mine = build_student(cfg, layout_of(cfg)).transformer.state_dict()
        assert all(torch.equal(mine[name], weight) for name, weight in first.items()), arm
    other = build_student(config(PLAIN, 1), layout_of(plain)).transformer.state_dict()
    assert not all(torch.equal(other[name], weight) for name, weight in first.items())


@pytest.mark.parametrize("tier", [CPU, GPU])
def test_flow_matching_with_more_steps_costs_what_self_flow_costs(tier):
    plain, more, ours = (
        config_of(tier, Run(tier.sizes[0].name, arm, 0, 2e-3))
        for arm in (PLAIN, "flow_matching_flops", SELF_FLOW)
    )
    assert more.train.steps > 1.1 * plain.train.steps
    costs = [cfg.train.steps * flops_of_step(cfg) for cfg in (more, ours)]
    assert costs[0] == pytest.approx(costs[1], rel=2e-3)


def test_every_planned_arm_has_three_seeds_at_three_sizes():
    runs = [run for size in CPU.sizes for run in compared_runs(CPU, size, 2e-3)]
    assert len(runs) + 3 * len(CPU.learning_rates) == num_runs(CPU)  # the long runs take the small size's
    assert {run.arm for run in runs} == set(ARMS)
    for size in CPU.sizes:
        for arm in size.arms:
            assert len({run.seed for run in runs if (run.size, run.arm) == (size.name, arm)}) >= 3
    assert len(CPU.sizes) >= 3


def test_a_paired_interval_is_students_over_seeds_that_both_have():
    found = paired({0: 1.0, 1: 2.0, 2: 4.0, 7: 9.0}, {0: 0.5, 1: 1.0, 2: 2.0, 3: 0.0})
    assert found is not None
    assert found.n == 3
    assert found.mean == pytest.approx(7 / 6)
    half = 4.303 * np.std([0.5, 1.0, 2.0], ddof=1) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((7 / 6 - half, 7 / 6 + half))
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: math.nan, 1: 1.0}, {0: 1.0, 1: 1.0}) == interval([0.0])


def test_nothing_is_claimed_of_one_seed_or_of_an_interval_that_holds_zero():
    assert "no claim" in said(interval([-1.0]), lower_is_better=True)
    assert said(interval([-1.0, 1.0, 0.5]), lower_is_better=True).endswith("no difference shown")
    assert said(interval([-1.0, -1.1, -0.9]), lower_is_better=True).endswith("better")
    assert said(interval([-1.0, -1.1, -0.9]), lower_is_better=False).endswith("worse")


def test_it_is_said_how_many_intervals_would_exclude_zero_by_chance():
    apart, not_apart = interval([-1.0, -1.1, -0.9]), interval([-1.0, 1.0, 0.5])
    said_of_all = by_chance([apart, *[not_apart] * 39])
    assert said_of_all == "1 of these 40 intervals exclude zero; 2.0 would if no two arms differed"


def test_the_step_at_which_a_curve_first_is_below_a_value_lies_between_its_points():
    curve = [[10, 4.0], [20, 2.0], [30, 1.0], [40, 1.5]]
    assert first_below(curve, 3.0) == 15
    assert first_below(curve, 1.25) == 27.5
    assert first_below(curve, 9.0) == 10
    assert first_below(curve, 0.5) is None


def test_frechet_distances_are_those_of_known_gaussians():
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((20_000, 3))
    assert frechet_distance(samples, samples) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(samples, samples + np.array([2.0, 0.0, 0.0])) == pytest.approx(4.0, rel=1e-6)
    assert frechet_distance(samples, 2 * samples) == pytest.approx(3.0, rel=0.05)  # (1 - 2)^2 an axis
    space = Space.of(samples * [10.0, 1.0, 0.1], axes=1)
    assert abs(space.axes_FA[0, 0]) == pytest.approx(1.0, abs=1e-3)  # the axis of largest variance


def test_a_probe_reads_what_is_linear_in_features_and_nothing_from_noise():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((900, 40))
    numbers, classes = x[:, :2] @ rng.standard_normal((2, 2)), (x[:, 3] > 0).astype(int)
    noise = rng.standard_normal((900, 40))
    for known, chance in ((numbers, 0.0), (classes, 0.5)):
        assert probe(x[:600], known[:600], x[600:], known[600:]) > 0.9
        assert probe(noise[:600], known[:600], noise[600:], known[600:]) < chance + 0.12


def test_a_probe_is_asked_about_noise_that_it_was_not_fitted_on(monkeypatch):
    asked = []

    def features(model, clips, cfg, t, *, noise):
        asked.append((clips, noise))
        rows = {m: np.random.default_rng(0).standard_normal((40, 8)) for m in ("video", "audio")}
        return {0: rows}

    monkeypatch.setattr("benchmarks.experiment.readouts.features_at", features)
    rng = np.random.default_rng(1)
    numbers, classes = (
        (rng.standard_normal((40, 2)) for _ in range(2)),
        (rng.integers(0, 2, 40) for _ in range(2)),
    )
    known = Factors(*numbers, *classes)
    questions = SimpleNamespace(known=(known, known), fitted="fitted", held_out="held out")
    _probes(None, config(PLAIN), questions)
    assert len({noise for clips, noise in asked if clips == "fitted"}) == 1
    assert {noise for clips, noise in asked if clips == "fitted"}.isdisjoint(
        noise for clips, noise in asked if clips == "held out"
    )


def test_a_lost_body_weighs_no_more_than_one_that_stands_still():
    check = {"per_episode": [0.1, 1.4142, math.nan, 0.2], "baselines": {"frozen_frame": 0.3}}
    assert _bounded(check) == pytest.approx((0.1 + 0.3 + 0.2) / 3)
    assert _bounded({"skipped": "no true positions"}) is None


def test_factors_are_those_of_each_chunk():
    cfg = config(PLAIN)
    truths = [
        make_episode(world_settings("bounce"), seed=s, duration_s=cfg.data.clip_s).truth for s in range(6)
    ]
    found = factors_of(truths, cfg)
    rows = cfg.num_chunks
    assert len(found.position) == len(found.sounded) == 6 * rows
    first = truths[0].positions_TK2[: cfg.model.chunk_frames]
    assert found.position[0] == pytest.approx(first.mean((0, 1)))
    for i, truth in enumerate(truths):
        for chunk in range(rows):
            inside = [c for c in truth.contacts if int(c.time_s / cfg.chunk_s) == chunk]
            if not inside:
                assert found.sounded[i * rows + chunk] == SILENT
            else:
                loudest = max(inside, key=lambda c: c.impulse)
                assert list(MATERIALS)[found.sounded[i * rows + chunk]] == truth.materials[loudest.body]


def test_a_run_that_diverges_is_told_and_not_compared(tmp_path, monkeypatch):
    tier = replace(SMOKE, seeds=(0,), learning_rates=(2e-3, 4e-3))

    def diverges(cfg, *args, **kwargs):
        raise TrainingDiverged("step 3: loss_video is nan")

    monkeypatch.setattr("benchmarks.experiment.run_arms.train_world", diverges)
    run = compared_runs(tier, tier.sizes[0], 2e-3)[0]
    result = run_arm(tier, run, tmp_path, math.inf)
    assert result["diverged"] == "step 3: loss_video is nan"
    assert finished(tier, run, tmp_path) == result  # it would diverge again
    assert summarise(tier, [result]) == {}
    assert figures(tier, [result], {}) == {}
    fine = {"learning_rate": 4e-3, "loss": 0.5}
    assert best_learning_rate(tier, [{**result, "learning_rate": 2e-3}, fine]) == 4e-3


def test_results_of_other_questions_clips_or_training_are_not_taken(tmp_path):
    tier, folder = SMOKE, tmp_path / "0.1M"
    run = compared_runs(tier, tier.sizes[0], 2e-3)[0]
    mine = {**asdict(run), "asked": _asked(tier, config_of(tier, run)), "loss": 0.5}
    for other in ({**mine, "asked": "of others"}, {**mine, "size": "7M"}, {**mine, "arm": "gan"}):
        _take(tier, other, tmp_path)
    assert not folder.exists()
    _take(tier, mine, tmp_path)
    _take(tier, {**mine, "loss": 0.1}, tmp_path)  # there is one
    assert finished(tier, run, tmp_path) == mine
    trained = _trained_as(tier, config_of(tier, run))
    assert trained != _trained_as(replace(tier, clips=17), config_of(tier, run))
    assert trained != _trained_as(replace(tier, prepared=tmp_path / "hash"), config_of(tier, run))
    (tmp_path / run.name / "trained_as.txt").write_text("another config")
    (tmp_path / run.name / "average.safetensors").write_text("its weights")
    assert _trained(tier, config_of(tier, run), tmp_path, tmp_path / run.name, 0.0) is None  # no time
    assert not (tmp_path / run.name / "average.safetensors").exists()


@pytest.mark.slow
def test_runs_are_trained_once_asked_and_shown_and_another_config_is_another_run(tmp_path):
    tier = replace(
        SMOKE,
        seeds=(0,),
        steps=2,
        sizes=(Size("tiny", SMOKE.sizes[0].overrides, (PLAIN, SELF_FLOW)),),
    )
    assert (
        run_experiment(tier, tmp_path, minutes=0, workers=1, say=print) == []
    )  # no time: nothing is trained
    runs = compared_runs(tier, tier.sizes[0], 2e-3)
    results = [run_arm(tier, run, tmp_path, math.inf) for run in runs]
    assert [finished(tier, run, tmp_path) for run in runs] == json.loads(json.dumps(results))
    assert finished(replace(tier, steps=3), runs[0], tmp_path) is None
    assert run_experiment(tier, tmp_path, minutes=math.inf, workers=1, say=print) == json.loads(
        json.dumps(results)
    )
    summary = summarise(tier, json.loads(json.dumps(results)))
    ours = summary["tiny"][SELF_FLOW]
    assert ours["metrics"]["loss"]["mean"] == results[1]["loss"]
    assert ours["metrics"]["loss"]["minus_plain"]["mean"] == pytest.approx(
        results[1]["loss"] - results[0]["loss"]
    )
    assert all("no claim" in line for line in statements(tier, results))
    drawn = figures(tier, results, summary)
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
    assert "Self-Flow against its rivals" in page(tier, results, summary, drawn, ["a fact"])
    for some in ([], results[1:]):  # stopped early: there is nothing to compare with yet
        assert measured(tier, some, []).figures["runs"] == len(some)


@pytest.mark.slow
def test_on_clips_of_one_s_own_arms_are_compared_by_what_needs_no_truth(tmp_path):
    settings = world_settings("bounce_one")
    (tmp_path / "clips").mkdir()
    cfg = config(PLAIN)
    for seed in range(14):
        episode = make_episode(settings, seed=seed, duration_s=cfg.data.clip_s)
        write_clip(
            tmp_path / "clips" / f"{seed}.mp4",
            episode.video_THWC,
            episode.audio_N,
            fps=int(cfg.data.fps),
            sample_rate=cfg.data.sample_rate,
        )
    tier = replace(
        SMOKE,
        world=None,
        manifest="clips",
        overrides=(*SMOKE.overrides, "data.held_out=0.4", "data.batch_clips=4"),
        seeds=(0,),
        steps=2,
        held_out=4,
        curve_clips=4,
        episodes=2,
        sizes=(Size("tiny", SMOKE.sizes[0].overrides, (PLAIN, SELF_FLOW)),),
    )
    runs = compared_runs(tier, tier.sizes[0], 2e-3)
    cfg, clips = config_of(tier, runs[0]), str(tmp_path / "clips")
    prepared = prepare_manifest(clips, cfg, tier.held_out, tmp_path / "out")
    tier = replace(tier, prepared=prepared)
    results = json.loads(json.dumps([run_arm(tier, run, prepared, math.inf) for run in runs]))
    for result in results:
        assert math.isfinite(result["loss"])
        assert "probes" not in result
    summary = summarise(tier, results)
    assert {"loss", "frechet_video", "frechet_audio"} <= summary["tiny"][SELF_FLOW]["metrics"].keys()
    assert "held-out loss" in page(tier, results, summary, figures(tier, results, summary), ["a fact"])
    made_at = (prepared / "clips.npz").stat().st_mtime_ns
    assert prepare_manifest(clips, cfg, tier.held_out, tmp_path / "out") == prepared
    assert (prepared / "clips.npz").stat().st_mtime_ns == made_at
    (tmp_path / "clips" / "0.mp4").unlink()
    others = prepare_manifest(clips, cfg, tier.held_out, tmp_path / "out")
    assert others != prepared  # so no run goes on with other clips
    with pytest.raises(UserError, match=r"can be held out .* 100 and 4 are needed; give mo"):
        prepare_manifest(clips, cfg, 100, tmp_path / "out")


ROOT = Path(__file__).parents[2]
POOL = """
import os, sys, time
from benchmarks.experiment.run_arms import pool_of

if __name__ == "__main__":
    with pool_of(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_a_killed_experiment_leaves_no_process_behind(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tokenizers")])}
    parent = subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=60)
    # One that begins when its parent has ended already.
    late = get_context("spawn").Process(target=_end_with_parent, args=(parent.pid,))
    late.start()
    late.join()
    assert late.exitcode == 1
