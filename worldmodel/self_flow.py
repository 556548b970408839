"""The Self-Flow step (arXiv 2603.06507) and its rivals by switches of the same step.

The student denoises tokens at two noise levels; its projected features at 0.3 of the depth follow those of
the EMA teacher at 0.7, which sees every token at the cleaner level with the same noise and the same condition
drop. With other switches the features follow a later layer, a frozen encoder, or the velocity itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.config import SelfFlowConfig
from worldmodel.draw import Draw
from worldmodel.flow import MIN_DIVISOR, predicted_velocity, velocity_target
from worldmodel.layout import LEARNED
from worldmodel.model.student import tokens_of
from worldmodel.spread import Followed, Spread, spread_of

# B clips, L tokens, N chunks, V tokens of one modality in a chunk, C channels of a token, D width, K noise
# levels.

Network = Callable[..., dict[str, Any]]
LEVEL_BINS = 5  # of the noise levels at which losses are told apart
LEVEL_SUMS = ("flow", "cosine", "masked", "gap", "count", "std", "rank", "sampled")


@dataclass(frozen=True)
class Losses:
    """Sums over tokens under loss of each modality, [video, audio]: means need the count over all ranks.

    by_level [2, LEVEL_BINS, LEVEL_SUMS]: at the noise levels of the student, spread and rank times the tokens
    that were sampled. target_std and target_rank: of what features follow, times the count.
    """

    flow: Tensor
    align: Tensor
    cosine: Tensor
    target_std: Tensor
    target_rank: Tensor
    by_level: Tensor
    is_still: bool = False

    def objective(self, divisors: Tensor, cfg: SelfFlowConfig) -> Tensor:
        """Sum over modalities of weight * (flow + align_weight * align) / divisor, [video, audio]: the tokens
        under loss of all ranks, or as `Signals.divisors` has them where not every micro-batch is of each."""
        pictures = cfg.image_weight if self.is_still else cfg.video_weight
        weight = torch.tensor([pictures, cfg.audio_weight], device=self.flow.device)
        share = weight / divisors.to(self.flow).clamp_min(1)
        return (share * (self.flow + cfg.align_weight * self.align)).sum()


@dataclass(frozen=True)
class Alignment:
    """Per token of each modality: what is added to the loss, its cosine, and the features that are followed,
    where there are any."""

    loss: dict[str, Tensor]
    cosine: dict[str, Tensor]
    followed: dict[str, list[Followed]]


def layers_of(cfg: SelfFlowConfig, depth: int) -> tuple[int, int]:
    """Student and teacher layer, 1-based, as the nearest integers of their fractions of the depth."""
    return max(1, round(cfg.student_layer * depth)), max(1, round(cfg.teacher_layer * depth))


def tapped_layers(cfg: SelfFlowConfig, depth: int) -> tuple[int, ...]:
    """Layers of the student whose features a switch needs."""
    student_layer, teacher_layer = layers_of(cfg, depth)
    return {
        "none": (),
        "ema": (student_layer,),
        "repa": (student_layer,),
        "layersync": (student_layer, teacher_layer),
        "velocity_heads": (student_layer, teacher_layer),
    }[cfg.rep]


def self_flow_losses(
    student: Network, teacher: Network | None, batch: Draw, cfg: SelfFlowConfig, depth: int
) -> Losses:
    """Denoise at two noise levels; predict the EMA teacher's view of the cleaner one.

    arXiv 2603.06507, equations 4 to 7.
    """
    target_BLD = None
    if cfg.has_teacher and teacher is not None:
        target_BLD = _teacher_features(teacher, batch, cfg, depth)
    tokens, x_t, t = batch.tokens_at(batch.levels.student_BK, apart=True)
    out = student(
        tokens,
        batch.levels.student_BK,
        batch.levels.level_of_BL,
        layout=batch.layout,
        features=() if cfg.has_teacher and teacher is None else tapped_layers(cfg, depth),
    )
    flow = {m: _flow(batch, out[m], x_t[m], t[m], m, cfg) for m in LEARNED}
    aligned = _aligned(out, target_BLD, batch, x_t, t, cfg)
    zeros = {m: torch.zeros_like(flow[m]) for m in LEARNED}
    if aligned is None:
        aligned = Alignment(zeros, zeros, {m: [] for m in LEARNED})
    levels = {m: _levels_under_loss(batch, m, t[m]) for m in LEARNED}
    spreads = {m: spread_of(aligned.followed[m], levels[m]) for m in LEARNED}
    counts = batch.counts().to(flow["video"])
    return Losses(
        flow=torch.stack([flow[m].sum() for m in LEARNED]),
        align=torch.stack([aligned.loss[m].sum() for m in LEARNED]),
        cosine=torch.stack([aligned.cosine[m].sum() for m in LEARNED]).detach(),
        target_std=torch.stack([spreads[m].std for m in LEARNED]) * counts,
        target_rank=torch.stack([spreads[m].rank for m in LEARNED]) * counts,
        by_level=torch.stack(
            [_by_level(batch, m, flow[m], aligned.cosine[m], levels[m], spreads[m]) for m in LEARNED]
        ),
        is_still=batch.is_still,
    )


@torch.no_grad()
def _teacher_features(teacher: Network, batch: Draw, cfg: SelfFlowConfig, depth: int) -> Tensor:
    """[B, L, D] of the cleaner view; no layer beyond the last one that is needed runs."""
    _, layer = layers_of(cfg, depth)
    tokens, _, _ = batch.tokens_at(batch.levels.cleaner_BK)
    out = teacher(
        tokens,
        batch.levels.cleaner_BK,
        batch.levels.level_of_BL,
        layout=batch.layout,
        features=(layer,),
        stop_after=layer,
    )
    target_BLD = out["features"][0]
    return target_BLD.roll(1, dims=0) if cfg.teacher_shuffled else target_BLD


def _aligned(
    out: dict[str, Any],
    target_BLD: Tensor | None,
    batch: Draw,
    x_t: dict[str, Tensor],
    t: dict[str, Tensor],
    cfg: SelfFlowConfig,
) -> Alignment | None:
    """What the switch `rep` adds; None where nothing is followed."""
    if target_BLD is not None:
        return _cosines(batch, {m: tokens_of(out["projected"], m, batch.layout) for m in LEARNED}, target_BLD)
    if cfg.rep == "layersync":
        early_BLD, late_BLD = out["features"]
        return _cosines(batch, {m: tokens_of(early_BLD, m, batch.layout) for m in LEARNED}, late_BLD.detach())
    if cfg.rep == "repa":
        return _frozen_encoders(batch, out["predicted_targets"])
    if cfg.rep == "velocity_heads":
        return _velocities(batch, out["velocities"], x_t, t, cfg)
    return None


def _cosines(batch: Draw, followers: dict[str, Tensor], target_BLD: Tensor) -> Alignment:
    """1 - cosine over channels of each token under loss."""
    cosine, targets = {}, {m: tokens_of(target_BLD, m, batch.layout).float() for m in LEARNED}
    for m in LEARNED:
        # dim=-1: the default is over tokens. fp32: late features exceed what half precision holds.
        found = F.cosine_similarity(followers[m].float(), targets[m], dim=-1)
        cosine[m] = torch.where(batch.loss_mask(m), found, found.new_zeros(()))
    loss = {m: torch.where(batch.loss_mask(m), 1 - cosine[m], cosine[m].new_zeros(())) for m in LEARNED}
    return Alignment(loss, cosine, {m: [Followed(targets[m])] for m in LEARNED})


def _frozen_encoders(batch: Draw, predicted: dict[str, Tensor]) -> Alignment:
    """1 - cosine to the features of each encoder, a mean over those of one modality (arXiv 2410.06940)."""
    zero = {m: torch.zeros_like(batch.loss_mask(m), dtype=torch.float32) for m in LEARNED}
    loss, cosine = dict(zero), dict(zero)
    followed: dict[str, list[Followed]] = {m: [] for m in LEARNED}
    of_kind = {m: [name for name in predicted if batch.targets[name].modality == m] for m in LEARNED}
    for m in LEARNED:
        for name in of_kind[m]:
            target, valid = batch.targets[name].features.float(), batch.targets[name].valid
            found = F.cosine_similarity(predicted[name].float(), target, dim=-1)
            mask = batch.loss_mask(m) & valid
            share = 1 / len(of_kind[m])
            cosine[m] = cosine[m] + share * torch.where(mask, found, 0.0)
            loss[m] = loss[m] + share * torch.where(mask, 1 - found, 0.0)
            followed[m].append(Followed(target, valid))
    return Alignment(loss, cosine, followed)


def _velocities(
    batch: Draw,
    layers: list[dict[str, Tensor]],
    x_t: dict[str, Tensor],
    t: dict[str, Tensor],
    cfg: SelfFlowConfig,
) -> Alignment:
    """The velocity error of heads on hidden layers, a mean over them."""
    loss = {
        m: torch.stack([_flow(batch, heads[m].float(), x_t[m], t[m], m, cfg) for heads in layers]).mean(0)
        for m in LEARNED
    }
    return Alignment(loss, {m: torch.zeros_like(loss[m]) for m in LEARNED}, {m: [] for m in LEARNED})


@torch.no_grad()
def _levels_under_loss(batch: Draw, modality: str, t: Tensor) -> Tensor:
    """[tokens, LEVEL_BINS]: 1 where a token is under loss between two noise levels."""
    bins = (t[..., 0] * LEVEL_BINS).long().clamp_max(LEVEL_BINS - 1)
    return F.one_hot(bins, LEVEL_BINS).flatten(0, -2).float() * batch.loss_mask(modality).flatten()[:, None]


@torch.no_grad()
def _by_level(
    batch: Draw, modality: str, flow: Tensor, cosine: Tensor, level_TN: Tensor, spread: Spread
) -> Tensor:
    """[LEVEL_BINS, LEVEL_SUMS] over tokens under loss."""
    masked = batch.of(batch.levels.masked_BL, modality)
    values = (flow, cosine, masked, batch.level_gap(modality), torch.ones_like(flow))
    sums = level_TN.T @ torch.stack([value.flatten().float() for value in values], dim=-1)
    return torch.cat([sums, spread.by_level], dim=1)


def _flow(batch: Draw, output: Tensor, x_t: Tensor, t: Tensor, modality: str, cfg: SelfFlowConfig) -> Tensor:
    """[B, N, V]: squared velocity error, weighted by cfg.loss_min_t, mean over channels; 0 without loss."""
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
    return torch.where(batch.loss_mask(modality), error.square().mean(-1), error.new_zeros(()))
