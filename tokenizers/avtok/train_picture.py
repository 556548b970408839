"""Train the learned picture codec: from principal components on, in CPU minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from avtok.picture import LearnedVideoCodec
from avtok.picture_net import PictureNet, PictureNetConfig
from avtok.schedule import cosine, follow
from avtok.spec import CodecSpec
from avtok.train import fit_video_codec
from avtok.video import PATCH_THW, patches_of

# N pieces of four frames, H W patches, P values of a patch, C channels; clips are uint8 [T, H, W, 3].

FRAMES = PATCH_THW[0]


@dataclass(frozen=True)
class PictureRecipe:
    """noise: latents of half of each batch get Gaussian noise of up to this share of their rms, so that the
    decoder forgives what a flow model gets wrong."""

    steps: int = 2000
    batch: int = 48
    lr: float = 2e-3
    warmup_steps: int = 50
    noise: float = 0.3
    ema: float = 0.995
    piece_px: int = 64
    seed: int = 0
    net: PictureNetConfig = field(default_factory=PictureNetConfig)


def train_picture_codec(
    groups: Sequence[Sequence[np.ndarray]],
    recipe: PictureRecipe,
    *,
    name: str,
    fps: int = 16,
    trained_on: Sequence[str] = (),
    on_step: Callable[[int, dict[str, float]], None] = lambda step, row: None,
) -> LearnedVideoCodec:
    """Each batch draws equally from every group, whatever their sizes. ValueError for clips that are too
    small."""
    for clip_THWC in (clip for group in groups for clip in group):
        if min(clip_THWC.shape[1:3]) < recipe.piece_px or len(clip_THWC) < FRAMES:
            raise ValueError(
                f"clips must have at least {FRAMES} frames of {recipe.piece_px} px, "
                f"got {list(clip_THWC.shape)}"
            )
    rng = np.random.default_rng(recipe.seed)
    net = _start(groups, recipe, rng, fps)
    average = PictureNet(recipe.net)
    average.load_state_dict(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=1e-3)
    for step in range(recipe.steps):
        patches_NHWP = torch.from_numpy(patches_of(_draw(groups, recipe, rng)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * cosine(step, steps=recipe.steps, warmup_steps=recipe.warmup_steps)
        loss, mse = _loss(net, patches_NHWP, recipe, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        follow(average, net, step=step, decay=recipe.ema)
        on_step(step, {"loss": float(loss.detach()), "psnr_db": _psnr_db(mse)})
    return _finish(
        average.eval().requires_grad_(False), groups, recipe, name=name, fps=fps, trained_on=trained_on
    )


def _start(
    groups: Sequence[Sequence[np.ndarray]], recipe: PictureRecipe, rng: np.random.Generator, fps: int
) -> PictureNet:
    """The network with principal components of a few hundred pieces."""
    pieces = (_draw(groups, recipe, rng) for _ in range(max(8, 400 // recipe.batch)))
    pca = fit_video_codec(pieces, components=recipe.net.channels, fps=fps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = PictureNet(recipe.net)
    net.start_from(pca.mean_P, pca.components_CP, pca.std_C.sqrt() * pca.spec.scale)
    return net


def _draw(
    groups: Sequence[Sequence[np.ndarray]], recipe: PictureRecipe, rng: np.random.Generator
) -> np.ndarray:
    """uint8 [N * 4, H, W, 3]: pieces at random times and places, some mirrored."""
    pieces = []
    for number in range(recipe.batch):
        group = groups[number % len(groups)]
        clip_THWC = group[int(rng.integers(len(group)))]
        first = rng.integers(len(clip_THWC) - FRAMES + 1)
        top, left = (rng.integers(side - recipe.piece_px + 1) for side in clip_THWC.shape[1:3])
        piece = clip_THWC[first : first + FRAMES, top : top + recipe.piece_px, left : left + recipe.piece_px]
        pieces.append(piece[:, :, ::-1] if rng.uniform() < 0.5 else piece)
    return np.concatenate(pieces)


def _loss(
    net: PictureNet, patches_NHWP: Tensor, recipe: PictureRecipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mean over pieces of the root of their squared error: between squared error, which only the hardest
    pieces would decide, and decibels, which only the easiest would."""
    latents_NHWC = net.encode(patches_NHWP)
    rms = latents_NHWC.detach().square().mean().sqrt()
    size_N = rng.uniform(0, recipe.noise, len(patches_NHWP)) * (rng.uniform(size=len(patches_NHWP)) < 0.5)
    noise = torch.from_numpy(rng.standard_normal(latents_NHWC.shape, dtype=np.float32))
    noisy_NHWC = latents_NHWC + rms * torch.from_numpy(size_N).float()[:, None, None, None] * noise
    error_NHWP = net.decode(noisy_NHWC) - patches_NHWP
    mse_N = rearrange(error_NHWP.square(), "n h w p -> n (h w p)").mean(-1)
    # The scale of latents is free, and a growing one would make the noise nothing: hold it at one.
    held = 0.01 * (latents_NHWC.square().mean() - 1).square()
    return (mse_N + 1e-6).sqrt().mean() + held, mse_N.detach()[torch.from_numpy(size_N == 0)]


def _psnr_db(mse_N: Tensor) -> float:
    """Of values in [-1, 1], as of bytes: mean over pieces."""
    return float((-10 * (mse_N / 4).clamp_min(1e-9).log10()).mean())


def _finish(
    net: PictureNet,
    groups: Sequence[Sequence[np.ndarray]],
    recipe: PictureRecipe,
    *,
    name: str,
    fps: int,
    trained_on: Sequence[str],
) -> LearnedVideoCodec:
    """The codec with its scale measured on fresh pieces, and weights as half precision will hold them."""
    net.load_state_dict({key: w.half().float() for key, w in net.state_dict().items()})
    rng = np.random.default_rng(recipe.seed + 1)
    with torch.no_grad():
        parts = [net.encode(torch.from_numpy(patches_of(_draw(groups, recipe, rng)))) for _ in range(8)]
    scale = float(torch.cat(parts).square().mean().sqrt())
    spec = CodecSpec(
        name=name,
        modality="video",
        rate_hz=fps,
        stride_units=FRAMES,
        channels=recipe.net.channels,
        spatial_stride=PATCH_THW[1:],
        scale=scale,
    )
    return LearnedVideoCodec(spec, net, tuple(trained_on))
