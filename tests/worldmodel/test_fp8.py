"""FP8 products of the blocks, emulated on the CPU: which layers, what rounding, what it costs in loss."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ray_jobs import models
from ray_jobs.errors import UserError
from tests.worldmodel.synthetic import make_batch, open_gates, open_model, stream_of, tiny_config, tiny_layout
from worldmodel.config import RunConfig
from worldmodel.draw import draw
from worldmodel.load_config import ConfigError, load_config
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.engine import PlainEngine
from worldmodel.train.fp8 import turn_to_fp8
from worldmodel.train.loop import Hooks, train

pytest.importorskip("torchao", reason="FP8 needs torchao, for which .ci/run has a folder")

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
E4M3_LARGEST = 448.0


def of_8_bits(values: Tensor) -> Tensor:
    """To e4m3 with one scale for all and back, by PyTorch's own cast."""
    scale = E4M3_LARGEST / values.abs().max()
    return (values * scale).to(torch.float8_e4m3fn).float() / scale


def test_products_are_of_values_rounded_to_8_bits():
    cfg = tiny_config()
    layout = tiny_layout(cfg)
    plain = open_model(cfg, layout)
    turned = copy.deepcopy(plain)
    turn_to_fp8(turned, CPU)
    x_LD = torch.randn(10, cfg.model.width, generator=torch.Generator().manual_seed(1))
    linear = plain.blocks[1].feed_forward.video[0]
    ours = turned.blocks[1].feed_forward.video[0](x_LD)
    expected = of_8_bits(x_LD) @ of_8_bits(linear.weight).T + linear.bias
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, linear(x_LD), rtol=1e-4, atol=1e-5)


def test_only_what_has_many_rows_is_turned_and_names_stay():
    cfg = tiny_config()
    model = open_model(cfg, tiny_layout(cfg))
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    turned = turn_to_fp8(model, CPU)
    assert turned == [
        f"{block}.{layer}"
        for block in range(cfg.model.depth)
        for layer in (
            *("attention.qkv", "attention.out", "feed_forward.video.0", "feed_forward.video.2"),
            *("feed_forward.audio.0", "feed_forward.audio.2"),
        )
    ]
    kinds = {name: type(module).__name__ for name, module in model.blocks.named_modules()}
    assert {name for name, kind in kinds.items() if kind == "Float8Linear"} == set(turned)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before


def gradients(student: SelfFlowStudent, cfg: RunConfig, *, fp8: bool) -> dict[str, Tensor]:
    layout, student = tiny_layout(cfg), copy.deepcopy(student)
    teacher = copy.deepcopy(student.transformer).requires_grad_(False)
    if fp8:
        turn_to_fp8(student.transformer, CPU)
        turn_to_fp8(teacher, CPU)
    one = draw(make_batch(layout), layout, cfg.objective, SampleRandom(0, 0, (0, 1, 2, 3)))
    losses = self_flow_losses(student, teacher, one, cfg.objective, cfg.model.depth)
    losses.objective(one.counts(), cfg.objective).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def test_gradients_point_where_those_of_fp32_do():
    cfg = tiny_config()
    layout = tiny_layout(cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout), cfg.objective, cfg.data.targets)
    open_gates(student)
    exact, rounded = (gradients(student, cfg, fp8=fp8) for fp8 in (False, True))
    assert exact.keys() == rounded.keys()
    for name in (
        "transformer.blocks.0.attention.qkv.weight",
        "transformer.blocks.2.feed_forward.audio.0.weight",
    ):
        off = float((exact[name] - rounded[name]).norm() / exact[name].norm())
        assert 0.005 < off < 0.2, (name, off)  # e5m2 keeps two bits behind the first


def losses_of(steps: int, **settings: object) -> Iterator[float]:
    """Of velocities: where x is predicted, the few tokens that are nearly clean outweigh all others, and
    30 steps end 14 % apart by their chance."""
    cfg = tiny_config(objective={"prediction": "v"}, train={"steps": steps, **settings})
    layout = tiny_layout(cfg)
    engine, rows = PlainEngine(cfg, layout), list[dict[str, float]]()
    hooks = Hooks(commit=lambda step: None, on_row=rows.append)
    train(engine, stream_of(layout), cfg, layout, start_step=0, hooks=hooks)
    return (row["loss"] for row in rows)


def test_a_model_learns_in_8_bits_as_in_32():
    exact = list(losses_of(30))
    rounded = list(losses_of(30, fp8=True, recompute=True))
    first, last = (sum(exact[part]) for part in (slice(10), slice(-10, None)))
    assert last < 0.8 * first
    assert rounded != exact
    assert sum(rounded[-10:]) == pytest.approx(last, rel=0.02)


def test_a_model_too_narrow_and_a_gpu_without_units_are_told(monkeypatch):
    cfg = tiny_config(model={"width": 24, "head_dim": 8})
    model = open_model(cfg, tiny_layout(cfg))
    with pytest.raises(
        ValueError, match=r"no layer of the blocks has both sides a multiple of 16; set model.wi"
    ):
        turn_to_fp8(model, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(
        ValueError, match=r"needs a GPU with FP8 units .*, and NVIDIA A100 has 8\.0; set train"
    ):
        turn_to_fp8(model, torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ([], "set train.gather=step, train.recompute=true or train.zero_stage=2"),
        (["train.lora.rank=4", "train.init=bounce"], "not a LoRA; set train.fp8=false"),
    ],
)
def test_what_does_not_go_with_fp8_is_refused(also, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, ["train.fp8=true", *also])


def test_without_torchao_it_is_named_before_anything_starts(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train.fp8 needs torchao, .*; pip install 'torchao>=0.18'"):
        models.check_fp8(fp8=True)


@pytest.mark.slow
def test_under_zero_a_step_in_8_bits_is_the_plain_one_s(tmp_path):
    """By the script of the GPU, which checks itself on a CPU."""
    variants = ("plain", "plain_fp8", "zero_step_fp8", "zero_block_recomputed_fp8", "zero_stage_2_fp8")
    only = [word for variant in variants for word in ("--only", variant)]
    script = ROOT / "benchmarks" / "gpu" / "zero_on_gpu.py"
    paths = [str(ROOT), str(ROOT / "tokenizers"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "--smoke", *only, "--out", str(tmp_path / "out.json")],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    off = json.loads((tmp_path / "out.json").read_text())["largest_relative_difference"]
    assert 0 < off["plain_fp8"] < 0.05
    assert all(off[variant] < 1e-5 for variant in variants[2:]), off
