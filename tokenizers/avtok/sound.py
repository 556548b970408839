"""The learned sound codec: 64 steps/s of 32 channels from log-mel energies, and a decoder with phase."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from avtok.sound_net import HOP, LOOK_AHEAD, OVERLAP, RATE_HZ, SoundNet, SoundNetConfig
from avtok.spec import CodecSpec
from avtok.video import weights_hash

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
        padded_N = F.pad(samples_N, (context + steps * HOP - len(samples_N), 0))
        return ((self.net.encode(padded_N[None]) - self.net.mean_C) / self.net.std_C)[0]

    @torch.inference_mode()
    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """[T, C] -> float32 samples [250 T] in [-1, 1]; the same latents give the same samples."""
        if not len(latents_TC):
            return np.zeros(0, dtype=np.float32)
        return self.net.decode(latents_TC.detach().float().cpu()[None])[0].clamp(-1, 1).numpy()

    def save(self, folder: str | Path) -> None:
        """weights.safetensors in half precision, and codec.json with geometry and the hash of the weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "weights.safetensors"
        save_file({name: w.detach().half().contiguous() for name, w in self.net.state_dict().items()}, path)
        path.chmod(0o644)  # safetensors makes it private, and other users load it
        spec = replace(self.spec, content_hash=weights_hash(path))
        record = {
            "kind": "learned_audio",
            **spec.to_dict(),
            "net": asdict(self.net.cfg),
            "trained_on": list(self.trained_on),
        }
        (folder / "codec.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls, folder: str | Path, spec: CodecSpec, *, net: dict[str, Any], trained_on: tuple[str, ...] = ()
    ) -> LearnedAudioCodec:
        """ValueError if the weights are not those that codec.json was written for."""
        path = Path(folder) / "weights.safetensors"
        if spec.content_hash and weights_hash(path) != spec.content_hash:
            raise ValueError(
                f"{path} does not match the content_hash of its codec.json; save the codec again"
            )
        network = SoundNet(SoundNetConfig(**net))
        network.load_state_dict({name: w.float() for name, w in load_file(path).items()})
        return cls(spec, network.eval().requires_grad_(False), trained_on)


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
