"""Shards of three ranks over gloo, whose pairs go round in a ring."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from worldmodel.train.exchange import Exchange

pytestmark = pytest.mark.slow  # processes of their own

RANKS, LENGTH = 3, 5


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    mine = torch.arange(LENGTH, dtype=torch.bfloat16) + 10 * rank
    exchange = Exchange(mine)
    found = {"gathered": {source: shard.tolist() for source, shard in exchange.gather(mine)}}
    pieces = torch.arange(RANKS * LENGTH, dtype=torch.float32).view(RANKS, LENGTH) * (rank + 1)
    found["sum"] = Exchange(pieces[0]).reduce_scatter(pieces).tolist()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_each_rank_gets_all_shards_and_the_sum_of_its_own_row(tmp_path):
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=RANKS)
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["gathered"] == {r: [10.0 * r + i for i in range(LENGTH)] for r in range(RANKS)}
        assert next(iter(found["gathered"])) == rank
        assert found["sum"] == [6.0 * (rank * LENGTH + i) for i in range(LENGTH)]  # 1 + 2 + 3 times
