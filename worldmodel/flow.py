"""The time convention: t=0 is data, t=1 is noise. Nobody else writes 1 - t.

x_t = (1 - t) x0 + t x1 and v = x1 - x0 (arXiv 2603.06507, eq. 1-2). `sample_levels` alone decides the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from worldmodel.config import NoiseConfig, SelfFlowConfig, TimeConfig
from worldmodel.layout import AUDIO, VIDEO, Layout
from worldmodel.randomness import SampleRandom

# B clips, L tokens, K noise levels of a row, M modalities (video, audio), N chunks.

NOISIEST_FROM = 0.95
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

    student_BK: t and s of each (chunk, modality) slot, the level of first frames and the clean one of
    conditions; cleaner_BK: the teacher's table, where both entries of a slot are min(t, s). level_of_BL:
    which entry a token uses. loss_BL: tokens under loss. masked_BL: tokens at s.
    """

    student_BK: Tensor
    cleaner_BK: Tensor
    level_of_BL: Tensor
    loss_BL: Tensor
    masked_BL: Tensor

    def per_token(self, table_BK: Tensor) -> Tensor:
        return table_BK.gather(1, self.level_of_BL)


def sample_levels(
    layout: Layout,
    cfg: SelfFlowConfig,
    rng: SampleRandom,
    *,
    is_still: bool = False,
    learned_BM: Tensor | None = None,
) -> Levels:
    """Row mode, then modalities tied or apart or one clean, then the token mask. t and s are i.i.d. and not
    sorted, so that the marginal of every token stays p(t).

    learned_BM: modalities from which each clip teaches something; None is both of all. One is clean for the
    other's sake, so the only one never is.
    """
    noise = cfg.noise
    row_B = rng.uniform("row", (1,))[:, 0]
    pair_B = rng.uniform("pair", (1,))[:, 0]
    same_B = row_B >= noise.history_rows + noise.independent_rows  # one t and one s for all chunks
    pictures = noise.times("image" if is_still else "video")
    t_BNM, s_BNM = (
        _times(n, layout, rng, (pictures, noise.times("audio")), same_B=same_B, tied_B=pair_B < noise.tied)
        for n in "ts"
    )
    if not cfg.dual:
        s_BNM = t_BNM
    if learned_BM is None:
        learned_BM = torch.ones(len(row_B), 2, dtype=torch.bool)
    given_BNM, given_t_BNM = _given_chunks(layout, noise, rng, learned_BM, row_B=row_B, pair_B=pair_B)
    t_BNM, s_BNM = (torch.where(given_BNM, given_t_BNM, x) for x in (t_BNM, s_BNM))
    first_BL, first_t_B1 = _first_frames(layout, noise, rng)

    slot_L = layout.level_slot_L
    given_BL = _per_token(given_BNM, layout) | first_BL
    ratio_L = torch.zeros(layout.length)
    ratio_L[layout.modality_L == VIDEO] = cfg.mask_ratio_image if is_still else cfg.mask_ratio_video
    ratio_L[layout.modality_L == AUDIO] = cfg.mask_ratio_audio
    masked_BL = (rng.uniform("mask", (layout.length,)) < ratio_L) & ~given_BL

    others_B2 = torch.cat([first_t_B1, torch.zeros_like(first_t_B1)], 1)  # first frames and conditions
    shown_BNM = _shown_to_teacher(t_BNM, s_BNM, given_BNM, cfg, rng)
    return Levels(
        student_BK=torch.cat([torch.stack([t_BNM, s_BNM], dim=-1).flatten(1), others_B2], dim=1),
        cleaner_BK=torch.cat([torch.stack(shown_BNM, dim=-1).flatten(1), others_B2], dim=1),
        level_of_BL=torch.where(first_BL, layout.first_frame_slot, slot_L + masked_BL.long()),
        loss_BL=~given_BL,
        masked_BL=masked_BL,
    )


def _times(
    name: str,
    layout: Layout,
    rng: SampleRandom,
    times: tuple[TimeConfig, TimeConfig],
    *,
    same_B: Tensor,
    tied_B: Tensor,
) -> Tensor:
    """[B, N, M] draws of one of t and s. Tied modalities share a quantile, so where one is cleaner in one of
    them it is in the other."""

    def base(part: str) -> Tensor:
        u_BNM = rng.uniform(f"{name}.{part}", (layout.num_chunks, 2))
        u_BNM = torch.where(same_B[:, None, None], u_BNM[:, :1].expand_as(u_BNM), u_BNM)
        return torch.where(tied_B[:, None, None], u_BNM[..., :1].expand_as(u_BNM), u_BNM)

    quantile_BNM = base("u")
    needs_more = any(cfg.noisiest for cfg in times)
    high_BNM, where_BNM = (base("high"), base("where")) if needs_more else (quantile_BNM, quantile_BNM)
    parts = []
    for m, cfg in enumerate(times):
        t_BN = time_of_quantile(quantile_BNM[..., m], cfg)
        if cfg.noisiest:
            high_BN = NOISIEST_FROM + (1 - NOISIEST_FROM) * where_BNM[..., m]
            t_BN = torch.where(high_BNM[..., m] < cfg.noisiest, high_BN, t_BN)
        parts.append(t_BN)
    return torch.stack(parts, dim=-1)


