"""Rollout sessions in lockstep: reset with a real prefix, step chunk by chunk, flush, replay from the log."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.chunk import Chunk
from worldmodel.config import RolloutConfig
from worldmodel.guidance import Guidance
from worldmodel.layout import LEARNED, Layout
from worldmodel.model.transformer import WorldTransformer
from worldmodel.sampler import Sampler

# B sessions, N chunks, F frames of a chunk, A action width.


@dataclass(frozen=True)
class Latents:
    """Codec latents of whole clips: video [B, T, H, W, C] and audio [B, T, C]."""

    video: Tensor
    audio: Tensor


@dataclass
class RolloutSessions:
    """Several sessions of one model. Each depends on its own seed, prefix and actions only, never on its
    neighbours. made: modalities that the model makes; others are not seen in a prefix either."""

    model: WorldTransformer
    cfg: RolloutConfig
    prediction: str
    made: Collection[str] = LEARNED
    log: list[tuple[str, Tensor | None, tuple[str, ...]]] = field(default_factory=list)

    def reset(self, prefix: LatentBatch, *, prefix_chunks: int, seeds: list[int]) -> None:
        """Starts one session a clip from its first `prefix_chunks` chunks; from nothing where that is 0.
        ValueError when the clip is shorter."""
        layout = self.model.layout
        available = prefix.video.latents.shape[1] // layout.video_steps
        if not 0 <= prefix_chunks <= available:
            raise ValueError(
                f"prefix of {prefix_chunks} chunks asked, clips have {available}; use 0 to {available}"
            )
        if len(seeds) != prefix.num_clips:
            raise ValueError(f"{prefix.num_clips} sessions need as many seeds, got {len(seeds)}")
        prefix = prefix.only(self.made)
        self.prefix, self.prefix_chunks, self.seeds = prefix, prefix_chunks, seeds
        self.log = []
        self.sampler = Sampler(
            self.model,
            prediction=self.prediction,
            steps=self.cfg.steps,
            sound_lag=self.cfg.sound_lag,
            context_noise=self.cfg.context_noise,
            guidance=Guidance(self.cfg.guidance_text, self.cfg.guidance_speech, self.cfg.guidance_actions),
            caption_chunks=self.cfg.guidance_text_chunks,
            text_BN=prefix.text_BN,
            seeds=seeds,
            made=self.made,
        )
        whole = layout.of(num_chunks=available, text=False)
        chunks = prefix_as_chunks(prefix, whole)
        self.chunks = chunks[:prefix_chunks]
        # Actions of the clip go on leading the rollout unless `step` is given others.
        self.recorded = chunks
        for chunk in self.chunks:
            self.sampler.append(chunk)

    def step(self, actions_BFA: Tensor | None = None, given: Collection[str] = ()) -> Chunk:
        """Generates the next chunk under `actions_BFA` (those that lead into its frames), the clip's own, or
        none. given: modalities that are taken from the clip, "video" or "audio"; the other is made for it."""
        self.log.append(("step", actions_BFA, tuple(given)))
        num, layout = len(self.seeds), self.model.layout
        index = len(self.chunks)
        if actions_BFA is not None:
            actions_BA = actions_BFA.flatten(1)
            valid_B = torch.ones(num, dtype=torch.bool, device=actions_BA.device)
        elif index < len(self.recorded):
            actions_BA, valid_B = self.recorded[index].actions_BA, self.recorded[index].actions_valid_B
        else:
            actions_BA = torch.zeros(num, layout.chunk_frames * layout.action_dim)
            valid_B = torch.zeros(num, dtype=torch.bool)
        chunk = self.sampler.generate(actions_BA, valid_B, self._recorded(index, given))
        self.chunks.append(chunk)
        return chunk

    def flush(self) -> None:
        """Forgets all but the sinks and the last chunk."""
        self.log.append(("flush", None, ()))
        self.sampler.cache.flush()

    def keep(self, sessions: list[int]) -> None:
        """Goes on with these sessions only, renumbered in this order; the others end, and leave the log.
        ValueError for none, or one that is not there or named twice."""
        if not sessions or len({*sessions} & {*range(len(self.seeds))}) != len(sessions):
            raise ValueError(
                f"sessions to keep must be some of 0 to {len(self.seeds) - 1}, each once, got {sessions}"
            )
        self.prefix = _rows_of_batch(self.prefix, sessions)
        self.seeds = [self.seeds[session] for session in sessions]
        self.chunks = [_rows_of_chunk(chunk, sessions) for chunk in self.chunks]
        self.recorded = [_rows_of_chunk(chunk, sessions) for chunk in self.recorded]
        self.log = [(event, None if a is None else a[sessions], given) for event, a, given in self.log]
        self.sampler.keep(sessions)

    def replay(self) -> None:
        """Runs the log again from the prefix: the same chunks, bit for bit."""
        log, self.log = self.log, []
        self.reset(self.prefix, prefix_chunks=self.prefix_chunks, seeds=self.seeds)
        for event, actions, given in log:
            self.step(actions, given) if event == "step" else self.flush()

    def _recorded(self, index: int, given: Collection[str]) -> dict[str, Tensor]:
        """ValueError past the clip's end."""
        if given and index >= len(self.recorded):
            raise ValueError(f"chunk {index} was to be made for {', '.join(given)}, which ends before it")
        parts = {"video": "video_BVC", "audio": "audio_BTC"}
        return {name: getattr(self.recorded[index], parts[name]) for name in given}

    def latents(self) -> Latents:
        """Everything so far, prefix included."""
        layout = self.model.layout.of(num_chunks=len(self.chunks), text=False)
        return Latents(
            layout.unpack_video(torch.stack([c.video_BVC for c in self.chunks], dim=1)),
            layout.unpack_audio(torch.stack([c.audio_BTC for c in self.chunks], dim=1)),
        )


def prefix_as_chunks(batch: LatentBatch, layout: Layout) -> list[Chunk]:
    """A batch of whole clips, chunk by chunk."""
    video, audio = layout.pack_video(batch.video.latents), layout.pack_audio(batch.audio.latents)
    has_video, has_audio = layout.chunk_valid(batch.video.valid_BT), layout.chunk_valid(batch.audio.valid_BT)
    actions = layout.pack_actions(batch.actions_BFA * batch.actions_valid_BF[..., None])
    actions_valid = layout.pack_actions_valid(batch.actions_valid_BF)
    return [
        Chunk(video[:, k], audio[:, k], has_video[:, k], has_audio[:, k], actions[:, k], actions_valid[:, k])
        for k in range(layout.num_chunks)
    ]


def _rows_of_chunk(chunk: Chunk, rows: list[int]) -> Chunk:
    return Chunk(**{part.name: getattr(chunk, part.name)[rows] for part in fields(chunk)})


def _rows_of_batch(batch: LatentBatch, rows: list[int]) -> LatentBatch:
    def modality(part: ModalityLatents) -> ModalityLatents:
        return replace(
            part,
            latents=part.latents[rows],
            valid_BT=part.valid_BT[rows],
            loss_mask_BT=part.loss_mask_BT[rows],
        )

    return replace(
        batch,
        sample_ids_B=batch.sample_ids_B[rows],
        video=modality(batch.video),
        audio=modality(batch.audio),
        text_BN=batch.text_BN[rows],
        actions_BFA=batch.actions_BFA[rows],
        actions_valid_BF=batch.actions_valid_BF[rows],
        targets={name: target[rows] for name, target in batch.targets.items()},
    )
