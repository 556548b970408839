"""Autoencoders of others train through the same config: only codec.video and codec.audio differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avtok.decode import decode_clip
from avtok.load import load_codec
from avtok.mux import write_clip
from ray_jobs.dataset import local_stream
from ray_jobs.index import index_sources
from ray_jobs.plan import Plan, make_plan
from ray_jobs.stages import EncodeBatch
from ray_jobs.tokenizer_measure import measure_folder
from ray_jobs.train_worker import layout_of
from tests.avtok.small_autoencoders import encodec, image, wan
from worldmodel.config import RunConfig
from worldmodel.load_config import load_config
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import Hooks, train
from worldmodel.worlds.bounce import BounceSettings, simulate

START_S = 2.5  # long enough for the context that Wan wants


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 1 s, each cut out of a longer file."""
    folder = tmp_path_factory.mktemp("cut")
    lines = []
    for seed in range(4):
        episode = simulate(BounceSettings(), seed=seed, duration_s=START_S + 1)
        path = folder / f"{seed}.mp4"
        write_clip(path, episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
        lines.append(json.dumps({"video": str(path), "start_s": START_S, "end_s": START_S + 1}))
    manifest = folder / "clips.jsonl"
    manifest.write_text("\n".join(lines), "utf-8")
    index_sources([str(manifest)], out=str(folder / "manifest.parquet"))
    return folder / "manifest.parquet"


def codec_of(make: Callable, folder: Path) -> str:
    torch.manual_seed(0)
    make().save_pretrained(str(folder))
    measure_folder(folder, fps=16, size_px=64)
    return f"pretrained:{folder}"


def prepared(source: Path, video: str, audio: str, *options: str) -> tuple[RunConfig, Plan]:
    cfg = load_config(
        None,
        [
            *(f"data.manifest={source}", "data.clip_s=1.0", "data.batch_clips=2", "data.held_out=0"),
            *(f"codec.video={video}", f"codec.audio={audio}"),
            *("model.depth=2", "model.width=32", "model.head_dim=16", "train.precision=fp32"),
            *("train.device=cpu", "train.steps=3", "train.micro_batches=2", "optim.warmup_steps=1"),
            *options,
        ],
    )
    return cfg, make_plan(str(source), cfg)


@pytest.mark.parametrize(
    ("make", "options"), [(wan, ()), (image, ("model.patch=[16,16]",))], ids=["wan", "image"]
)
def test_a_pretrained_pair_trains_on_clips_by_config_alone(make, options, source: Path, tmp_path: Path):
    codecs = codec_of(make, tmp_path / "video"), codec_of(encodec, tmp_path / "audio")
    cfg, plan = prepared(source, *codecs, *options)
    layout = layout_of(cfg)
    engine = PlainEngine(cfg, layout)
    before = {name: weight.clone() for name, weight in engine.master.items()}
    rows = []
    hooks = Hooks(commit=lambda step: None, on_row=rows.append)
    train(engine, local_stream(plan, cfg, start_step=0, end_step=3), cfg, layout, start_step=0, hooks=hooks)
    losses = [row[key] for row in rows for key in ("loss_video", "loss_audio")]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    assert min(losses) > 0
    moved = [name for name, weight in engine.master.items() if not torch.equal(weight, before[name])]
    assert any("video" in name for name in moved)
    assert any("audio" in name for name in moved)


def test_a_cut_is_nearly_the_same_cut_of_the_whole_clip(source: Path, tmp_path: Path):
    codecs = codec_of(wan, tmp_path / "video"), codec_of(encodec, tmp_path / "audio")
    cfg, plan = prepared(source, *codecs)
    encode, sample = EncodeBatch(plan, cfg), plan.sample(0)
    context = encode.video.spec.left_context_units
    assert 0 < context <= START_S * 16
    found = encode.encode(0)
    assert found.reason == ""
    assert found.arrays["video_valid"].all()
    whole = decode_clip(sample.uri, start_s=0, end_s=sample.end_s, fps=16, size=(64, 64), sample_rate=16000)
    expected = load_codec(codecs[0]).encode(whole.video_THWC)[-4:].numpy()
    alone = load_codec(codecs[0]).encode(whole.video_THWC[-16:]).numpy()
    with_context, without = (
        float(np.square(latents - expected).mean() ** 0.5) for latents in (found.arrays["video"], alone)
    )
    assert 10 * with_context < without  # what is left reaches further back than the ten probed steps
