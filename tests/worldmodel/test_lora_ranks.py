"""A LoRA under ZeRO-3 on two gloo ranks against one plain process, for both ways of gathering."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.worldmodel.lora_ranks import COMMIT_AT, STEPS, lora_config, train_part
from tests.worldmodel.synthetic import open_model, tiny_config, tiny_layout
from tests.worldmodel.test_engines import run_ranks
from worldmodel.export import save_model
from worldmodel.train.checkpoint import CheckpointReader, load_checkpoint
from worldmodel.train.engine import KINDS, TEACHER_PREFIX, PlainEngine

pytestmark = pytest.mark.slow  # two more processes import torch and DeepSpeed


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The reference: three steps in one process, a checkpoint, one more in bf16."""
    folder = tmp_path_factory.mktemp("lora")
    cfg = tiny_config()
    layout = tiny_layout(cfg)
    save_model(folder / "base", open_model(cfg, layout).state_dict(), layout, cfg, {})
    cfg = lora_config(folder)
    rows = train_part(PlainEngine(cfg, layout), cfg, folder / "one", start=0)
    cfg = lora_config(folder, "bf16")
    engine = PlainEngine(cfg, layout)
    step = load_checkpoint(folder / "one", engine)
    return {"folder": folder, "rows": rows, "resumed": train_part(engine, cfg, None, start=step)}


@pytest.fixture(scope="module")
def ranks(plain: dict[str, Any]) -> list[dict[str, Any]]:
    return run_ranks(plain["folder"], 2, "block,step", module="tests.worldmodel.lora_ranks")


@pytest.fixture(params=["block", "step"])
def both(
    request: pytest.FixtureRequest, plain: dict[str, Any], ranks: list[dict[str, Any]]
) -> dict[str, Any]:
    return {**plain, "zero": [rank[request.param] for rank in ranks], "gather": request.param}


def values(rows: list[dict[str, float]], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def test_a_lora_of_two_ranks_learns_as_that_of_one_process(both):
    for result in both["zero"]:
        for key in ("loss", "align_video", "align_audio", "grad_norm", "eval_video", "eval_audio_history"):
            ours, theirs = values(result["rows"], key), values(both["rows"], key)
            assert len(ours) == COMMIT_AT
            assert ours == pytest.approx(theirs, rel=1e-3), key
    evaluated = values(both["rows"], "eval_video")
    assert abs(evaluated[-1] - evaluated[0]) > 1e-2 * evaluated[0]  # the average moves, and is what runs


def test_a_lora_of_two_ranks_goes_on_in_bf16_from_the_checkpoint_of_one(both):
    for key in ("loss", "align_video", "eval_video", "eval_audio_history"):
        ours, theirs = values(both["zero"][0]["resumed"], key), values(both["resumed"], key)
        assert len(ours) == STEPS - COMMIT_AT
        assert ours == pytest.approx(theirs, rel=1e-2), key


def test_two_ranks_store_the_adapters_of_one_process_and_no_base(both):
    one, two = (CheckpointReader(both["folder"] / name) for name in ("one", f"two-{both['gather']}"))
    assert one.model["shapes"] == two.model["shapes"]
    assert all(".lora_" in name or name.startswith("head.") for name in two.model["shapes"])
    for kind in KINDS:
        for name in one.model["shapes"]:
            if kind != "ema" or name.startswith(TEACHER_PREFIX):
                ours, theirs = one.whole(kind, name), two.whole(kind, name)
                assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-4), f"{kind}/{name}"


def test_student_and_teacher_share_the_frozen_base_alone(both):
    assert all(result["only_base_is_shared"] for result in both["zero"])
