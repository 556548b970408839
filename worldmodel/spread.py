"""How much of their space features fill: spread and rank, of all tokens and by noise level. Features that
collapse lose both before a cosine tells it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOKENS = 1024  # of a micro-batch, evenly spaced, from which a rank is estimated
TOKENS_BY_LEVEL = 512  # for all levels together
FEWEST = 2  # tokens that have a spread


@dataclass(frozen=True)
class Spread:
    """std: of a channel, a mean over channels. rank: 1 to D. by_level [levels, 3]: std and rank times the
    tokens that they were estimated from, and these."""

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
    std = [x.flatten(0, -2).std(dim=0).mean() for x in features]
    rank = [participation_ratio(x) for x in features]
    by_level = [_by_level(x, level_TN) for x in features]
    return Spread(*(torch.stack(values).mean(0) for values in (std, rank, by_level)))


@torch.no_grad()
def participation_ratio(features: Tensor) -> Tensor:
    """(sum of variances)^2 / sum of squared variances along principal axes of [..., D]: 1 to D, a rank that
    needs no decomposition."""
    some_TD = _evenly(features.flatten(0, -2), TOKENS).float()
    return _ratio((some_TD - some_TD.mean(0))[None])[0]


def _by_level(features: Tensor, level_TN: Tensor) -> Tensor:
    some_TD = _evenly(features.flatten(0, -2), TOKENS_BY_LEVEL).float()
    weight_NT = _evenly(level_TN, TOKENS_BY_LEVEL).float().T
    tokens_N = weight_NT.sum(1)
    mean_ND = weight_NT @ some_TD / tokens_N.clamp_min(1)[:, None]
    centred_NTD = (some_TD - mean_ND[:, None]) * weight_NT[..., None]
    variance_ND = centred_NTD.square().sum(1) / (tokens_N - 1).clamp_min(1)[:, None]
    tokens_N = tokens_N * (tokens_N >= FEWEST)
    std_N, rank_N = variance_ND.sqrt().mean(1), _ratio(centred_NTD)
    return torch.stack([std_N * tokens_N, rank_N * tokens_N, tokens_N], dim=1)


def _ratio(centred_NTD: Tensor) -> Tensor:
    """Of what varies about zero. Whichever of tokens and channels are fewer make the matrix."""
    tokens, channels = centred_NTD.shape[1:]
    other = centred_NTD.mT
    covariance = other @ centred_NTD if channels < tokens else centred_NTD @ other
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    return trace.square() / covariance.square().sum((1, 2)).clamp_min(1e-20)


def _evenly(x_T: Tensor, most: int) -> Tensor:
    return x_T[:: max(1, len(x_T) // most)][:most]
