"""Latents of an embedded world without files or Ray: what training scripts and comparisons are fed with.

Clips are seeded one by one, so any part of a set can be made anywhere and again. The stream is fixed by
(seed, step), so training resumes at any step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.config import RunConfig
from worldmodel.model.text import encode_texts
from worldmodel.worlds.catalog import make_episode, world_settings
from worldmodel.worlds.truth import Episode

# B clips, E episodes, T latent steps, H W C of a latent, N text tokens, F frames, A action width.

HELD_OUT_SEED = 1_000_000_000  # seeds from here on are never trained on


class Codec(Protocol):
    """Shipped codecs: `spec`, and array -> latents."""

    spec: Any

    def encode(self, clip: np.ndarray, /) -> Tensor: ...


@dataclass(frozen=True)
class WorldClips:
    """float16 latents of E clips with their captions and actions, and the seed of each."""

    seeds_E: np.ndarray
    video_ETHWC: np.ndarray
    audio_ETC: np.ndarray
    text_EN: np.ndarray
    actions_EFA: np.ndarray
    actions_valid_EF: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds_E)

    def batch(
        self, indices: Sequence[int] | np.ndarray, cfg: RunConfig, *, epoch: int, batch_id: int
    ) -> LatentBatch:
        """One micro-batch of these clips; every step is valid and carries loss."""
        rows = np.asarray(indices)
        return LatentBatch(
            epoch=epoch,
            batch_id=batch_id,
            sample_ids_B=torch.from_numpy(rows.astype(np.int64)),
            video=_modality(self.video_ETHWC[rows], cfg.data.clip_s),
            audio=_modality(self.audio_ETC[rows], cfg.data.clip_s),
            text_BN=torch.from_numpy(self.text_EN[rows]),
            actions_BFA=torch.from_numpy(self.actions_EFA[rows]),
            actions_valid_BF=torch.from_numpy(self.actions_valid_EF[rows]),
        )

    def stream(self, cfg: RunConfig, *, start_step: int = 0) -> Iterator[list[LatentBatch]]:
        """The micro-batches of each step from `start_step` on, in a new order each epoch."""
        size = cfg.data.batch_clips
        per_epoch = len(self) // size
        if not per_epoch:
            raise ValueError(f"{len(self)} clips do not fill a micro-batch of {size}; make more clips")
        index = start_step * cfg.train.micro_batches
        order_epoch, order_E = -1, np.zeros(0, int)
        while True:
            batches = []
            for _ in range(cfg.train.micro_batches):
                epoch, batch_id = divmod(index, per_epoch)
                if epoch != order_epoch:
                    order_epoch, order_E = (
                        epoch,
                        np.random.default_rng((cfg.seed, epoch)).permutation(len(self)),
                    )
                rows = order_E[batch_id * size : (batch_id + 1) * size]
                batches.append(self.batch(rows, cfg, epoch=epoch, batch_id=batch_id))
                index += 1
            yield batches

    def batches(self, cfg: RunConfig, *, num_clips: int) -> list[LatentBatch]:
        """The first clips in order, for evaluation. The last micro-batch is left out if it is not full.

        ValueError where not even one is.
        """
        size = cfg.data.batch_clips
        if 0 < min(num_clips, len(self)) < size:
            raise ValueError(
                f"{min(num_clips, len(self))} clips do not fill a micro-batch of {size}, so nothing would be "
                "measured; hold out more, or set train.evaluate_clips=0"
            )
        return [
            self.batch(range(first, first + size), cfg, epoch=-1, batch_id=first // size)
            for first in range(0, min(num_clips, len(self)) - size + 1, size)
        ]

    @classmethod
    def join(cls, parts: Sequence[WorldClips]) -> WorldClips:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__annotations__))


def make_clips(
    world: str, seeds: Sequence[int], cfg: RunConfig, video: Codec, audio: Codec, *, split: str = "in"
) -> WorldClips:
    """Simulates and encodes one clip a seed. The world must have the rates and the size of cfg.data."""
    encoded = [encode_episode(_episode(world, seed, cfg, split=split), cfg, video, audio) for seed in seeds]
    stacked = (np.stack([clip[index] for clip in encoded]) for index in range(5))
    return WorldClips(np.asarray(seeds, dtype=np.int64), *stacked)


def _episode(world: str, seed: int, cfg: RunConfig, *, split: str) -> Episode:
    settings = world_settings(world, split)
    if (settings.fps, settings.sample_rate, (settings.size_px,) * 2) != (
        cfg.data.fps,
        cfg.data.sample_rate,
        tuple(cfg.data.size),
    ):
        raise ValueError(
            f"world {world} has {settings.size_px} px at {settings.fps} fps and {settings.sample_rate} Hz; "
            f"the config asks for {cfg.data.size} at {cfg.data.fps} and {cfg.data.sample_rate}"
        )
    return make_episode(settings, seed=seed, duration_s=cfg.data.clip_s)


def encode_episode(
    episode: Episode, cfg: RunConfig, video: Codec, audio: Codec
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(video, audio, text, actions, whether they are known) of one clip."""
    frames, actions_T2 = len(episode.video_THWC), episode.truth.actions_T2
    actions_FA = np.zeros((frames, cfg.model.action_dim), np.float32)
    if actions_T2 is not None:
        actions_FA[:, : actions_T2.shape[1]] = actions_T2
    return (
        video.encode(episode.video_THWC).numpy().astype(np.float16),
        audio.encode(episode.audio_N).numpy().astype(np.float16),
        encode_texts(
            episode.truth.caption,
            episode.truth.transcript,
            caption_bytes=cfg.model.text_tokens,
            speech_bytes=cfg.model.speech_bytes,
        ).numpy(),
        actions_FA,
        np.full(frames, actions_T2 is not None),
    )


def _modality(latents: np.ndarray, clip_s: float) -> ModalityLatents:
    num_clips, steps = latents.shape[:2]
    valid_BT = torch.ones(num_clips, steps, dtype=torch.bool)
    edges = torch.linspace(0, clip_s, steps + 1)
    time_s_T2 = torch.stack([edges[:-1], edges[1:]], dim=1)
    return ModalityLatents(torch.from_numpy(latents).float(), valid_BT, valid_BT.clone(), time_s_T2)
