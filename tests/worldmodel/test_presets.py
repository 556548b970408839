"""Size presets: each is as large as its name says, and its tokens fit its codecs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from avtok.load import codec_spec
from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.load_config import load_config
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import WorldTransformer

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {"debug_cpu": 7e6, "av_25m": 25e6, "av_100m": 100e6, "av_300m": 300e6}
SIZES |= {"av_1b": 1e9, "av_2b": 2e9, "av_10b": 10e9}
WITHIN = 0.06


def preset(name: str) -> RunConfig:
    return load_config(CONFIGS / f"{name}.yaml", ["data.manifest=clips"])


def layout_of(cfg: RunConfig) -> Layout:
    return Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))


@pytest.mark.parametrize("name", SIZES)
def test_a_preset_has_the_parameters_of_its_name(name: str):
    cfg = preset(name)
    with torch.device("meta"):  # shapes only: ten billion parameters would take 40 GB
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout_of(cfg)))
    parameters = sum(parameter.numel() for parameter in student.transformer.parameters())
    assert parameters == pytest.approx(SIZES[name], rel=WITHIN)
    assert all(parameter.device.type == "meta" for parameter in student.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_a_presets_clip_fits_its_window_and_every_worker_has_work(name: str):
    cfg = preset(name)
    layout = layout_of(cfg)
    assert layout.num_chunks <= cfg.model.window_chunks + cfg.model.sink_chunks
    assert cfg.train.micro_batches % cfg.train.workers == 0  # an idle rank would run empty batches
    assert cfg.train.device == ("cpu" if name == "debug_cpu" else "cuda")


def test_presets_grow_in_every_dimension():
    configs = [preset(name) for name in SIZES]
    for smaller, larger in itertools.pairwise(configs):
        assert larger.model.depth > smaller.model.depth
        assert larger.model.width > smaller.model.width
        assert larger.optim.lr < smaller.optim.lr
