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
from worldmodel.session import Latents, RolloutSessions
from worldmodel.worlds.catalog import make_episode, world_settings
from worldmodel.worlds.clips import Codec, WorldClips, make_clips

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
def continue_clips(
    model: WorldTransformer, cfg: RunConfig, clips: WorldClips, *, device: torch.device | str = "cpu"
) -> Latents:
    """Each clip from its first rollout.prefix_s on, as cfg.rollout says; noise is the clip's seed's."""
    rollout, size = cfg.rollout, cfg.rollout.sessions_per_actor
    longer = cfg.model_copy(update={"data": cfg.data.model_copy(update={"clip_s": _length_s(cfg)})})
    parts: list[Latents] = []
    for first in range(0, len(clips), size):
        rows = range(first, min(first + size, len(clips)))
        batch = clips.batch(rows, longer, epoch=-1, batch_id=0).to(device)
        sessions = RolloutSessions(model, rollout, cfg.objective.prediction, cfg.made)
        seeds = clips.seeds_E[rows.start : rows.stop].tolist()
        sessions.reset(batch, prefix_chunks=round(rollout.prefix_s / cfg.chunk_s), seeds=seeds)
        for _ in range(round(rollout.seconds / cfg.chunk_s)):
            sessions.step()
        parts.append(sessions.latents())
    return Latents(torch.cat([p.video.cpu() for p in parts]), torch.cat([p.audio.cpu() for p in parts]))


def clips_to_continue(
    cfg: RunConfig, video: Decoder, audio: Decoder, *, world: str, seeds: Sequence[int], split: str = "in"
) -> WorldClips:
    """Clips as long as a rollout with its beginning."""
    longer = cfg.model_copy(update={"data": cfg.data.model_copy(update={"clip_s": _length_s(cfg)})})
    return make_clips(world, seeds, longer, video, audio, split=split)


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
    clips = clips_to_continue(cfg, video, audio, world=world, seeds=seeds, split=split)
    latents = continue_clips(model, cfg, clips, device=device)
    return check_rollouts(latents, cfg, video, audio, world=world, seeds=seeds, split=split)


def check_rollouts(
    latents: Latents,
    cfg: RunConfig,
    video: Decoder,
    audio: Decoder,
    *,
    world: str,
    seeds: Sequence[int],
    split: str = "in",
) -> dict[str, Any]:
    """What `run_checks` returns of clips that go on from the first rollout.prefix_s of these seeds."""
    rollouts, truths = [], []
    for row, seed in enumerate(seeds):
        episode = make_episode(world_settings(world, split), seed=seed, duration_s=_length_s(cfg))
        rollouts.append(decoded_clip(latents, row, cfg, video, audio))
        truths.append(CheckClip(episode.video_THWC, episode.audio_N, scene_of(episode.truth)))
    return run_checks(
        rollouts,
        truths,
        prefix_s=cfg.rollout.prefix_s,
        fps=cfg.data.fps,
        sample_rate=cfg.data.sample_rate,
        seed=cfg.seed,
    )


def decoded_clip(latents: Latents, row: int, cfg: RunConfig, video: Decoder, audio: Decoder) -> CheckClip:
    """One clip of a model, without what it does not make."""
    return CheckClip(
        video.decode(latents.video[row]) if "video" in cfg.made else None,
        audio.decode(latents.audio[row]) if "audio" in cfg.made else None,
    )


def _length_s(cfg: RunConfig) -> float:
    return cfg.rollout.prefix_s + cfg.rollout.seconds
