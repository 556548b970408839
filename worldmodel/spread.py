"""How much of their space features fill: spread and rank, of all tokens and by noise level. Features that
collapse lose both before a cosine tells it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# T tokens, D width, G groups of tokens.

TOKENS = 256  # of a micro-batch, from which both are estimated
FEWEST = 8  # tokens of a level that say something
GOLDEN = 0.6180339887498949  # its multiples, less whole numbers, fill [0, 1) evenly


@dataclass(frozen=True)
class Followed:
    """Features [..., D], and which of them there are: all where there is None."""

    features: Tensor
    valid: Tensor | None = None


@dataclass(frozen=True)
class Spread:
    """std: of a channel, a mean over channels. rank: participation ratio. by_level [levels, 3]: std and rank
    times the tokens that they were estimated from, and these."""

    std: Tensor
    rank: Tensor
    by_level: Tensor


@torch.no_grad()
def spread_of(followed: list[Followed], level_TN: Tensor) -> Spread:
    """Of what one modality follows, a mean over it; zeros where that is nothing. level_TN: 1 where a token is
    under loss at a level."""
    found_KG3 = [_of_one(one, level_TN) for one in followed]
    if not found_KG3:
        found_KG3 = [level_TN.new_zeros(1 + level_TN.shape[1], 3)]
    found_G3 = torch.stack(found_KG3).mean(0)
    std, rank, tokens = found_G3[0]
    return Spread(std / tokens.clamp_min(1), rank / tokens.clamp_min(1), found_G3[1:])


def participation_ratio(features: Tensor) -> Tensor:
    """(sum of variances)^2 / sum of squared variances along principal axes of [..., D]: 1 to D, a rank that
    needs no decomposition. Of the distribution that the tokens are drawn from: of a few tokens alone it would
    be their number at most."""
    return spread_of([Followed(features)], features.new_zeros(features[..., 0].numel(), 0)).rank


def _of_one(followed: Followed, level_TN: Tensor) -> Tensor:
    """[1 + levels, 3]: all that there is first."""
    features_TD = followed.features.flatten(0, -2)
    some = _spaced(len(features_TD), level_TN.device)
    is_there_T1 = level_TN.new_ones(len(features_TD), 1)
    if followed.valid is not None:
        is_there_T1 = followed.valid.reshape(-1, 1).to(level_TN)
    groups_TG = torch.cat([is_there_T1, level_TN * is_there_T1], dim=1)
    return _of_groups(features_TD[some].double(), groups_TG[some].double().T).float()


def _of_groups(some_TD: Tensor, in_GT: Tensor) -> Tensor:
    """[G, 3]: std and rank of the tokens of each group times their number, and that.

    Products between tokens tell the sum of squared variances: tokens are mostly fewer than channels. In
    float64, for groups may lie much further apart than their tokens.
    """
    some_TD = some_TD - some_TD.mean(0)
    count_G = in_GT.sum(1)
    some_G, free_G = count_G.clamp_min(1), (count_G - 1).clamp_min(1)
    mean_GD = in_GT @ some_TD / some_G[:, None]
    variance_GD = (in_GT @ some_TD.square() - some_G[:, None] * mean_GD.square()).clamp_min(0)
    variance_GD = variance_GD / free_G[:, None]
    # ((x_i - m) . (x_j - m))^2 summed over tokens i and j, with the mean m of a group, multiplied out.
    product_TT, to_mean_GT = some_TD @ some_TD.T, mean_GD @ some_TD.T
    squared_G = ((in_GT @ product_TT.square()) * in_GT).sum(1)
    squared_G -= 2 * some_G * (in_GT * to_mean_GT.square()).sum(1)
    squared_G += (some_G * mean_GD.square().sum(1)).square()
    rank_G = _unbiased(variance_GD.sum(1), squared_G / free_G.square(), free_G).clamp(1, some_TD.shape[1])
    told_G = count_G * (count_G >= FEWEST)
    return torch.stack([variance_GD.sqrt().mean(1) * told_G, rank_G * told_G, told_G], dim=1)


def _unbiased(trace_G: Tensor, squared_G: Tensor, free_G: Tensor) -> Tensor:
    """tr(C)^2 / tr(C C) of a covariance C, from its estimate S with m degrees of freedom. Of normal tokens
    E[tr(S S)] = (1 + 1/m) tr(C C) + tr(C)^2 / m, and E[tr(S)^2] = tr(C)^2 + 2 tr(C C) / m."""
    square_G = (squared_G - trace_G.square() / free_G) / (1 + 1 / free_G - 2 / free_G.square()).clamp_min(0.1)
    whole_G = trace_G.square() - 2 * square_G / free_G
    lowest_G = torch.where(trace_G > 0, torch.inf, 1)  # none told: more than tokens tell, or all are one
    return torch.where(square_G > 0, whole_G / square_G.clamp_min(1e-30), lowest_G)


def _spaced(tokens: int, device: torch.device) -> Tensor:
    """Numbers of TOKENS of them: one in each of as many equal parts, at another place in each, so that no
    place of a grid is missed."""
    if tokens <= TOKENS:
        return torch.arange(tokens, device=device)
    part = torch.arange(TOKENS, device=device, dtype=torch.float64)
    return ((part + (part * GOLDEN) % 1) * (tokens / TOKENS)).long()
