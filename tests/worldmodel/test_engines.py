"""ZeRO-3 on two gloo ranks against one plain process; checkpoints that re-slice or do not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.worldmodel.synthetic import make_batch, stream_of, tiny_config, tiny_layout
from tests.worldmodel.zero_ranks import COMMIT_AT, STEPS, parity_config
from worldmodel.train.checkpoint import (
    CheckpointMismatch,
    CheckpointReader,
    Snapshot,
    load_checkpoint,
    shard_name,
    write_checkpoint,
)
from worldmodel.train.engine import KINDS, TEACHER_PREFIX, PlainEngine, slice_of_rank
from worldmodel.train.loop import Hooks, train
from worldmodel.train.zero_engine import ZeroEngine

pytestmark = pytest.mark.slow  # two more processes import torch and DeepSpeed

ROOT = Path(__file__).parents[2]


def plain_run(folder: Path) -> list[dict[str, float]]:
    """The reference: eight steps in one process, a checkpoint, two more in bf16."""
    cfg = parity_config()
    layout = tiny_layout(cfg)
    engine = PlainEngine(cfg, layout)
    rows: list[dict[str, float]] = []
    calls = iter(range(STEPS + 1))
    hooks = Hooks(
        commit=lambda step: write_checkpoint(folder / "one", engine, step, {}),
        on_row=rows.append,
        should_stop=lambda: next(calls) == COMMIT_AT,
    )
    (folder / "one").mkdir()
    train(engine, stream_of(layout, buckets=True), cfg, layout, start_step=0, hooks=hooks)
    held_out = [make_batch(layout, number=100 + rank) for rank in range(2)]
    hooks = Hooks(commit=lambda step: None, on_row=rows.append, evaluation=lambda: held_out)
    cfg = parity_config("bf16")
    engine = PlainEngine(cfg, layout)
    load_checkpoint(folder / "one", engine)
    train(
        engine,
        stream_of(layout, start=COMMIT_AT, buckets=True),
        cfg,
        layout,
        start_step=COMMIT_AT,
        hooks=hooks,
    )
    return rows


def write_other_model(folder: Path) -> None:
    cfg = tiny_config(model={"mlp_ratio": 2.0})
    folder.mkdir()
    write_checkpoint(folder, PlainEngine(cfg, tiny_layout(cfg)), 1, {})


def run_ranks(
    folder: Path, world_size: int, gather: str, module: str = "tests.worldmodel.zero_ranks"
) -> list[dict[str, Any]]:
    """What each rank of ZeroEngine reports."""
    ranks = []
    for rank in range(world_size):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "OMP_NUM_THREADS": "1",
        }
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tokenizers"), env.get("PYTHONPATH", "")])
        command = [
            sys.executable,
            "-m",
            module,
            str(rank),
            str(world_size),
            str(folder),
            gather,
        ]
        log = (folder / f"rank-{rank}.log").open("w")
        ranks.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT))
    try:
        for rank, process in enumerate(ranks):
            if process.wait(timeout=300) != 0:
                pytest.fail(f"rank {rank} failed:\n{(folder / f'rank-{rank}.log').read_text()[-3000:]}")
    finally:
        for process in ranks:
            process.kill()
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(world_size)]


@pytest.fixture(scope="module", params=["block", "step"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs both engines once each way of gathering: folder, plain rows, and what each rank reports."""
    folder = tmp_path_factory.mktemp("engines")
    rows = plain_run(folder)
    write_other_model(folder / "other")
    results = run_ranks(folder, 2, request.param)
    return {"folder": folder, "plain": rows, "zero": results, "gather": request.param}


