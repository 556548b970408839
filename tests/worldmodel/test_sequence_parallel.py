"""Several ranks that share each clip's tokens compute what one does, and their gradients add up to its."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worldmodel.sequence_ranks import losses_and_gradients, rows_of_training, shared_config
from tests.worldmodel.synthetic import stream_of, tiny_config, tiny_layout
from worldmodel.model.sequence_parallel import SequenceGroup
from worldmodel.train.checkpoint import CheckpointReader
from worldmodel.train.engine import PlainEngine

pytestmark = pytest.mark.slow  # two more processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[Any, Any]]:
    """What each of two ranks computed."""
    command = [sys.executable, "-m", "tests.worldmodel.sequence_ranks"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tokenizers'}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder)], cwd=ROOT, env={**env, "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("recompute", [False, True])
def test_losses_are_those_of_one_rank_and_gradients_add_up_to_its(ranks, recompute):
    alone = losses_and_gradients(None, recompute=recompute)
    for rank in ranks:
        torch.testing.assert_close(rank[recompute]["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
    for name, expected in alone["gradients"].items():
        parts = [rank[recompute]["gradients"][name] for rank in ranks]
        assert (sum(parts) - expected).norm() <= 1e-5 * expected.norm(), name
    moved = [gradient.norm() > 0 for gradient in alone["gradients"].values()]
    assert sum(moved) > 0.9 * len(moved)
    shares = [rank[recompute]["gradients"]["transformer.blocks.0.attention.qkv.weight"] for rank in ranks]
    assert not torch.allclose(shares[0], shares[1])  # each has its own tokens


def test_training_with_shared_clips_is_training_without_and_counts_each_once(ranks, folder):
    cfg = shared_config(1)
    engine = PlainEngine(cfg, tiny_layout(cfg))
    alone = rows_of_training(engine, cfg, stream_of(tiny_layout(cfg)))
    for rank in ranks:
        assert len(rank["rows"]) == len(alone)
        for ours, theirs in zip(rank["rows"], alone, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours.keys() - {"step_s", "tokens_per_s", "flops_per_s", "stall_fraction"}:
                assert ours[name] == pytest.approx(theirs[name], rel=2e-4, abs=1e-6), name
    whole = CheckpointReader(folder)
    for name, shard in engine.shards().items():
        assert torch.allclose(whole.whole("weight", name).flatten(), shard.parts["weight"], atol=2e-5), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": {"sequence_parallel": 2, "workers": 3}}, r"does not divide the 3 workers .*; use 1"),
        # What is named goes with the 2 heads and the chunks too.
        ({"train": {"sequence_parallel": 6, "workers": 9}}, r"does not divide the 9 workers .*; use 1"),
        ({"train": {"sequence_parallel": 8, "workers": 12}}, r"does not divide the 12 workers .*; use 2"),
        ({"model": {"head_dim": 32}}, r"does not divide the 1 attention heads"),
        ({"data": {"clip_s": 0.75}}, r"does not divide the 3 chunks of a clip of 0\.75 s; use 1"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_can(settings, said):
    train = {"sequence_parallel": 2, "workers": 2} | settings.get("train", {})
    with pytest.raises(ValueError, match=said):
        tiny_config(**{**settings, "train": train})


def test_chunks_that_do_not_divide_are_refused_with_the_number_of_ranks():
    layout = tiny_layout(tiny_config())
    with pytest.raises(ValueError, match=r"2 chunks .* do not divide among train\.sequence_parallel=3 ranks"):
        SequenceGroup(None, 0, 3).part(layout)
