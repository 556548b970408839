"""A tiny model whose gates are open, and synthetic batches that it can learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from avtok.spec import CodecSpec
from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.config import NoiseConfig, RunConfig, SelfFlowConfig
from worldmodel.flow import Levels, sample_levels
from worldmodel.layout import Layout
from worldmodel.model.block import Modulation
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom

torch.set_num_threads(1)

VIDEO_SPEC = CodecSpec("tiny-video", "video", 16, 4, 6, (8, 8))
AUDIO_SPEC = CodecSpec("tiny-audio", "audio", 16000, 1000, 5)


MANY = 3000
PLAIN_ROWS = NoiseConfig(history_rows=0, independent_rows=1, tied=0, independent=1)


def tiny_config(**parts: Any) -> RunConfig:
    """Depth 3, width 32, 32x32 pixels, chunks of 0.25 s; `model={...}` and other parts override."""
    values: dict[str, Any] = {
        "data": {"clip_s": 0.5, "size": [32, 32], "batch_clips": 4},
        "model": {
            "depth": 3,
            "width": 32,
            "head_dim": 16,
            "text_tokens": 4,
            "window_chunks": 3,
            "sink_chunks": 1,
            "action_dim": 2,
        },
        "optim": {"lr": 3e-3, "warmup_steps": 4, "ema_target": 0.9},
        "train": {"steps": 8, "precision": "fp32", "checkpoint_every": 100, "device": "cpu"},
    }
    for part, settings in parts.items():
        values[part] = {**values.get(part, {}), **settings} if isinstance(settings, dict) else settings
    return RunConfig.model_validate(values)


def tiny_layout(cfg: RunConfig) -> Layout:
    return Layout.from_specs(cfg, VIDEO_SPEC, AUDIO_SPEC)


def make_batch(layout: Layout, *, number: int = 0, clips: int = 4, has_audio: bool = True) -> LatentBatch:
    """Clips whose latents follow from two numbers each, so that there is something to learn."""
    generator = torch.Generator().manual_seed(number)
    steps, frames = layout.num_chunks * layout.video_steps, layout.num_chunks * layout.chunk_frames
    rows, columns = (grid * patch for grid, patch in zip(layout.video_grid, layout.patch, strict=True))
    amplitude_B2 = torch.randn(clips, 2, generator=generator)
    video = torch.linspace(-1, 1, layout.video_channels) * amplitude_B2[:, :1]
    video = video[:, None, None, None].expand(-1, steps, rows, columns, -1).clone()
    sound = torch.linspace(1, -1, layout.audio_channels) * amplitude_B2[:, 1:]
    sound = sound[:, None].expand(-1, layout.num_chunks * layout.audio_steps, -1) * has_audio
    return LatentBatch(
        epoch=0,
        batch_id=number,
        sample_ids_B=torch.arange(clips) + number * clips,
        video=_modality(video, True),
        audio=_modality(sound.clone(), has_audio),
        text_BN=torch.randint(1, 257, (clips, layout.text_bytes), generator=generator),
        actions_BFA=torch.randn(clips, frames, layout.action_dim, generator=generator),
        actions_valid_BF=torch.ones(clips, frames, dtype=torch.bool),
    )


def _modality(latents: Tensor, is_valid: bool) -> ModalityLatents:
    valid_BT = torch.full(latents.shape[:2], is_valid)
    return ModalityLatents(latents, valid_BT, valid_BT.clone(), torch.zeros(latents.shape[1], 2))


def stream_of(
    layout: Layout,
    *,
    rank: int = 0,
    world_size: int = 1,
    micro_batches: int = 2,
    start: int = 0,
    buckets: bool = False,
) -> Iterator[list[LatentBatch]]:
    """Endless global batches of `micro_batches`, this rank's share each. Batch 5 has no audio.

    buckets: batches 3, 7, ... are of another bucket: more clips, each shorter and smaller.
    """
    step, small = start, replace(layout, num_chunks=1, video_grid=(1, 1))
    while True:
        numbers = range(step * micro_batches + rank, (step + 1) * micro_batches, world_size)
        yield [
            make_batch(small, number=n, clips=6)
            if buckets and n % 4 == 3
            else make_batch(layout, number=n, has_audio=n != 5)
            for n in numbers
        ]
        step += 1


@torch.no_grad()
def open_gates(model: torch.nn.Module, *, seed: int = 0) -> None:
    """adaLN-zero gates and zero outputs hide everything behind them: draw them instead."""
    generator = torch.Generator().manual_seed(seed)

    def fill(parameter: Tensor) -> None:
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    for module in model.modules():
        if isinstance(module, Modulation):
            fill(module.linear.weight)
            fill(module.linear.bias)
        if isinstance(module, WorldTransformer):
            fill(module.video_out.weight)
            fill(module.audio_out.weight)
            if module.action_level is not None:
                fill(module.action_level.weight)


def open_model(cfg: RunConfig, layout: Layout) -> WorldTransformer:
    """A random model in eval mode through which everything can be seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        world = WorldTransformer(cfg.model, layout)
    open_gates(world)
    return world.requires_grad_(False).eval()


def many_levels(layout: Layout, noise: NoiseConfig = PLAIN_ROWS, **options: Any) -> Levels:
    """Noise levels of 3,000 clips: enough to see a distribution."""
    cfg = SelfFlowConfig(noise=noise, **options)
    return sample_levels(layout, cfg, SampleRandom(0, 0, tuple(range(MANY))))
