"""Training meets bad clips, killed workers and Ctrl-C, and loses nothing that was committed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from PIL import Image
from ray.train.torch import TorchTrainer
from typer.testing import CliRunner

from avtok.decode import probe
from avtok.mux import write_clip
from ray_jobs.cli import app
from ray_jobs.cluster import connect, tasks_at_once
from ray_jobs.errors import JobError, UserError
from ray_jobs.export import load_exported
from ray_jobs.lean_trainer import UNUSED, UNUSED_ON_ONE_NODE, LeanTrainer
from ray_jobs.plan import Plan
from ray_jobs.rollout import Prompt, RolloutActor, run_rollouts
from ray_jobs.run_folder import SNAPSHOT, RunFolder, last_commit
from ray_jobs.train import prepare, run_training
from ray_jobs.train_and_report import train_and_report
from tests.ray_jobs.faulty_runs import (
    EVERY,
    STEPS,
    Ended,
    Runs,
    assert_books_close,
    break_file,
    config,
    evaluations,
    final_losses,
    steps_of,
    until,
)
from worldmodel.pipeline import WorldModelPipeline
from worldmodel.train.checkpoint import CheckpointReader, shard_name
from worldmodel.worlds.bounce import BounceSettings, simulate

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_GOOD = 12
KILLED_AT = 2 * EVERY + 2
CPUS = 8


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    episodes = [simulate(BounceSettings(), seed=seed, duration_s=1.0) for seed in range(NUM_GOOD)]
    for i, episode in enumerate(episodes):
        path = folder / f"good_{i:02d}.mp4"
        write_clip(path, episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
    first = episodes[0]
    write_clip(folder / "no_sound.mp4", first.video_THWC[::-1], None, fps=16, sample_rate=16000)
    write_clip(folder / "no_picture.mp4", None, first.audio_N[::-1].copy(), fps=16, sample_rate=16000)
    for name, seed in (("half.mp4", 90), ("head.mp4", 91)):
        episode = simulate(BounceSettings(), seed=seed, duration_s=1.0)
        write_clip(folder / name, episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
    half = (folder / "half.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(half[: len(half) // 2])
    break_file(folder / "head.mp4")
    return folder


@pytest.fixture(scope="module")
def runs(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    storage = tmp_path_factory.mktemp("runs")
    whole, chain = config(storage, "whole", clips), config(storage, "chain", clips)
    _, plan, _ = prepare(whole, "pytest")
    assert prepare(chain, "pytest")[1].hash == plan.hash
    uris = [plan.sample(i).uri for i in range(plan.num_train)]
    broken = Path(next(uri for uri in uris if "good_" in uri))
    break_file(broken)
    return Runs(whole, chain, broken)


@pytest.fixture(scope="module")
def interrupted(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """`worldmodel train` of which a worker is killed, that goes on by itself, and that gets Ctrl-C then."""
    run, output = RunFolder(runs.chain).path, tmp_path_factory.mktemp("output")
    command = [sys.executable, "-m", "ray_jobs.cli", "train", str(run / "config.yaml"), "--json"]
    failpoint = {"WORLDMODEL_FAILPOINT": f"kill:rank1:step{KILLED_AT}", "OMP_NUM_THREADS": "1"}
    with (output / "out").open("w") as out, (output / "err").open("w") as err:
        process = subprocess.Popen(
            command, env={**os.environ, **failpoint}, stdout=out, stderr=err, start_new_session=True
        )
        while process.poll() is None and steps_of(run).get(2, [0])[-1] < KILLED_AT + 2:
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver's whole group
        code = process.wait()
    commit = last_commit(run)
    step = int(CheckpointReader(commit).model["step"]) if commit else -1
    return Ended(code, (output / "out").read_text(), (output / "err").read_text(), step)


@pytest.fixture(scope="module")
def cluster(interrupted: Ended) -> Iterator[None]:
    """Starts when the command that had a cluster of its own is done: two at once would only be slow."""
    connect(num_cpus=CPUS)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def whole(cluster: None, runs: Runs) -> Path:
    """Two workers from the first step to the last, rollouts and report."""
    trained, _ = train_and_report(runs.whole, command="pytest", say=lambda stage, info: None)
    assert (trained.status, trained.attempts) == ("finished", 1)
    return trained.run


@pytest.fixture(scope="module")
def chain(cluster: None, runs: Runs, interrupted: Ended) -> Runs:
    """The interrupted run goes on with one worker, gets SIGTERM, and ends with two, sharing clips."""

    def end_once(stage: str, info: dict[str, Any]) -> None:
        if stage == "train" and not ended:
            ended.append(info["step"])
            os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler does, to the driver alone

    ended: list[int] = []
    one_worker = runs.chain.model_copy(update={"train": runs.chain.train.model_copy(update={"workers": 1})})
    runs.trained.append(run_training(one_worker, command="pytest", progress=end_once))
    assert_books_close(runs.chain, step=runs.trained[0].step)
    shared = runs.chain.train.model_copy(update={"sequence_parallel": 2})
    runs.trained.append(run_training(runs.chain.model_copy(update={"train": shared}), command="pytest"))
    return runs


def test_a_killed_worker_is_replaced_and_ctrl_c_commits_says_how_to_go_on_and_exits_with_130(
    runs, interrupted
):
    run = RunFolder(runs.chain).path
    assert interrupted.code == 130, interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert "resume with the same command: worldmodel train" in interrupted.stderr
    said = json.loads(interrupted.stdout)
    assert (said["status"], said["step"], said["run"]) == ("stopped", interrupted.step, str(run))
    steps = steps_of(run)
    assert steps[1][0] == 0
    assert 2 * EVERY <= steps[1][-1] < KILLED_AT  # the kill came soon after the second commit,
    assert steps[2][0] in (EVERY, 2 * EVERY)  # which Ray may or may not have entered into its list by then
    assert steps[2] == list(range(steps[2][0], interrupted.step))  # from the commit on, each step once
    assert_books_close(runs.chain, step=interrupted.step)


def test_the_same_command_goes_on_with_the_next_unseen_sample_at_any_number_of_workers(chain, interrupted):
    one, two = chain.trained
    assert (one.status, two.status) == ("stopped", "finished")
    steps = steps_of(one.run)
    assert steps[3] == list(range(interrupted.step, one.step))
    assert steps[4] == list(range(one.step, STEPS))
    found = assert_books_close(chain.chain, step=STEPS)
    assert found["remaining"] == 0
    assert all(epoch["remaining"] == 0 for epoch in found["epochs"][:-1])


def test_a_run_killed_stopped_and_resliced_2_1_2_ends_where_an_undisturbed_one_does(whole, chain):
    undisturbed, disturbed = final_losses(whole), final_losses(chain.trained[-1].run)
    assert undisturbed.keys() == disturbed.keys() == set(range(STEPS))
    for step, loss in undisturbed.items():
        assert disturbed[step] == pytest.approx(loss, rel=1e-3), step
    commits = [last_commit(run) for run in (whole, chain.trained[-1].run)]
    left, right = (CheckpointReader(commit) for commit in commits if commit)
    moved = [
        (left.whole(kind, name), right.whole(kind, name))
        for kind, names in (("weight", left.model["shapes"]), ("ema", [*left.ema_weights()]))
        for name in ((n if kind == "weight" else f"transformer.{n}") for n in names)
    ]
    apart = torch.cat([(a - b).flatten() for a, b in moved]).norm()
    assert apart < 1e-3 * torch.cat([a.flatten() for a, _ in moved]).norm()


def test_clips_without_sound_or_picture_train_and_broken_ones_are_in_the_books_and_in_the_report(whole, runs):
    plan = Plan.load(RunFolder(runs.whole).plan)
    planned = {Path(plan.sample(i).uri).name: plan.sample(i) for i in range(plan.num_samples)}
    assert not planned["no_sound.mp4"].has_sound
    assert not planned["no_picture.mp4"].has_video
    assert 0 < planned["half.mp4"].valid_s < 1.0  # truncated: used as far as it is whole
    assert "head.mp4" not in planned
    found = assert_books_close(runs.whole, step=STEPS)
    ((uri, reason),) = [(row["uri"], row["reason"]) for row in found["quarantined"]]
    assert Path(uri) == runs.broken
    assert reason
    (left_out,) = found["left_out"]
    assert Path(left_out["uri"]).name == "head.mp4"
    assert left_out["reason"]
    page = (whole / "report.html").read_text()
    for row in (*found["quarantined"], *found["left_out"]):
        assert row["uri"] in page


def test_a_finished_run_is_not_trained_again(whole, runs):
    before = (whole / "metrics.jsonl").read_bytes()
    again = run_training(runs.whole, command="pytest")
    assert (again.status, again.step, again.attempts) == ("finished", STEPS, 0)
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_lora_is_trained_by_the_same_job_and_exported_merged_and_apart(whole, runs, clips):
    adapted = {"init": str(whole), "lora": {"rank": 2}, "steps": 4, "checkpoint_every": 2, "keep_best": False}
    cfg = config(Path(runs.whole.storage), "lora", clips, train=adapted)
    trained = run_training(cfg, command="pytest")
    assert (trained.status, trained.step) == ("finished", 4)
    export, base = trained.run / "export", load_exported(whole / "export").model.state_dict()
    merged = load_exported(export).model.state_dict()
    changed = [name for name, value in merged.items() if not torch.equal(value, base[name])]
    assert changed
    pipe = WorldModelPipeline.from_pretrained(whole)
    pipe.load_lora(export)
    assert all(torch.equal(value, merged[name]) for name, value in pipe.model.state_dict().items())
    assert f"| LoRA | rank 2, on {whole} |" in (export / "README.md").read_text()


def test_the_models_card_says_what_it_was_trained_on_and_how_good_it_is(whole):
    card = (whole / "export" / "README.md").read_text()
    accounting = json.loads((whole / "accounting.json").read_text())
    last = evaluations(whole)[-1]
    for fact in (
        f"| steps | {STEPS} |",
        "| objective | Self-Flow (EMA teacher) |",
        f"{accounting['consumed']} of {accounting['planned']} clips, 1 could not be used, ",
        f"picture {last['eval_video']:.4g}, sound {last['eval_audio']:.4g} after {STEPS} steps",
        "minutes on 2 workers",
        "deepspeed ",
        "| freeze | ",
    ):
        assert fact in card, card


def test_the_best_commit_is_kept_and_can_be_exported(whole, tmp_path):
    done = CliRunner().invoke(app, ["export", str(whole), "--best", "--out", str(tmp_path / "best")])
    assert done.exit_code == 0, done.output
    about = json.loads((whole / "best" / "best.json").read_text())
    step = int(about["commit"].split("-")[1])
    (row,) = [row for row in evaluations(whole) if row["step"] == step]
    assert about["held_out_error"] == row["eval_video"] + row["eval_audio"]
    assert about["held_out_error"] == min(r["eval_video"] + r["eval_audio"] for r in evaluations(whole))


def test_rollouts_depend_on_their_seed_and_not_on_who_shares_the_actor(whole, runs, tmp_path):
    folder, rollout = RunFolder(runs.whole), runs.whole.rollout
    plan = Plan.load(folder.plan)
    first = json.loads((folder.rollouts / "rollouts.json").read_text())
    ids = [row["sample_id"] for row in first]
    assert len(ids) >= 2

    def digests(seed: int) -> list[str]:
        rows = run_rollouts(folder.export, plan, ids, out=tmp_path, rollout=rollout, seed=seed)
        return [row["latents_sha256"] for row in rows]

    assert digests(runs.whole.seed) == [row["latents_sha256"] for row in first]
    assert not set(digests(runs.whole.seed + 1)) & {row["latents_sha256"] for row in first}

    actor = RolloutActor(str(folder.export), plan, rollout, str(tmp_path))
    prompts = [Prompt(sample_id, seed=sample_id) for sample_id in ids]
    _, together = actor.generate(prompts)
    for i, prompt in enumerate(prompts):
        _, alone = actor.generate([prompt])
        assert torch.allclose(together.video[i], alone.video[0], atol=1e-3)
        assert torch.allclose(together.audio[i], alone.audio[0], atol=1e-3)


def test_rollouts_of_a_model_without_sound_are_files_without_it(whole, runs, tmp_path):
    folder = RunFolder(runs.whole)
    plan = Plan.load(folder.plan)
    (first, *_) = json.loads((folder.rollouts / "rollouts.json").read_text())
    actor = RolloutActor(str(folder.export), plan, runs.whole.rollout, str(tmp_path))
    objective = actor.cfg.objective.model_copy(update={"picture_alone": 1.0})
    for has_sound in (True, False):
        (row,) = actor.run([Prompt(first["sample_id"], seed=1)])
        assert probe(str(tmp_path / row["rollout"])).has_audio == has_sound
        actor.cfg = actor.cfg.model_copy(update={"objective": objective})


def test_clips_of_ones_own_are_continued_by_a_command_as_files_and_a_picture(whole, clips, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in ("good_10.mp4", "good_11.mp4"):
        shutil.copy(clips / name, prompts)
    out = tmp_path / "rollouts"
    lengths = ["--prefix", "0.5", "--seconds", "0.5", "--steps", "2"]
    command = ["rollout", str(whole), "--prompts", str(prompts), "--out", str(out), *lengths, "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert [Path(row["source"]).name for row in said["rollouts"]] == ["good_10.mp4", "good_11.mp4"]
    assert all((out / row["rollout"]).stat().st_size for row in said["rollouts"])
    with Image.open(said["picture"]) as picture:
        assert picture.width > 1000


def test_more_bad_clips_than_allowed_end_the_job_with_the_rate_and_a_commit(cluster, clips, tmp_path):
    copies = tmp_path / "copies"
    shutil.copytree(clips, copies, ignore=shutil.ignore_patterns("h*.mp4"))
    cfg = config(tmp_path, "rotten", copies, data={"max_quarantine_rate": 0.2})
    _, plan, _ = prepare(cfg, "pytest")
    for i in range(0, plan.num_train, 2):
        break_file(Path(plan.sample(i).uri))
    with pytest.raises(
        JobError, match=r"clips could not be used, more than data\.max_quarantine_rate=0\.2"
    ) as e:
        run_training(cfg, command="pytest")
    assert e.value.exit_code == 1
    commit = last_commit(tmp_path / "rotten")
    assert commit is not None
    assert f"last commit: {commit.name}; resume with" in e.value.lines[1]
    found = assert_books_close(cfg, step=int(CheckpointReader(commit).model["step"]))
    assert len(found["quarantined"]) >= 0.2 * plan.num_train


def test_too_few_cpus_are_refused_with_the_number_that_fits_and_leave_no_folder(cluster, clips, tmp_path):
    cfg = config(tmp_path, "wide", clips, train={"workers": 9})
    with pytest.raises(
        UserError, match=rf"needs 13\.5, the cluster has {CPUS}; use train\.workers=5$"
    ) as error:
        run_training(cfg, command="pytest")
    assert error.value.exit_code == 2
    assert not (tmp_path / "wide").exists()


def test_clips_that_cannot_be_made_end_the_job_at_once_and_its_waiting_workers_leave(cluster, tmp_path):
    cfg = config(tmp_path, "unmade", tmp_path / "clips")

    def make_source() -> None:
        until(lambda: ray.available_resources().get("CPU", 0) < CPUS, "the workers to start")
        raise UserError("no clip could be rendered")

    with pytest.raises(UserError, match="no clip could be rendered"):
        run_training(cfg, command="pytest", make_source=make_source)
    until(lambda: ray.available_resources().get("CPU", 0) == CPUS, "the workers to leave")
    assert not (tmp_path / "unmade" / "metrics.jsonl").exists()


def test_ray_train_starts_only_the_helpers_that_this_job_calls(cluster):
    names = [
        {type(callback).__name__ for callback in trainer(lambda: None)._create_default_callbacks()}
        for trainer in (TorchTrainer, LeanTrainer)
    ]
    assert names[0] - names[1] == UNUSED | UNUSED_ON_ONE_NODE  # red when Ray renames one of them
    assert names[1]


def test_a_machine_that_counts_more_cpus_than_it_has_gets_a_task_for_each_real_core(cluster):
    assert tasks_at_once() == min(CPUS, psutil.cpu_count() or 1)


def test_a_checkpoint_of_another_model_is_refused_in_words(whole, runs, clips, tmp_path):
    cfg = config(tmp_path, "other", clips, model={"width": 96})
    folder, _, _ = prepare(cfg, "pytest")
    shutil.copytree(whole / "checkpoints", folder.path / "checkpoints")
    for name in (SNAPSHOT, "plan.parquet", "manifest.parquet"):
        shutil.copy(whole / name, folder.path / name)
    cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"steps": STEPS + 1})})
    folder.claim(cfg, "pytest")
    with pytest.raises(
        JobError, match=r"checkpoint of another model: .*saved \(128,\), this model \(192,\)"
    ) as e:
        run_training(cfg, command="pytest")
    assert e.value.exit_code == 1
    assert steps_of(folder.path) == {}


def test_a_damaged_shard_of_any_rank_ends_the_job_at_once_and_is_named(whole, runs, clips, tmp_path):
    """Rank 1 alone reads it, while rank 0 waits for it in a collective that takes half an hour to give up."""
    cfg = config(tmp_path, "damaged", clips)
    folder, _, _ = prepare(cfg, "pytest")
    shutil.copytree(whole / "checkpoints", folder.path / "checkpoints")
    for name in (SNAPSHOT, "plan.parquet", "manifest.parquet"):
        shutil.copy(whole / name, folder.path / name)
    commit = last_commit(folder.path)
    assert commit is not None
    shard = commit / shard_name(1, 2)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"steps": STEPS + 1})})
    folder.claim(cfg, "pytest")
    with pytest.raises(JobError, match=rf"{shard_name(1, 2)}: changed since it was written") as e:
        run_training(cfg, command="pytest")
    assert e.value.lines[1] == f"last commit: {commit.name}; then start the same command again"
    assert steps_of(folder.path) == {}
