"""Roll a model out on held-out episodes of an embedded world and check it, all in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldmodel.batch import LatentBatch
from worldmodel.checks.result import CheckClip, scene_of
from worldmodel.checks.suite import run_checks
from worldmodel.config import RunConfig
from worldmodel.draw import Draw, draw
from worldmodel.flow import homogeneous_levels, predicted_velocity
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom
from worldmodel.session import RolloutSessions
from worldmodel.worlds.catalog import make_episode, world_settings
from worldmodel.worlds.clips import Codec, make_clips

# E episodes, B sessions.


class Decoder(Codec, Protocol):
    def decode(self, latents: Tensor, /) -> np.ndarray: ...


@torch.no_grad()
def history_error(model: WorldTransformer, batches: list[LatentBatch], cfg: RunConfig) -> dict[str, float]:
    """Squared errors of the last chunk as predicted at t=0.9.

    with_history, without: of its picture, with all chunks before it clean and with none; their difference is
    how much the past is used. sound, sound_with_picture: of its sound with that history, its picture at t=0.9
    and clean; their difference is how much sound is made to fit. nothing, silence: of predicting zeros.
    """
    layout = model.layout
    last = layout.num_chunks - 1
    cases = {  # name -> (of what, clean chunks, whether the picture is clean throughout)
        "with_history": ("video", last, False),
        "without": ("video", 0, False),
        "nothing": ("video", None, False),
        "sound": ("audio", last, False),
        "sound_with_picture": ("audio", last, True),
        "silence": ("audio", None, False),
    }
    found = {}
    for name, (modality, context, has_picture) in cases.items():
        total, count = 0.0, 0
        for batch in batches:
            levels = homogeneous_levels(
                layout, batch.num_clips, 0.9, context_chunks=context or 0, clean_video=has_picture
            )
            rng = SampleRandom(cfg.seed, -1, tuple(batch.sample_ids_B.tolist()))
            one = draw(batch, layout, cfg.objective, rng, levels)
            truth = {"video": one.video_BNVC, "audio": one.audio_BNTC}[modality][:, -1]
            guess = torch.zeros_like(truth) if context is None else _guess(model, one, cfg, modality)[:, -1]
            total, count = total + float((guess - truth).square().sum()), count + truth.numel()
        found[name] = total / count
    return found


def _guess(model: WorldTransformer, one: Draw, cfg: RunConfig, modality: str) -> Tensor:
    """The data as predicted, tokens of [B, N, tokens, C]."""
    tokens, x_t, t = one.tokens_at(one.levels.student_BK)
    out = model(tokens, one.levels.student_BK, one.levels.level_of_BL, layout=model.layout)
    v = predicted_velocity(out[modality], x_t[modality], t[modality], cfg.objective.prediction)
    return x_t[modality] - t[modality] * v


@torch.no_grad()
def check_model(
    model: WorldTransformer,
    cfg: RunConfig,
    video: Decoder,
    audio: Decoder,
    *,
    world: str,
    seeds: Sequence[int],
    split: str = "in",
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """What `run_checks` returns, of one rollout a seed as cfg.rollout says; noise is the seed's."""
    rollout, size = cfg.rollout, cfg.rollout.sessions_per_actor
    length_s = rollout.prefix_s + rollout.seconds
    longer = cfg.model_copy(update={"data": cfg.data.model_copy(update={"clip_s": length_s})})
    rollouts: list[CheckClip] = []
    truths: list[CheckClip] = []
    for first in range(0, len(seeds), size):
        some = list(seeds[first : first + size])
        clips = make_clips(world, some, longer, video, audio, split=split)
        batch = clips.batch(range(len(some)), longer, epoch=-1, batch_id=0).to(device)
        sessions = RolloutSessions(model, rollout, cfg.objective.prediction)
        sessions.reset(batch, prefix_chunks=round(rollout.prefix_s / cfg.chunk_s), seeds=some)
        for _ in range(round(rollout.seconds / cfg.chunk_s)):
            sessions.step()
        latents = sessions.latents()
        for row, seed in enumerate(some):
            episode = make_episode(world_settings(world, split), seed=seed, duration_s=length_s)
            rollouts.append(
                CheckClip(video.decode(latents.video[row].cpu()), audio.decode(latents.audio[row].cpu()))
            )
            truths.append(CheckClip(episode.video_THWC, episode.audio_N, scene_of(episode.truth)))
    return run_checks(
        rollouts,
        truths,
        prefix_s=rollout.prefix_s,
        fps=cfg.data.fps,
        sample_rate=cfg.data.sample_rate,
        seed=cfg.seed,
    )
