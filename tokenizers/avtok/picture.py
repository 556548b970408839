"""The learned picture codec: 4x8x8 patches, 16 pixel values a latent value, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avtok.devices import device_of
from avtok.half_weights import load_weights, save_codec
from avtok.picture_net import PictureNet, PictureNetConfig
from avtok.spec import CodecSpec
from avtok.video import patches_of, pixels_of

# T frames or steps, H W pixels or patches, P values of one patch, C channels.

STEPS_AT_ONCE = 64  # a long clip must not need memory for all of its activations


@dataclass(frozen=True)
class LearnedVideoCodec:
    """latent = network's output / one global scale. Deterministic: the same pixels give the same latents.

    trained_on: names of the files it was trained on, and of cuts of the same films, so that an evaluation can
    leave them out.
    """

    spec: CodecSpec
    net: PictureNet
    trained_on: tuple[str, ...] = ()

    @torch.inference_mode()
    def encode(self, video_THWC: np.ndarray) -> Tensor:
        """uint8 RGB [T, H, W, 3], T a multiple of 4 or 1 -> float32 [T/4, H/8, W/8, C]."""
        patches_THWP, device = torch.from_numpy(patches_of(video_THWC)), device_of(self.net)
        parts = [self.net.encode(part.to(device)).cpu() for part in patches_THWP.split(STEPS_AT_ONCE)]
        return torch.cat(parts) / self.spec.scale

    @torch.inference_mode()
    def decode(self, latents_THWC: Tensor) -> np.ndarray:
        """Latents [T, H, W, C] -> uint8 RGB [4T, 8H, 8W, 3], clamped."""
        latents_THWC = latents_THWC.detach().float().to(device_of(self.net)) * self.spec.scale
        return pixels_of(
            torch.cat([self.net.decode(part).cpu() for part in latents_THWC.split(STEPS_AT_ONCE)])
        )

    def save(self, folder: str | Path) -> None:
        save_codec(folder, "learned_video", self.spec, self.net, self.net.cfg, self.trained_on)

    @classmethod
    def load(
        cls, folder: str | Path, spec: CodecSpec, *, net: dict[str, int], trained_on: tuple[str, ...] = ()
    ) -> LearnedVideoCodec:
        """ValueError if the weights are not those that codec.json was written for."""
        network = PictureNet(PictureNetConfig(**net))
        load_weights(folder, spec, network)
        return cls(spec, network, trained_on)
