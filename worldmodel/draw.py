"""One micro-batch with everything random decided: noise, its levels, which conditions are dropped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from worldmodel.batch import LatentBatch
from worldmodel.config import SelfFlowConfig
from worldmodel.flow import Levels, add_noise, sample_levels
from worldmodel.layout import LEARNED, Layout
from worldmodel.model.level_rows import split_text
from worldmodel.model.transformer import Tokens
from worldmodel.randomness import SampleRandom, keyed_generator

# B clips, L tokens, N chunks, V video and T audio tokens of a chunk, C channels of a token, D width.


@dataclass(frozen=True)
class Target:
    """Features of a frozen encoder on the tokens of one modality [B, N, V, D], and which are there."""

    modality: str
    features: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Draw:
    """One micro-batch with its noise: everything random is decided here, before any network runs."""

    video_BNVC: Tensor
    audio_BNTC: Tensor
    video_noise: Tensor
    audio_noise: Tensor
    text_BN: Tensor
    actions_BNA: Tensor
    actions_valid_BN: Tensor
    valid_BL: Tensor
    loss_BL: Tensor
    levels: Levels
    layout: Layout
    learned_BM: Tensor  # on the CPU: which of picture and sound a clip may teach; noise then decides where
    is_still: bool = False
    group_BL: Tensor | None = None  # of attention separation: 1 at t, 2 at s, 0 what all may see
    targets: dict[str, Target] = field(default_factory=dict[str, Any])

    def loss_mask(self, modality: str) -> Tensor:
        """Tokens [B, chunks, tokens] of one modality that carry loss: not context, not condition, real and
        allowed."""
        return self.of(self.loss_BL, modality)

    def of(self, x_BL: Tensor, modality: str) -> Tensor:
        """The part of a per-token tensor that belongs to one modality, chunk by chunk."""
        _, chunks = split_text(x_BL[..., None], self.layout)
        _, video, audio = chunks[..., 0].split(self.layout.parts, dim=2)
        return video if modality == "video" else audio

    def counts(self) -> Tensor:
        """Tokens under loss, [video, audio]."""
        return torch.stack([self.loss_mask(m).sum() for m in LEARNED]).double()

    def masked_counts(self) -> Tensor:
        """Tokens under loss that are at s, [video, audio]."""
        return torch.stack([self.of(self.loss_BL & self.levels.masked_BL, m).sum() for m in LEARNED]).double()

    def level_gaps(self) -> Tensor:
        """Sum over tokens under loss, [video, audio]."""
        return torch.stack([(self.level_gap(m) * self.loss_mask(m)).sum() for m in LEARNED]).double()

    def level_gap(self, modality: str) -> Tensor:
        """[B, chunks, tokens] t - min(t, s) or s - min(t, s): how far the teacher is ahead."""
        gap_BL = self.levels.per_token(self.levels.student_BK - self.levels.cleaner_BK)
        return self.of(gap_BL, modality)

    def tokens_at(
        self, table_BK: Tensor, *, apart: bool = False
    ) -> tuple[Tokens, dict[str, Tensor], dict[str, Tensor]]:
        """Noisy inputs at the levels of a table, with x_t and t [B, chunks, tokens, 1] of each modality.
        apart: with attention separation, if there is one."""
        t_BL = self.levels.per_token(table_BK)
        t = {m: self.of(t_BL, m)[..., None] for m in LEARNED}
        x_t = {
            "video": add_noise(self.video_BNVC, self.video_noise, t["video"]),
            "audio": add_noise(self.audio_BNTC, self.audio_noise, t["audio"]),
        }
        tokens = Tokens(
            x_t["video"],
            x_t["audio"],
            self.text_BN,
            self.actions_BNA,
            self.actions_valid_BN,
            self.valid_BL,
            self.group_BL if apart else None,
        )
        return tokens, x_t, t


def draw(
    batch: LatentBatch,
    layout: Layout,
    cfg: SelfFlowConfig,
    rng: SampleRandom,
    levels: Levels | None = None,
    *,
    hidden: str = "",
) -> Draw:
    """Noise levels, noise and condition drop of a micro-batch, keyed by (seed, epoch, sample_id).

    levels: for evaluation; then nothing is dropped, and hidden is only the modality that `hidden` names.
    """
    video, audio = layout.pack_video(batch.video.latents), layout.pack_audio(batch.audio.latents)
    text_BN, has_actions_BF = batch.text_BN, batch.actions_valid_BF
    seen = {"video": batch.video.valid_BT, "audio": batch.audio.valid_BT}
    apart = cfg.attention_separation and levels is None
    if levels is None:
        hidden = _hidden_modality(batch, cfg, rng.seed)
    if hidden:
        seen[hidden] = torch.zeros_like(seen[hidden])
    learned_BM = _learned(batch, seen)
    if levels is None:
        levels = sample_levels(layout, cfg, rng, is_still=batch.is_still, learned_BM=learned_BM)
        text_BN, has_actions_BF = _without_some_conditions(text_BN, has_actions_BF, layout, cfg, rng)
    device = video.device
    levels = Levels(*(getattr(levels, f).to(device) for f in Levels.__dataclass_fields__))
    valid_BL = token_mask(layout, seen["video"], seen["audio"], text_BN)
    learnable_BL = token_mask(layout, batch.video.loss_mask_BT, batch.audio.loss_mask_BT, text_BN)
    return Draw(
        video_BNVC=video,
        audio_BNTC=audio,
        video_noise=rng.noise("noise.video", tuple(video.shape[1:]), device),
        audio_noise=rng.noise("noise.audio", tuple(audio.shape[1:]), device),
        text_BN=text_BN,
        actions_BNA=layout.pack_actions(batch.actions_BFA * has_actions_BF[..., None]),
        actions_valid_BN=layout.pack_actions_valid(has_actions_BF),
        valid_BL=valid_BL,
        loss_BL=levels.loss_BL & valid_BL & learnable_BL,
        levels=levels,
        layout=layout,
        learned_BM=learned_BM,
        is_still=batch.is_still,
        group_BL=(levels.loss_BL.long() + levels.masked_BL.long()) if apart else None,
        targets=_targets(batch, layout) if cfg.rep == "repa" else {},
    )


def _learned(batch: LatentBatch, seen: dict[str, Tensor]) -> Tensor:
    """[B, M] whether a clip has steps that may be learned, by modality; on the CPU, where levels are
    drawn. Of a batch without values, in a dry run, all may be."""
    if batch.video.valid_BT.is_meta:
        return torch.ones(batch.num_clips, len(LEARNED), dtype=torch.bool)
    masks = {"video": batch.video.loss_mask_BT, "audio": batch.audio.loss_mask_BT}
    return torch.stack([(seen[m] & masks[m]).any(1) for m in LEARNED], dim=-1).cpu()


def _hidden_modality(batch: LatentBatch, cfg: SelfFlowConfig, seed: int) -> str:
    """What this micro-batch is trained without, the same on any rank; nothing where it has only one, unless
    that is never trained."""
    if not (cfg.picture_alone or cfg.sound_alone):
        return ""
    if 1 in (cfg.picture_alone, cfg.sound_alone):
        return "audio" if cfg.picture_alone == 1 else "video"
    if not (bool(batch.video.valid_BT.any()) and bool(batch.audio.valid_BT.any())):
        return ""
    drawn = keyed_generator(seed, batch.epoch, "alone", batch.batch_id).random()
    if drawn < cfg.picture_alone:
        return "audio"
    return "video" if drawn < cfg.picture_alone + cfg.sound_alone else ""


def never_together(cfg: SelfFlowConfig) -> list[str]:
    """What is hidden in turn where picture and sound are never trained side by side; [""] where they are."""
    alone = {"audio": cfg.picture_alone, "video": cfg.sound_alone}
    if sum(alone.values()) < 1 - 1e-9:
        return [""]
    return [hidden for hidden, share in alone.items() if share]


def _without_some_conditions(
    text_BN: Tensor, has_actions_BF: Tensor, layout: Layout, cfg: SelfFlowConfig, rng: SampleRandom
) -> tuple[Tensor, Tensor]:
    """Dropped for student and teacher together."""
    text_BN = _without_some_text(text_BN, layout, cfg, rng)
    has_actions_BF = has_actions_BF & ~_dropped("action_drop", cfg.action_drop, rng, has_actions_BF)
    if not cfg.condition_drop:
        return text_BN, has_actions_BF
    gone_B1 = _dropped("condition_drop", cfg.condition_drop, rng, text_BN)
    return torch.where(gone_B1, torch.zeros_like(text_BN), text_BN), has_actions_BF & ~gone_B1


def _targets(batch: LatentBatch, layout: Layout) -> dict[str, Target]:
    found = {}
    for name, features in batch.targets.items():
        if name.endswith("_valid"):
            continue
        valid_BT = batch.targets[f"{name}_valid"]
        chunks, patch = layout.num_chunks, layout.audio_patch
        if features.dim() == 5:  # of pictures: [B, T, rows, columns, D]
            own = rearrange(features, "b (n t) r c d -> b n (t r c) d", n=chunks)
            repeated = valid_BT[:, :, None].expand(-1, -1, features.shape[2] * features.shape[3])
            valid = rearrange(repeated, "b (n t) v -> b n (t v)", n=chunks)
            found[name] = Target("video", own, valid)
        else:  # of sound: [B, T, D]
            own = rearrange(features, "b (n t p) d -> b n t p d", n=chunks, p=patch).float().mean(3)
            valid = rearrange(valid_BT, "b (n t p) -> b n t p", n=chunks, p=patch).all(3)
            found[name] = Target("audio", own, valid)
    return found


def _without_some_text(text_BN: Tensor, layout: Layout, cfg: SelfFlowConfig, rng: SampleRandom) -> Tensor:
    """Captions and transcripts go apart, so that a model is guided by each alone."""
    is_speech_N = torch.arange(text_BN.shape[1], device=text_BN.device) >= layout.caption_bytes
    gone_BN = torch.where(
        is_speech_N,
        _dropped("speech_drop", cfg.speech_drop, rng, text_BN),
        _dropped("text_drop", cfg.text_drop, rng, text_BN),
    )
    return torch.where(gone_BN, torch.zeros_like(text_BN), text_BN)


def _dropped(name: str, share: float, rng: SampleRandom, like: Tensor) -> Tensor:
    """[B, 1]: clips that are trained without a condition."""
    return (rng.uniform(name, (1,)) < share).to(like.device)


def token_mask(layout: Layout, video_BT: Tensor, audio_BT: Tensor, text_BN: Tensor) -> Tensor:
    """Masks of latent steps -> [B, L], with real text bytes and every action token (an absent one has an
    embedding)."""
    video_BN, audio_BN = layout.chunk_valid(video_BT), layout.chunk_valid(audio_BT)
    actions, video, audio = (
        x_BN[..., None].expand(-1, -1, tokens)
        for x_BN, tokens in zip((torch.ones_like(video_BN), video_BN, audio_BN), layout.parts, strict=True)
    )
    return torch.cat([layout.text_valid(text_BN), torch.cat([actions, video, audio], -1).flatten(1)], 1)