def test_losses_of_two_ranks_equal_those_of_one_process(both):
    plain, zero = both["plain"][:COMMIT_AT], both["zero"][0]["rows"]
    assert [row["step"] for row in zero] == list(range(COMMIT_AT))
    norms = [f"grad_norm_{part}" for part in ("video", "audio", "shared")]
    for key in ("loss", "loss_video", "loss_audio", "align_video", "align_audio", "grad_norm", *norms):
        assert [row[key] for row in zero] == pytest.approx([row[key] for row in plain], rel=1e-3)
    for row in (*plain, *zero):
        if "grad_norm" in row:
            assert math.hypot(*(row[key] for key in norms)) == pytest.approx(row["grad_norm"], rel=1e-4)
            assert min(row[key] for key in norms) > 0
    # Rank 1 had no audio in step 2: the means are over the tokens of both ranks.
    tokens = [row["tokens_audio"] for row in zero]
    assert tokens[2] <= 4 * 8 < max(tokens)  # 4 clips of 8 audio tokens on each rank
    assert tokens == [row["tokens_audio"] for row in plain]


@pytest.mark.slow
def test_one_rank_whose_weights_nobody_gathers_trains_like_one_process(tmp_path):
    plain = plain_run(tmp_path)
    write_other_model(tmp_path / "other")
    (zero,) = run_ranks(tmp_path, 1, "step")
    assert zero["status"] == "finished"  # only a second rank asks to stop
    for key in ("loss", "grad_norm"):
        expected = [row[key] for row in plain[:COMMIT_AT]]
        assert [row[key] for row in zero["rows"][:COMMIT_AT]] == pytest.approx(expected, rel=1e-3)
    assert zero["whole_between_steps"] == [True]
    assert zero["ema_max_difference"] < 1e-6 < 1e-3 < zero["ema_moved"]


def test_ranks_report_the_same_rows_and_stop_together_when_one_is_asked(both):
    first, second = both["zero"]
    for row, other in zip(first["rows"], second["rows"], strict=True):
        assert (row["loss"], row["grad_norm"]) == (other["loss"], other["grad_norm"])
    assert (first["status"], first["step"]) == (second["status"], second["step"]) == ("stopped", COMMIT_AT)


def test_the_sharded_average_equals_the_gathered_reference_and_moves(both):
    for result in both["zero"]:
        assert result["ema_max_difference"] < 1e-6
        assert result["ema_moved"] > 1e-3


def test_weights_are_whole_between_steps_where_they_are_gathered_once_a_step(both):
    # Else each use would gather its own parameter: right, and slow.
    for result in both["zero"]:
        assert result["whole_between_steps"] == [both["gather"] == "step"]


def test_two_ranks_store_the_weights_moments_and_average_of_one_process(both):
    one, two = CheckpointReader(both["folder"] / "one"), CheckpointReader(both["folder"] / "two")
    assert one.model["shapes"] == two.model["shapes"]
    for kind in KINDS:
        for name in one.model["shapes"]:
            if kind != "ema" or name.startswith(TEACHER_PREFIX):
                ours, theirs = one.whole(kind, name), two.whole(kind, name)
                assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-4), f"{kind}/{name}"


