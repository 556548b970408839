"""The time convention: t=0 is data, t=1 is noise. Nobody else writes 1 - t.

x_t = (1 - t) x0 + t x1 and v = x1 - x0 (arXiv 2603.06507, eq. 1-2). `sample_levels` alone decides the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.config import NoiseConfig, SelfFlowConfig
from worldmodel.layout import AUDIO, VIDEO, Layout
from worldmodel.randomness import SampleRandom

# B clips, L tokens, K noise levels of a row, M modalities (video, audio), N chunks.

MIN_DIVISOR = 0.05  # x-prediction divides by t; the same clamp in training and sampling


def add_noise(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t; t broadcasts and stays fp32."""
    return data + t * (noise - data)


def x_to_v(x_t: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Velocity that leads from x (a guess of the data) through x_t, with the clamped divisor."""
    return (x_t - x) / t.clamp_min(MIN_DIVISOR)


def velocity_target(data: Tensor, noise: Tensor, t: Tensor, prediction: str) -> Tensor:
    """What the predicted velocity is compared with: x1 - x0, seen through the same clamp when x is
    predicted."""
    return noise - data if prediction == "v" else x_to_v(add_noise(data, noise, t), data, t)


def predicted_velocity(output: Tensor, x_t: Tensor, t: Tensor, prediction: str) -> Tensor:
    """Network output -> velocity."""
    return output if prediction == "v" else x_to_v(x_t, output, t)


def wiener_factor(t: Tensor) -> Tensor:
    """E[x0 | x_t] / x_t for Gaussian data of unit variance (arXiv 2206.00364, eq. 7, in our t)."""
    return (1 - t) / ((1 - t) ** 2 + t**2)


@dataclass(frozen=True)
class Levels:
    """Noise of one micro-batch.

    student_BK: t and s of each (chunk, modality) slot and the clean condition level; cleaner_BK: the
    teacher's table, where both entries of a slot are min(t, s). level_of_BL: which entry a token uses.
    loss_BL: tokens under loss. masked_BL: tokens at s.
    """

    student_BK: Tensor
    cleaner_BK: Tensor
    level_of_BL: Tensor
    loss_BL: Tensor
    masked_BL: Tensor

    def per_token(self, table_BK: Tensor) -> Tensor:
        return table_BK.gather(1, self.level_of_BL)


def sample_time(uniform: Tensor, normal: Tensor, cfg: NoiseConfig) -> Tensor:
    """Draws of p(t) from uniform and normal draws of the same shape; shift a>1 is noisier."""
    t = uniform if cfg.distribution == "uniform" else torch.sigmoid(normal)
    return cfg.shift * t / (1 + (cfg.shift - 1) * t)


def sample_levels(layout: Layout, cfg: SelfFlowConfig, rng: SampleRandom) -> Levels:
    """Row mode, then modalities tied or apart or one clean, then the token mask. t and s are i.i.d. and not
    sorted, so that the marginal of every token stays p(t)."""
    num_chunks, noise = layout.num_chunks, cfg.noise
    t_BNM, s_BNM = (
        sample_time(rng.uniform(f"{n}.u", (num_chunks, 2)), rng.normal(f"{n}.n", (num_chunks, 2)), noise)
        for n in "ts"
    )
    row_B = rng.uniform("row", (1,))[:, 0]
    history_B = row_B < noise.history_rows
    uniform_B = row_B >= noise.history_rows + noise.independent_rows
    t_BNM = torch.where(uniform_B[:, None, None], t_BNM[:, :1].expand_as(t_BNM), t_BNM)
    s_BNM = torch.where(uniform_B[:, None, None], s_BNM[:, :1].expand_as(s_BNM), s_BNM)

    pair_B = rng.uniform("pair", (1,))[:, 0]
    tied_B = pair_B < noise.tied
    t_BNM = torch.where(tied_B[:, None, None], t_BNM[..., :1].expand_as(t_BNM), t_BNM)
    s_BNM = torch.where(tied_B[:, None, None], s_BNM[..., :1].expand_as(s_BNM), s_BNM)
    half = (1 - noise.tied - noise.independent) / 2
    clean_video_B = (pair_B >= noise.tied + noise.independent) & (
        pair_B < noise.tied + noise.independent + half
    )
    clean_audio_B = pair_B >= noise.tied + noise.independent + half
    clean_BNM = torch.stack([clean_video_B, clean_audio_B], dim=-1)[:, None, :].expand(-1, num_chunks, -1)

    context_BN = (rng.uniform("context", (num_chunks,)) < noise.context_chunk) & history_B[:, None]
    # A row whose every chunk is context would teach nothing: its last chunk stays a target.
    context_BN[:, -1] &= ~context_BN.all(dim=1)
    context_t_BN = rng.uniform("context.t", (num_chunks,)) * noise.context_noise
    context_BNM, context_t_BNM = (
        context_BN[..., None].expand_as(t_BNM),
        context_t_BN[..., None].expand_as(t_BNM),
    )

    if not cfg.dual:
        s_BNM = t_BNM
    given_BNM = context_BNM | clean_BNM  # seen, not learned
    given_t_BNM = torch.where(clean_BNM, torch.zeros_like(t_BNM), context_t_BNM)
    t_BNM, s_BNM = (torch.where(given_BNM, given_t_BNM, x) for x in (t_BNM, s_BNM))

    ratio_L = torch.zeros(layout.length)
    ratio_L[layout.modality_L == VIDEO] = cfg.mask_ratio_video
    ratio_L[layout.modality_L == AUDIO] = cfg.mask_ratio_audio
    slot_L = layout.level_slot_L
    given_BL = torch.cat(
        [given_BNM.flatten(1).repeat_interleave(2, dim=1), torch.ones(len(row_B), 1, dtype=torch.bool)], 1
    )
    given_BL = given_BL[:, slot_L]
    masked_BL = (rng.uniform("mask", (layout.length,)) < ratio_L) & ~given_BL

    clean_B1 = torch.zeros(len(row_B), 1)
    pair_BK = torch.stack([t_BNM, s_BNM], dim=-1).flatten(1)
    cleaner_BK = (
        torch.minimum(t_BNM, s_BNM)[..., None].expand(*t_BNM.shape, 2).flatten(1)
    )  # min, because t=1 is noise
    return Levels(
        student_BK=torch.cat([pair_BK, clean_B1], dim=1),
        cleaner_BK=torch.cat([cleaner_BK, clean_B1], dim=1),
        level_of_BL=slot_L + masked_BL.long(),
        loss_BL=~given_BL,
        masked_BL=masked_BL,
    )


def homogeneous_levels(
    layout: Layout, num_clips: int, t: float, *, context_chunks: int = 0, clean_video: bool = False
) -> Levels:
    """One t for every token; the first `context_chunks`, and with `clean_video` all pictures, are clean and
    without loss. For evaluation."""
    table_BK = torch.full((num_clips, layout.num_levels), t)
    table_BK[:, : 4 * context_chunks] = 0.0
    table_BK[:, -1] = 0.0
    if clean_video:
        table_BK[:, :-1].unflatten(1, (layout.num_chunks, 2, 2))[:, :, 0] = 0.0
    learned_L = (layout.modality_L == VIDEO) & (not clean_video) | (layout.modality_L == AUDIO)
    loss_BL = (learned_L & (layout.chunk_L >= context_chunks)).expand(num_clips, -1)
    level_of_BL = layout.level_slot_L.expand(num_clips, -1)
    return Levels(table_BK, table_BK, level_of_BL, loss_BL, torch.zeros_like(loss_BL))
