"""Clips from prompts alone, beside what a codec leaves of the true ones: what checks of prompts compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.checks.of_model import Decoder, decoded_clip
from worldmodel.checks.result import CheckClip
from worldmodel.config import RolloutConfig, RunConfig
from worldmodel.model.text import encode_texts
from worldmodel.model.transformer import WorldTransformer
from worldmodel.session import RolloutSessions
from worldmodel.worlds.catalog import make_episode, world_settings
from worldmodel.worlds.truth import Truth

# E episodes, B sessions, N text bytes, K chunks.


@dataclass(frozen=True)
class Prompted:
    """Of each held-out episode: its truth, what the model made of its caption and transcript, and the true
    clip through the codecs, which is the best that any model could show."""

    truths: list[Truth]
    generated: list[CheckClip]
    codec: list[CheckClip]

    def makes(self, modality: str) -> bool:
        part = {"video": "video_THWC", "audio": "audio_N"}[modality]
        return all(getattr(clip, part) is not None for clip in self.generated)


@torch.no_grad()
def from_prompts(
    model: WorldTransformer,
    cfg: RunConfig,
    video: Decoder,
    audio: Decoder,
    *,
    world: str,
    seeds: Sequence[int],
    split: str = "in",
    progress: Callable[[int, int], None] | None = None,
) -> Prompted:
    """Clips as long as the trained ones, one a seed of `world`, as cfg.rollout says; noise is the seed's.
    progress: called with (chunks made, of all)."""
    found = Prompted([], [], [])
    size = cfg.rollout.sessions_per_actor
    for first in range(0, len(seeds), size):
        some = list(seeds[first : first + size])
        episodes = [
            make_episode(world_settings(world, split), seed=seed, duration_s=cfg.data.clip_s) for seed in some
        ]
        texts_BN = torch.stack([_text(episode.truth, cfg) for episode in episodes])
        sessions = from_nothing(model, cfg, texts_BN, cfg.rollout, seeds=some)
        for chunk in range(cfg.num_chunks):
            sessions.step()
            if progress:
                done = first * cfg.num_chunks + (chunk + 1) * len(some)
                progress(done, len(seeds) * cfg.num_chunks)
        latents = sessions.latents()
        for row, episode in enumerate(episodes):
            found.truths.append(episode.truth)
            found.generated.append(decoded_clip(latents, row, cfg, video, audio))
            found.codec.append(
                CheckClip(
                    video.decode(video.encode(episode.video_THWC)),
                    audio.decode(audio.encode(episode.audio_N)),
                )
            )
    return found


def from_nothing(
    model: WorldTransformer, cfg: RunConfig, texts_BN: Tensor, rollout: RolloutConfig, *, seeds: list[int]
) -> RolloutSessions:
    """Sessions that start with their texts and no chunk at all."""
    layout = model.layout.of(num_chunks=1, text=True)
    rows, columns = (grid * patch for grid, patch in zip(layout.video_grid, layout.patch, strict=True))
    sessions = RolloutSessions(model, rollout, cfg.objective.prediction, cfg.made)
    num, frames = len(texts_BN), layout.chunk_frames
    absent = LatentBatch(
        epoch=-1,
        batch_id=-1,
        sample_ids_B=torch.zeros(num, dtype=torch.int64),
        video=_absent(num, (layout.video_steps, rows, columns, layout.video_channels)),
        audio=_absent(num, (layout.audio_steps, layout.audio_channels)),
        text_BN=texts_BN,
        actions_BFA=torch.zeros(num, frames, cfg.model.action_dim),
        actions_valid_BF=torch.zeros(num, frames, dtype=torch.bool),
    )
    sessions.reset(absent, prefix_chunks=0, seeds=seeds)
    return sessions


def _absent(num: int, shape: tuple[int, ...]) -> ModalityLatents:
    never_BT = torch.zeros(num, shape[0], dtype=torch.bool)
    return ModalityLatents(torch.zeros(num, *shape), never_BT, never_BT, torch.zeros(shape[0], 2))


def _text(truth: Truth, cfg: RunConfig) -> Tensor:
    return encode_texts(
        truth.caption,
        truth.transcript,
        caption_bytes=cfg.model.text_tokens,
        speech_bytes=cfg.model.speech_bytes,
    )