def test_a_checkpoint_resliced_from_one_to_two_and_back_keeps_every_byte(both, tmp_path):
    folder, cfg = both["folder"], parity_config()
    assert sorted(p.name for p in (folder / "two_from_one").iterdir()) == [
        "model.json",
        *(f"shard-0000{rank}-of-00002.{kind}" for rank in range(2) for kind in ("safetensors", "sha256")),
    ]
    engine = PlainEngine(cfg, tiny_layout(cfg))
    assert load_checkpoint(folder / "two_from_one", engine) == COMMIT_AT
    write_checkpoint(tmp_path, engine, COMMIT_AT, {})
    before, after = (
        load_file(str(folder / "one" / shard_name(0, 1))),
        load_file(str(tmp_path / shard_name(0, 1))),
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.numpy().tobytes() == after[name].numpy().tobytes(), name
    assert any(name.startswith("exp_avg_sq/head.") and tensor.any() for name, tensor in before.items())


def test_a_snapshot_is_of_the_moment_whatever_training_does_while_it_is_written(tmp_path):
    cfg = parity_config()
    layout = tiny_layout(cfg)
    engine = PlainEngine(cfg, layout)

    def train_until(step: int) -> None:
        calls, hooks = iter(range(step + 1)), Hooks(commit=lambda step: None)
        train(
            engine,
            stream_of(layout),
            cfg,
            layout,
            start_step=step - 1,
            hooks=dataclasses.replace(hooks, should_stop=lambda: next(calls) == 1),
        )

    train_until(1)
    write_checkpoint(make(tmp_path / "expected"), engine, 1, {})
    snapshot = Snapshot.of(engine)
    train_until(2)
    snapshot.write(make(tmp_path / "late"), 1, {})
    moved = make(tmp_path / "moved")
    snapshot.take(engine).write(moved, 2, {})  # the same memory again
    files = [sorted(file.name for file in folder.iterdir()) for folder in (tmp_path / "expected", moved)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (tmp_path / "late" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
        assert (moved / name).read_bytes() != (tmp_path / "expected" / name).read_bytes(), name


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_two_ranks_go_on_in_bf16_from_the_checkpoint_of_one(both):
    zero, plain = both["zero"][0]["resumed"], both["plain"][COMMIT_AT:]
    # Alignment shows whether the teacher was loaded too, evaluation whether all of it runs.
    for key in ("loss", "align_video", "align_audio", "eval_video", "eval_audio_history"):
        ours, theirs = ([row[key] for row in rows if key in row] for rows in (zero, plain))
        assert len(ours) == len(theirs) == STEPS - COMMIT_AT
        assert ours == pytest.approx(theirs, rel=1e-2)


def test_a_checkpoint_of_another_model_names_the_parameter(both):
    for result in both["zero"]:
        assert "checkpoint of another model: " in result["mismatch"]
        assert (
            "first transformer.blocks.0.feed_forward.audio.0.bias: saved (64,), this model (128,)"
            in result["mismatch"]
        )
        assert "use the config it was trained with or another name" in result["mismatch"]


@pytest.fixture
def damaged(both, tmp_path: Path) -> Path:
    """A copy of a checkpoint of two ranks, to be damaged."""
    for path in (both["folder"] / "two").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_missing_or_damaged_part_of_a_checkpoint_is_named(damaged):
    cfg = parity_config()
    engine = PlainEngine(cfg, tiny_layout(cfg))
    shard = damaged / shard_name(1, 2)
    content = shard.read_bytes()
    for cut in (0, 5, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:cut])
        damage = r"shard-00001-of-00002.safetensors: damaged or cut short .*; restore the file"
        with pytest.raises(CheckpointMismatch, match=damage):
            load_checkpoint(damaged, engine)
    shard.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])  # one bit of one weight
    changed = r"shard-00001-of-00002.safetensors: changed since it was written \(sha256 .*; restore the file"
    with pytest.raises(CheckpointMismatch, match=changed):
        load_checkpoint(damaged, engine)
    shard.with_suffix(".sha256").unlink()
    with pytest.raises(CheckpointMismatch, match=r"shard-00001-of-00002.sha256: missing; restore the file"):
        load_checkpoint(damaged, engine)
    shard.unlink()
    with pytest.raises(
        CheckpointMismatch, match=r"shard-00001-of-00002.safetensors: missing; restore the file"
    ):
        load_checkpoint(damaged, engine)
    (damaged / "model.json").write_text('{"step": ')
    with pytest.raises(CheckpointMismatch, match=r"model.json: damaged or cut short"):
        load_checkpoint(damaged, engine)
    (damaged / "model.json").write_text("{}")
    with pytest.raises(CheckpointMismatch, match=r"model.json: damaged .*no shapes, step, world_size"):
        load_checkpoint(damaged, engine)
    (damaged / "model.json").unlink()
    with pytest.raises(CheckpointMismatch, match=r"model.json: missing"):
        load_checkpoint(damaged, engine)


def test_slices_of_ranks_cover_a_parameter_once():
    for numel in (1, 2, 5, 64, 101):
        for world_size in (1, 2, 3, 8):
            spans = [slice_of_rank(numel, rank, world_size) for rank in range(world_size)]
            assert [i for start, end in spans for i in range(start, end)] == list(range(numel))


def test_zero_engine_without_a_process_group_says_what_to_use():
    cfg = tiny_config()
    with pytest.raises(ValueError, match="initialised first; use PlainEngine for one process"):
        ZeroEngine(cfg, tiny_layout(cfg), micro_batches=1)
