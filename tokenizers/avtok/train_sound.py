"""Train the learned sound codec from multi-resolution spectra, in CPU minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from avtok.schedule import cosine, follow
from avtok.sound import LearnedAudioCodec, spec_of
from avtok.sound_net import HOP, SoundNet, SoundNetConfig, multi_resolution_stft_loss

# B pieces, N samples, T steps, C channels; clips are float32 [N] at 16 kHz.


@dataclass(frozen=True)
class SoundRecipe:
    """noise: latents of half of each batch get Gaussian noise of up to this share of their deviation, so that
    the decoder forgives what a flow model gets wrong. shares: how much of a batch each group of clips has."""

    steps: int = 2500
    batch: int = 12
    piece_steps: int = 64
    lr: float = 2e-3
    warmup_steps: int = 50
    noise: float = 0.3
    ema: float = 0.995
    seed: int = 0
    shares: tuple[float, ...] = ()
    net: SoundNetConfig = field(default_factory=SoundNetConfig)


def train_sound_codec(
    groups: Sequence[Sequence[np.ndarray]],
    recipe: SoundRecipe,
    *,
    name: str,
    trained_on: Sequence[str] = (),
    on_step: Callable[[int, dict[str, float]], None] = lambda step, row: None,
) -> LearnedAudioCodec:
    """ValueError for groups without shares, or without clips."""
    shares = recipe.shares or (1.0,) * len(groups)
    if len(shares) != len(groups) or not all(map(len, groups)):
        raise ValueError(f"{len(groups)} groups of clips need as many shares and one clip each, got {shares}")
    rng = np.random.default_rng(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = SoundNet(recipe.net)
    average = SoundNet(recipe.net)
    average.load_state_dict(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, betas=(0.8, 0.95), weight_decay=1e-3)
    for step in range(recipe.steps):
        samples_BN = _draw(groups, shares, recipe, net.left_context, rng)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * cosine(step, steps=recipe.steps, warmup_steps=recipe.warmup_steps)
        loss = _loss(net, samples_BN, recipe, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        follow(average, net, step=step, decay=recipe.ema)
        on_step(step, {"loss": float(loss.detach())})
    _measure_latents(average, groups, shares, recipe)
    average.load_state_dict({key: w.half().float() for key, w in average.state_dict().items()})
    return LearnedAudioCodec(spec_of(average, name), average.eval().requires_grad_(False), tuple(trained_on))


def _draw(
    groups: Sequence[Sequence[np.ndarray]],
    shares: Sequence[float],
    recipe: SoundRecipe,
    context: int,
    rng: np.random.Generator,
) -> Tensor:
    """[B, context + N]: pieces at random places, louder or quieter; what a clip lacks is silence."""
    length = context + recipe.piece_steps * HOP
    pieces = np.zeros((recipe.batch, length), np.float32)
    chosen = rng.choice(len(groups), size=recipe.batch, p=np.array(shares) / sum(shares))
    for row, number in zip(pieces, chosen, strict=True):
        clip_N = groups[number][rng.integers(len(groups[number]))]
        first = rng.integers(-context, max(1, len(clip_N) - length + context))
        part_N = clip_N[max(0, first) : first + length]
        begin = max(0, -first)
        row[begin : begin + len(part_N)] = part_N[: length - begin] * 10 ** rng.uniform(-0.6, 0.1)
    return torch.from_numpy(pieces.clip(-1, 1))


def _loss(net: SoundNet, samples_BN: Tensor, recipe: SoundRecipe, rng: np.random.Generator) -> Tensor:
    latents_BTC = net.encode(samples_BN)
    mean_C, std_C = _moments(latents_BTC)
    latents_BTC = (latents_BTC - mean_C) / std_C
    size_B = rng.uniform(0, recipe.noise, len(latents_BTC)) * (rng.uniform(size=len(latents_BTC)) < 0.5)
    noise = torch.from_numpy(rng.standard_normal(latents_BTC.shape, dtype=np.float32))
    decoded_BN = net.decode(latents_BTC + torch.from_numpy(size_B).float()[:, None, None] * noise)
    return multi_resolution_stft_loss(decoded_BN, samples_BN[:, net.left_context :])


def _moments(latents_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """Batch statistics, as an affine-free batch norm has them: the scale of latents cannot run away."""
    flat = latents_BTC.flatten(0, 1)
    return flat.mean(0), flat.std(0) + 1e-3


@torch.no_grad()
def _measure_latents(
    net: SoundNet, groups: Sequence[Sequence[np.ndarray]], shares: Sequence[float], recipe: SoundRecipe
) -> None:
    """Mean and deviation of each channel over fresh pieces become part of the codec."""
    rng = np.random.default_rng(recipe.seed + 1)
    parts = [net.encode(_draw(groups, shares, recipe, net.left_context, rng)) for _ in range(24)]
    mean_C, std_C = _moments(torch.cat(parts))
    net.mean_C.copy_(mean_C)
    net.std_C.copy_(std_C)
