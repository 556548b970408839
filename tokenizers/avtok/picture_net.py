"""The learned picture codec's network: principal components of 4x8x8 patches, and what a small network adds.

Both ways start as the principal components (the last layer of each branch starts at zero), so the network
can only improve on them. Nothing reaches beyond one step of four frames: the encoder is causal, the decoder
has no latency, and a stream is coded step by step exactly as a whole clip is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# N steps of four frames, H W patches of a picture, P values of a patch (4*8*8*3), C channels, D width.

NUM_VALUES = 4 * 8 * 8 * 3


@dataclass(frozen=True)
class PictureNetConfig:
    channels: int = 48
    encoder_width: int = 192
    encoder_blocks: int = 3
    decoder_width: int = 256
    decoder_blocks: int = 5


class PatchBlock(nn.Module):
    """A patch looks at its neighbours, then at itself (a ConvNeXt block, arXiv 2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.bias)

    def forward(self, x_NHWD: Tensor) -> Tensor:
        seen = rearrange(self.around(rearrange(x_NHWD, "n h w d -> n d h w")), "n d h w -> n h w d")
        return x_NHWD + self.down(F.gelu(self.up(self.norm(seen)), approximate="tanh"))


class Branch(nn.Sequential):
    """What the network adds to a linear map; at the start nothing."""

    def __init__(self, values_in: int, width: int, blocks: int, values_out: int) -> None:
        super().__init__(
            nn.Linear(values_in, width),
            *(PatchBlock(width) for _ in range(blocks)),
            nn.LayerNorm(width),
            nn.Linear(width, values_out),
        )
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


class PictureNet(nn.Module):
    """Patches [N, H, W, P] in [-1, 1] <-> latents [N, H, W, C] of unit rms over the training clips."""

    def __init__(self, cfg: PictureNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.project = nn.Linear(NUM_VALUES, cfg.channels)
        self.restore = nn.Linear(cfg.channels, NUM_VALUES)
        self.encoder = Branch(NUM_VALUES, cfg.encoder_width, cfg.encoder_blocks, cfg.channels)
        self.decoder = Branch(cfg.channels, cfg.decoder_width, cfg.decoder_blocks, NUM_VALUES)

    @torch.no_grad()
    def start_from(self, mean_P: Tensor, components_CP: Tensor, gain_C: Tensor) -> None:
        """Principal components, with latent = projection / gain."""
        self.project.weight.copy_(components_CP / gain_C[:, None])
        self.project.bias.copy_(-(components_CP / gain_C[:, None]) @ mean_P)
        self.restore.weight.copy_((components_CP * gain_C[:, None]).T)
        self.restore.bias.copy_(mean_P)

    def encode(self, patches_NHWP: Tensor) -> Tensor:
        return self.project(patches_NHWP) + self.encoder(patches_NHWP)

    def decode(self, latents_NHWC: Tensor) -> Tensor:
        return self.restore(latents_NHWC) + self.decoder(latents_NHWC)
