"""Any diffusers or transformers autoencoder as a codec, once `avtok.measure` has written its codec.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from avtok.spec import CodecSpec

# B clips, C channels, T frames or steps, H W pixels or latents, N samples.

CONFIG_FILE, CODEC_FILE = "config.json", "codec.json"


class NotACodec(ValueError):
    """The folder holds no autoencoder that can be used; the message says why."""


@dataclass(frozen=True)
class Autoencoder:
    """encode: [1, C_in, T, H, W] or [1, C_in, N] -> [1, C, T, H, W] or [1, C, T]; decode is its inverse."""

    model: nn.Module
    modality: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    channels_in: int
    rate_hz: int  # 0: any


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """NotACodec when there is no config.json, or its class is not an autoencoder of pictures or sound."""
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise NotACodec(
            f"{path}: {error.__class__.__name__}; give the folder of a diffusers or transformers autoencoder"
        ) from None
    name = config.get("_class_name") or next(iter(config.get("architectures") or []), "")
    model = _load("diffusers" if "_class_name" in config else "transformers", name, folder)
    return _adapted(model.eval().requires_grad_(False), name, path)


def _load(library: str, name: str, folder: str | Path) -> nn.Module:
    try:
        module = import_module(library)
    except ImportError:
        raise NotACodec(
            f"{folder}: needs {library}, which is not installed; pip install 'worldmodel[pretrained]'"
        ) from None
    if not name or not hasattr(module, name):
        raise NotACodec(f"{folder}: this {library} has no class {name!r}; upgrade it or use another codec")
    # Saving memory while loading needs another library; diffusers warns at each load when that is absent.
    sparing = {"low_cpu_mem_usage": False} if library == "diffusers" else {}
    return getattr(module, name).from_pretrained(str(folder), **sparing)


def _adapted(model: Any, name: str, path: Path) -> Autoencoder:
    """One interface over what the libraries call encode and decode."""
    config = model.config
    if name in ("DacModel", "EncodecModel"):  # continuous latents, before the quantiser
        channels = getattr(config, "audio_channels", 1)
        return Autoencoder(model, "audio", model.encoder, model.decoder, channels, config.sampling_rate)
    if name == "AutoencoderOobleck":

        def decode_sound(z_BCT: Tensor) -> Tensor:
            return model.decode(z_BCT).sample

        def encode_sound(x_BCN: Tensor) -> Tensor:
            return _latents(model.encode(x_BCN))

        return Autoencoder(
            model, "audio", encode_sound, decode_sound, config.audio_channels, config.sampling_rate
        )
    if not hasattr(model, "encode") or getattr(config, "in_channels", 3) != 3:
        raise NotACodec(f"{path}: {name} is no autoencoder of RGB pictures or of sound that is known here")
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
    takes_frames = isinstance(first, nn.Conv3d)

    def encode(x_BCTHW: Tensor) -> Tensor:
        if takes_frames:
            return _latents(model.encode(x_BCTHW))
        frames = rearrange(x_BCTHW, "b c t h w -> (b t) c h w")
        return rearrange(_latents(model.encode(frames)), "(b t) c h w -> b c t h w", b=len(x_BCTHW))

    def decode(z_BCTHW: Tensor) -> Tensor:
        if takes_frames:
            return model.decode(z_BCTHW).sample
        frames = rearrange(z_BCTHW, "b c t h w -> (b t) c h w")
        return rearrange(model.decode(frames).sample, "(b t) c h w -> b c t h w", b=len(z_BCTHW))

    return Autoencoder(model, "video", encode, decode, 3, 0)


def _latents(out: Any) -> Tensor:
    """The mean of a posterior, or latents as they are: encoding must repeat itself."""
    if hasattr(out, "latent_dist"):
        return out.latent_dist.mode()
    return out.latent if hasattr(out, "latent") else out.latents


@dataclass(frozen=True, eq=False)
class PretrainedVideoCodec:
    """latent = (autoencoder's - mean of its channel) / one global scale.

    lead: frames of a first latent step that stands alone, as causal video autoencoders have it. The first
    frame is shown that often before the clip, and that step is left out, so that all steps are alike.
    """

    spec: CodecSpec
    autoencoder: Autoencoder
    mean_C: Tensor
    lead: int = 0
    trained_on: tuple[str, ...] = ()

    @torch.inference_mode()
    def encode(self, video_THWC: np.ndarray) -> Tensor:
        """uint8 RGB [T, H, W, 3], T a multiple of the stride -> float32 [T', H', W', C]."""
        pixels_THWC = torch.from_numpy(np.array(video_THWC)).to(self.mean_C.device).float() / 127.5 - 1
        pixels = rearrange(pixels_THWC, "t h w c -> 1 c t h w")
        latents_CTHW = encode_steps(self.autoencoder, pixels, self.lead)[0]
        latents_THWC = rearrange(latents_CTHW, "c t h w -> t h w c").float()
        return ((latents_THWC - self.mean_C) / self.spec.scale).cpu()

    @torch.inference_mode()
    def decode(self, latents_THWC: Tensor) -> np.ndarray:
        """Latents [T', H', W', C] -> uint8 RGB [T, H, W, 3], clamped."""
        raw = latents_THWC.detach().float().to(self.mean_C.device) * self.spec.scale + self.mean_C
        pixels = decode_steps(self.autoencoder, rearrange(raw, "t h w c -> 1 c t h w"), self.lead)[0]
        levels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return rearrange(levels, "c t h w -> t h w c").contiguous().cpu().numpy()


@dataclass(frozen=True, eq=False)
class PretrainedAudioCodec:
    """latent = (autoencoder's - mean of its channel) / one global scale; mono, whatever the model has."""

    spec: CodecSpec
    autoencoder: Autoencoder
    mean_C: Tensor
    trained_on: tuple[str, ...] = ()

    @torch.inference_mode()
    def encode(self, audio_N: np.ndarray | Tensor, *, context_samples: int = 0) -> Tensor:
        """float32 mono, its first `context_samples` being left context -> [T, C]. A rest below one step is
        left out."""
        samples_N = torch.as_tensor(audio_N, dtype=torch.float32)
        hop = self.spec.stride_units
        steps = (len(samples_N) - context_samples) // hop
        if steps <= 0:
            return torch.zeros(0, self.spec.channels)
        skipped = context_samples // hop
        cut_N = samples_N[context_samples - skipped * hop : context_samples + steps * hop]
        latents_CT = encode_sound_steps(self.autoencoder, cut_N.to(self.mean_C.device), hop)[0, :, skipped:]
        return ((rearrange(latents_CT, "c t -> t c").float() - self.mean_C) / self.spec.scale).cpu()

    @torch.inference_mode()
    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """[T, C] -> float32 samples in [-1, 1]."""
        if not len(latents_TC):
            return np.zeros(0, dtype=np.float32)
        raw = latents_TC.detach().float().to(self.mean_C.device) * self.spec.scale + self.mean_C
        samples_N = self.autoencoder.decode(rearrange(raw, "t c -> 1 c t"))[0].float().mean(0)
        length = len(latents_TC) * self.spec.stride_units
        padded_N = torch.nn.functional.pad(samples_N, (0, max(0, length - len(samples_N))))
        return padded_N[:length].clamp(-1, 1).cpu().numpy()


def encode_steps(autoencoder: Autoencoder, pixels_1CTHW: Tensor, lead: int) -> Tensor:
    if not lead:
        return autoencoder.encode(pixels_1CTHW)
    first = repeat(pixels_1CTHW[:, :, 0], "b c h w -> b c t h w", t=lead)
    return autoencoder.encode(torch.cat([first, pixels_1CTHW], dim=2))[:, :, 1:]


def decode_steps(autoencoder: Autoencoder, latents_1CTHW: Tensor, lead: int) -> Tensor:
    if not lead:
        return autoencoder.decode(latents_1CTHW)
    return autoencoder.decode(torch.cat([latents_1CTHW[:, :, :1], latents_1CTHW], dim=2))[:, :, lead:]


def encode_sound_steps(autoencoder: Autoencoder, samples_N: Tensor, hop: int) -> Tensor:
    """[1, C, N // hop]: some models pad a last step of their own."""
    both = repeat(samples_N, "n -> 1 c n", c=autoencoder.channels_in)
    return autoencoder.encode(both)[..., : len(samples_N) // hop]


def load_pretrained(
    folder: str | Path, spec: CodecSpec, *, mean: list[float], lead: int
) -> PretrainedVideoCodec | PretrainedAudioCodec:
    """The codec whose codec.json holds these facts."""
    autoencoder = load_autoencoder(folder)
    if spec.modality == "video":
        return PretrainedVideoCodec(spec, autoencoder, torch.tensor(mean), lead)
    return PretrainedAudioCodec(spec, autoencoder, torch.tensor(mean))
