"""Several ranks that share each clip's tokens compute what one does, and their gradients add up to its."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worldmodel.sequence_ranks import losses_and_gradients
from tests.worldmodel.synthetic import tiny_config, tiny_layout
from worldmodel.model.sequence_parallel import SequenceGroup

pytestmark = pytest.mark.slow  # two more processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[bool, Any]]:
    """What each of two ranks computed."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.worldmodel.sequence_ranks"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tokenizers'}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], cwd=ROOT, env=env) for rank in range(2)
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


def test_chunks_that_do_not_divide_are_refused_with_the_number_of_ranks():
    layout = tiny_layout(tiny_config())
    with pytest.raises(ValueError, match=r"2 chunks .* do not divide among train\.sequence_parallel=3 ranks"):
        SequenceGroup(None, 0, 3).part(layout)
