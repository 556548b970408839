"""The learned sound codec: 64 steps/s of 32 channels from log-mel energies, and a decoder with phase."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avtok.devices import device_of
from avtok.half_weights import load_weights, save_codec
from avtok.sound_net import HOP, LOOK_AHEAD, OVERLAP, RATE_HZ, SoundNet, SoundNetConfig
from avtok.spec import CodecSpec

# N samples, T steps, C channels.


@dataclass(frozen=True)
class LearnedAudioCodec:
    """Latents of zero mean and unit variance a channel. Step i covers samples [250 i, 250 (i + 1))."""

    spec: CodecSpec
    net: SoundNet
    trained_on: tuple[str, ...] = ()

    @torch.inference_mode()
    def encode(self, audio_N: np.ndarray | Tensor, *, context_samples: int = 0) -> Tensor:
        """float32 mono, its first `context_samples` being left context -> [T, C].

        A rest below one step is left out. What the context lacks of spec.left_context_units counts as
        silence, as before the start of a recording.
        """
        samples_N = torch.as_tensor(audio_N, dtype=torch.float32)
        if samples_N.ndim != 1 or not 0 <= context_samples <= len(samples_N):
            raise ValueError(
                f"sound must be mono [N], N >= context_samples={context_samples}, got {list(samples_N.shape)}"
            )
        steps = (len(samples_N) - context_samples) // HOP
        if not steps:
            return torch.zeros(0, self.spec.channels)
        context = self.net.left_context
        samples_N = samples_N[max(0, context_samples - context) : context_samples + steps * HOP]
        padded_N = F.pad(samples_N, (context + steps * HOP - len(samples_N), 0)).to(device_of(self.net))
        return ((self.net.encode(padded_N[None]) - self.net.mean_C) / self.net.std_C)[0].cpu()

    @torch.inference_mode()
    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """[T, C] -> float32 samples [250 T] in [-1, 1]; the same latents give the same samples."""
        if not len(latents_TC):
            return np.zeros(0, dtype=np.float32)
        latents_TC = latents_TC.detach().float().to(device_of(self.net))
        return self.net.decode(latents_TC[None])[0].clamp(-1, 1).cpu().numpy()

    def save(self, folder: str | Path) -> None:
        save_codec(folder, "learned_audio", self.spec, self.net, self.net.cfg, self.trained_on)

    @classmethod
    def load(
        cls, folder: str | Path, spec: CodecSpec, *, net: dict[str, Any], trained_on: tuple[str, ...] = ()
    ) -> LearnedAudioCodec:
        """ValueError if the weights are not those that codec.json was written for."""
        network = SoundNet(SoundNetConfig(**net))
        load_weights(folder, spec, network)
        return cls(spec, network, trained_on)


def spec_of(net: SoundNet, name: str) -> CodecSpec:
    """Geometry as the network's own shape gives it."""
    return CodecSpec(
        name=name,
        modality="audio",
        rate_hz=RATE_HZ,
        stride_units=HOP,
        channels=net.cfg.channels,
        left_context_units=net.left_context,
        latency_units=(LOOK_AHEAD + OVERLAP) * HOP,
    )
