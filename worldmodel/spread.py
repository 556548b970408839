"""How much of their space features fill: spread and rank, of all tokens and by noise level. Features that
collapse lose both before a cosine tells it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# T tokens, D width, G groups of tokens.

TOKENS = 256  # of a micro-batch, evenly spaced, from which both are estimated; no rank is higher
FEWEST = 2  # tokens that have a spread


@dataclass(frozen=True)
class Spread:
    """std: of a channel, a mean over channels. rank: participation ratio. by_level [levels, 3]: std and rank
    times the tokens that they were estimated from, and these."""

    std: Tensor
    rank: Tensor
    by_level: Tensor


@torch.no_grad()
def spread_of(features: list[Tensor], level_TN: Tensor) -> Spread:
    """Of features [..., D] that one modality follows, a mean over them; zeros where it follows none.
    level_TN: 1 where a token is under loss at a level."""
    if not features:
        zero = level_TN.new_zeros(())
        return Spread(zero, zero, level_TN.new_zeros(level_TN.shape[1], 3))
    groups_TG = torch.cat([level_TN.new_ones(len(level_TN), 1), level_TN], dim=1)  # the first is of all
    found_G3 = torch.stack([_of_groups(x.flatten(0, -2), groups_TG) for x in features]).mean(0)
    std, rank, tokens = found_G3[0]
    return Spread(std / tokens.clamp_min(1), rank / tokens.clamp_min(1), found_G3[1:])


def participation_ratio(features: Tensor) -> Tensor:
    """(sum of variances)^2 / sum of squared variances along principal axes of [..., D]: 1 to D, a rank that
    needs no decomposition."""
    return spread_of([features], features.new_zeros(features[..., 0].numel(), 0)).rank


def _of_groups(features_TD: Tensor, groups_TG: Tensor) -> Tensor:
    """[G, 3]: std and rank of the tokens of each group times their number, and that.

    Products between tokens tell the sum of squared variances: tokens are mostly fewer than channels. In
    float64, for groups may lie much further apart than their tokens.
    """
    some_TD = _evenly(features_TD).double()
    some_TD = some_TD - some_TD.mean(0)
    in_GT = _evenly(groups_TG).double().T
    count_G = in_GT.sum(1)
    some_G = count_G.clamp_min(1)
    mean_GD = in_GT @ some_TD / some_G[:, None]
    squares_GD = (in_GT @ some_TD.square() - some_G[:, None] * mean_GD.square()).clamp_min(0)
    std_G = (squares_GD / (some_G - 1).clamp_min(1)[:, None]).sqrt().mean(1)
    # ((x_i - m) . (x_j - m))^2 summed over tokens i and j, with the mean m of a group, multiplied out.
    product_TT, to_mean_GT = some_TD @ some_TD.T, mean_GD @ some_TD.T
    squared_G = ((in_GT @ product_TT.square()) * in_GT).sum(1)
    squared_G -= 2 * some_G * (in_GT * to_mean_GT.square()).sum(1)
    squared_G += (some_G * mean_GD.square().sum(1)).square()
    rank_G = (squares_GD.sum(1).square() / squared_G.clamp_min(1e-20)).minimum(some_G)
    told_G = count_G * (count_G >= FEWEST)
    return torch.stack([std_G * told_G, rank_G * told_G, told_G], dim=1).float()


def _evenly(x_T: Tensor) -> Tensor:
    return x_T[:: max(1, len(x_T) // TOKENS)][:TOKENS]