def time_of_quantile(u: Tensor, cfg: TimeConfig) -> Tensor:
    """Inverse of the distribution function of p(t); shift a > 1 is noisier."""
    if cfg.distribution == "uniform":
        return cfg.shift * u / (1 + (cfg.shift - 1) * u)
    mean = math.log(cfg.shift)
    if cfg.distribution == "logit_normal":
        return torch.sigmoid(mean + cfg.sigma * torch.special.ndtri(u))
    mode, below, peak = _plateau(mean, cfg.sigma)
    mass = u * (below + peak * (1 - mode))
    rising = torch.sigmoid(mean + cfg.sigma * torch.special.ndtri(mass.clamp_max(below)))
    return torch.where(mass < below, rising, mode + (mass - below) / peak)


@lru_cache
def _plateau(mean: float, sigma: float) -> tuple[float, float, float]:
    """Of the logit-normal: its highest mode, the mass below it and the density there."""

    def density(t: float) -> float:
        z = (math.log(t / (1 - t)) - mean) / sigma
        return math.exp(-z * z / 2) / (sigma * math.sqrt(2 * math.pi) * t * (1 - t))

    mode = max((i / 10_000 for i in range(1, 10_000)), key=density)
    z = (math.log(mode / (1 - mode)) - mean) / sigma
    return mode, 0.5 * (1 + math.erf(z / math.sqrt(2))), density(mode)


def _given_chunks(
    layout: Layout,
    noise: NoiseConfig,
    rng: SampleRandom,
    learned_BM: Tensor,
    *,
    row_B: Tensor,
    pair_B: Tensor,
) -> tuple[Tensor, Tensor]:
    """[B, N, M] what is seen and not learned, context or a clean modality, and its level."""
    num_chunks = layout.num_chunks
    history_B = row_B < noise.history_rows
    half = (1 - noise.tied - noise.independent) / 2
    clean_video_B = (pair_B >= noise.tied + noise.independent) & (
        pair_B < noise.tied + noise.independent + half
    )
    clean_audio_B = pair_B >= noise.tied + noise.independent + half
    clean_BM = torch.stack([clean_video_B, clean_audio_B], dim=-1) & learned_BM.flip(1)
    clean_BNM = clean_BM[:, None, :].expand(-1, num_chunks, -1)
    context_BN = (rng.uniform("context", (num_chunks,)) < noise.context_chunk) & history_B[:, None]
    # A row whose every chunk is context would teach nothing: its last chunk stays a target.
    context_BN[:, -1] &= ~context_BN.all(dim=1)
    context_t_BN = rng.uniform("context.t", (num_chunks,)) * noise.context_noise
    given_t_BNM = torch.where(clean_BNM, 0.0, context_t_BN[..., None])
    return context_BN[..., None] | clean_BNM, given_t_BNM


def _first_frames(layout: Layout, noise: NoiseConfig, rng: SampleRandom) -> tuple[Tensor, Tensor]:
    """[B, L] tokens of first latent steps that are given, and their level [B, 1]."""
    none_B = torch.zeros(len(rng.sample_ids), 1)
    if not noise.first_frame or layout.num_chunks * layout.video_steps == 1:
        return none_B.bool().expand(-1, layout.length), none_B
    rows, columns = layout.video_grid
    is_first_L = (layout.modality_L == VIDEO) & (layout.chunk_L == 0)
    is_first_L &= is_first_L.cumsum(0) <= rows * columns
    has_B1 = rng.uniform("first", (1,)) < noise.first_frame
    return has_B1 & is_first_L, rng.uniform("first.t", (1,)) * noise.first_frame_noise


def _shown_to_teacher(
    t_BNM: Tensor, s_BNM: Tensor, given_BNM: Tensor, cfg: SelfFlowConfig, rng: SampleRandom
) -> tuple[Tensor, Tensor]:
    """What the teacher sees where the student sees t, and where it sees s."""
    if cfg.teacher_t == "same":
        return t_BNM, s_BNM
    if cfg.teacher_t == "min":
        cleaner_BNM = torch.minimum(t_BNM, s_BNM)  # min, because t=1 is noise
        return cleaner_BNM, cleaner_BNM
    offset_B11 = rng.uniform("offset", (1,))[..., None] * cfg.teacher_offset  # SRA: one a clip
    t, s = (torch.where(given_BNM, x, (x - offset_B11).clamp_min(0)) for x in (t_BNM, s_BNM))
    return t, s


def _per_token(which_BNM: Tensor, layout: Layout) -> Tensor:
    """[B, N, M] -> [B, L]; conditions count as True."""
    by_slot_BK = which_BNM.flatten(1).repeat_interleave(2, dim=1)
    others_B2 = torch.ones(len(which_BNM), 2, dtype=torch.bool)
    return torch.cat([by_slot_BK, others_B2], 1)[:, layout.level_slot_L]


def homogeneous_levels(
    layout: Layout, num_clips: int, t: float, *, context_chunks: int = 0, clean_video: bool = False
) -> Levels:
    """One t for every token; the first `context_chunks`, and with `clean_video` all pictures, are clean and
    without loss. For evaluation."""
    table_BK = torch.full((num_clips, layout.num_levels), t)
    table_BK[:, : 4 * context_chunks] = 0.0
    table_BK[:, -2:] = 0.0
    if clean_video:
        table_BK[:, :-2].unflatten(1, (layout.num_chunks, 2, 2))[:, :, 0] = 0.0
    learned_L = (layout.modality_L == VIDEO) & (not clean_video) | (layout.modality_L == AUDIO)
    loss_BL = (learned_L & (layout.chunk_L >= context_chunks)).expand(num_clips, -1)
    level_of_BL = layout.level_slot_L.expand(num_clips, -1)
    return Levels(table_BK, table_BK, level_of_BL, loss_BL, torch.zeros_like(loss_BL))
