"""The Self-Flow step (arXiv 2603.06507) and its baselines by switches.

The student denoises tokens at two noise levels; its projected features at 0.3 of the depth follow those of
the EMA teacher at 0.7, which sees every token at the cleaner level with the same noise and the same condition
drop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.batch import LatentBatch
from worldmodel.config import SelfFlowConfig
from worldmodel.flow import MIN_DIVISOR, Levels, add_noise, predicted_velocity, sample_levels, velocity_target
from worldmodel.layout import LEARNED, Layout
from worldmodel.model.level_rows import split_text
from worldmodel.model.transformer import Tokens
from worldmodel.randomness import SampleRandom

# B clips, L tokens, N chunks, V video tokens and T audio tokens of a chunk, C channels of a token, D width.

Network = Callable[..., dict]


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
        """Sum of t - min(t, s) or s - min(t, s) over tokens under loss, [video, audio]: how far the teacher
        is ahead."""
        gap_BL = self.levels.per_token(self.levels.student_BK - self.levels.cleaner_BK)
        return torch.stack([(self.of(gap_BL, m) * self.loss_mask(m)).sum() for m in LEARNED]).double()

    def tokens_at(self, table_BK: Tensor) -> tuple[Tokens, dict[str, Tensor], dict[str, Tensor]]:
        """Noisy inputs at the levels of a table, with x_t and t [B, chunks, tokens, 1] of each modality."""
        t_BL = self.levels.per_token(table_BK)
        t = {m: self.of(t_BL, m)[..., None] for m in LEARNED}
        x_t = {
            "video": add_noise(self.video_BNVC, self.video_noise, t["video"]),
            "audio": add_noise(self.audio_BNTC, self.audio_noise, t["audio"]),
        }
        tokens = Tokens(
            x_t["video"], x_t["audio"], self.text_BN, self.actions_BNA, self.actions_valid_BN, self.valid_BL
        )
        return tokens, x_t, t


def draw(
    batch: LatentBatch, layout: Layout, cfg: SelfFlowConfig, rng: SampleRandom, levels: Levels | None = None
) -> Draw:
    """Noise levels, noise and condition drop of a micro-batch, keyed by (seed, epoch, sample_id)."""
    video, audio = layout.pack_video(batch.video.latents), layout.pack_audio(batch.audio.latents)
    evaluating = levels is not None
    levels = sample_levels(layout, cfg, rng) if levels is None else levels
    text_BN, has_actions_BF = batch.text_BN, batch.actions_valid_BF
    if not evaluating:  # dropped for student and teacher together
        text_BN = _without_some_text(text_BN, layout, cfg, rng)
        has_actions_BF = has_actions_BF & ~_dropped("action_drop", cfg.action_drop, rng, has_actions_BF)
    device = video.device
    levels = Levels(*(getattr(levels, f).to(device) for f in Levels.__dataclass_fields__))
    valid_BL = token_mask(layout, batch.video.valid_BT, batch.audio.valid_BT, text_BN)
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
    )


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


@dataclass(frozen=True)
class Losses:
    """Sums over tokens under loss of each modality, [video, audio]: means need the count over all ranks."""

    flow: Tensor
    align: Tensor
    cosine: Tensor
    target_std: Tensor

    def objective(self, counts: Tensor, cfg: SelfFlowConfig) -> Tensor:
        """Sum over modalities of weight * (flow + align_weight * align) / global count."""
        weight = torch.tensor([cfg.video_weight, cfg.audio_weight], device=self.flow.device)
        share = weight / counts.to(self.flow).clamp_min(1)
        return (share * (self.flow + cfg.align_weight * self.align)).sum()


def layers_of(cfg: SelfFlowConfig, depth: int) -> tuple[int, int]:
    """Student and teacher layer, 1-based, as the nearest integers of their fractions of the depth."""
    return max(1, round(cfg.student_layer * depth)), max(1, round(cfg.teacher_layer * depth))


def self_flow_losses(
    student: Network, teacher: Network | None, batch: Draw, cfg: SelfFlowConfig, depth: int
) -> Losses:
    """Denoise at two noise levels; predict the EMA teacher's view of the cleaner one.

    arXiv 2603.06507, equations 4 to 7.
    """
    student_layer, teacher_layer = layers_of(cfg, depth)
    target_BLD = None
    if cfg.rep == "ema" and teacher is not None:
        with torch.no_grad():
            tokens, _, _ = batch.tokens_at(batch.levels.cleaner_BK)
            target_BLD = teacher(
                tokens,
                batch.levels.cleaner_BK,
                batch.levels.level_of_BL,
                layout=batch.layout,
                features=teacher_layer,
                stop_after=teacher_layer,
            )["features"]
    tokens, x_t, t = batch.tokens_at(batch.levels.student_BK)
    out = student(
        tokens,
        batch.levels.student_BK,
        batch.levels.level_of_BL,
        layout=batch.layout,
        features=None if target_BLD is None else student_layer,
    )
    flow = torch.stack([_flow_sum(batch, out[m], x_t[m], t[m], m, cfg) for m in LEARNED])
    if target_BLD is None:
        zero = torch.zeros_like(flow)
        return Losses(flow, zero, zero, zero)
    # dim=-1: the default is over tokens. fp32: late features exceed what half precision holds.
    cosine_BL = F.cosine_similarity(out["projected"].float(), target_BLD.float(), dim=-1)
    cosine = torch.stack([(batch.of(cosine_BL, m) * batch.loss_mask(m)).sum() for m in LEARNED])
    counts = batch.counts().to(cosine)
    std = target_BLD.float().std(dim=(0, 1)).mean().expand(2) * counts
    return Losses(flow, counts - cosine, cosine.detach(), std.detach())


def _flow_sum(
    batch: Draw, output: Tensor, x_t: Tensor, t: Tensor, modality: str, cfg: SelfFlowConfig
) -> Tensor:
    """Squared velocity error, weighted by cfg.loss_min_t, mean over channels, summed over tokens under
    loss."""
    data, noise = (
        (batch.video_BNVC, batch.video_noise)
        if modality == "video"
        else (batch.audio_BNTC, batch.audio_noise)
    )
    error = predicted_velocity(output, x_t, t, cfg.prediction) - velocity_target(
        data, noise, t, cfg.prediction
    )
    if cfg.prediction == "x":  # at the smallest t errors of the last detail would drown the past
        error = error * (t.clamp_min(MIN_DIVISOR) / t.clamp_min(cfg.loss_min_t))
    # where, not a product: an absent clip must not bring NaN into the sum
    return torch.where(batch.loss_mask(modality), error.square().mean(-1), error.new_zeros(())).sum()
