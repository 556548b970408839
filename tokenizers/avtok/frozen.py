"""Frozen encoders of transformers as training targets: features on the grid of latent steps and tokens.

A picture encoder sees every frame as a whole, squeezed to the size it was trained on, so that each token of
the clip has features; those of the frames of one latent step are averaged, and its grid of patches is
interpolated to the grid of tokens. Features of a sound are interpolated to the middle of each latent step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avtok.devices import check_device, device_of

# F frames, T latent steps, H W patches or tokens, D width of the features, N samples, K frames of features.

FEATURES_VERSION = "1"  # raise it when the same weights give other features
FRAMES_AT_ONCE = 16
PREPROCESSOR = "preprocessor_config.json"
LEADING = (
    16  # at most so many classes and registers; more tokens beside those of the patches are something else
)
PICTURE_WANTED = "give a vision encoder of single pictures with a token for each patch, such as DINOv2"
SOUND_WANTED = "give an encoder of waveforms or mel spectra, such as Wav2Vec2, HuBERT or Whisper"
# What the code of a model raises, on input that is not its own or where it gives no last_hidden_state.
NOT_ITS_INPUT = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)


class NotAnEncoder(ValueError):
    """The folder holds no encoder that can be used; the message says why."""


@dataclass(frozen=True, eq=False)
class FrozenPicture:
    """A vision encoder with pixel_values: DINOv2, DINOv3, CLIP, SigLIP, ViT and the like, or a hierarchical
    one, such as Swin or ConvNeXt, with the grid that it ends with."""

    model: nn.Module
    content_hash: str
    width: int
    size: tuple[int, int]  # of the pictures that it was trained on
    mean_C: Tensor
    std_C: Tensor

    @torch.inference_mode()
    def encode(self, video_FHWC: np.ndarray, step_frames: Sequence[int], grid: tuple[int, int]) -> Tensor:
        """uint8 RGB frames, how many belong to each latent step -> float32 [T, rows, columns, D]."""
        parts = [
            self._grids(video_FHWC[i : i + FRAMES_AT_ONCE], grid)
            for i in range(0, len(video_FHWC), FRAMES_AT_ONCE)
        ]
        steps = torch.cat(parts).split(list(step_frames))
        return torch.stack([frames_KDHW.mean(0) for frames_KDHW in steps]).permute(0, 2, 3, 1).cpu()

    def _grids(self, video_FHWC: np.ndarray, grid: tuple[int, int]) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(video_FHWC)).to(device_of(self.model))
        pixels = rearrange(pixels.float() / 255, "f h w c -> f c h w")
        pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True).clamp(0, 1)
        normal = (pixels - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        hidden = self.model(pixel_values=normal).last_hidden_state.float()
        if hidden.dim() == 3:  # tokens: classes and registers come first, patches row by row
            rows, columns = self._token_grid(hidden.shape[1])
            hidden = rearrange(hidden[:, -rows * columns :], "f (h w) d -> f d h w", h=rows, w=columns)
        return F.interpolate(hidden, grid, mode="bilinear", antialias=True)

    def _token_grid(self, num_tokens: int) -> tuple[int, int]:
        """Rows and columns of the patches, or of what merging them two by two leaves. NotAnEncoder for a
        number of tokens that is neither."""
        config: Any = self.model.config
        patch = _pair(config.patch_size)
        rows, columns = patches = self.size[0] // patch[0], self.size[1] // patch[1]
        if 0 <= num_tokens - rows * columns <= LEADING:
            return patches
        while rows * columns > num_tokens > 1:
            rows, columns = (rows + 1) // 2, (columns + 1) // 2  # an odd row is padded
            if rows * columns == num_tokens:
                return rows, columns
        raise NotAnEncoder(
            f"{type(self.model).__name__} gives {num_tokens} tokens for a picture of "
            f"{self.size[0]}x{self.size[1]} pixels, which is {patches[0]}x{patches[1]} patches; "
            f"{PICTURE_WANTED}"
        )


@dataclass(frozen=True, eq=False)
class FrozenSound:
    """A sound encoder: Wav2Vec2, HuBERT, WavLM, Whisper's encoder or an audio spectrogram transformer."""

    model: nn.Module
    content_hash: str
    width: int
    extractor: Any

    @torch.inference_mode()
    def encode(self, audio_N: np.ndarray, rate_hz: int, step_s: float, num_steps: int) -> Tensor:
        """float32 mono samples, the length and number of latent steps -> float32 [T, D]."""
        own_hz = self.extractor.sampling_rate
        if own_hz != rate_hz:
            from torchaudio.functional import resample

            audio_N = resample(torch.from_numpy(np.array(audio_N)), rate_hz, own_hz).numpy()
        given = self.extractor(np.asarray(audio_N), sampling_rate=own_hz, return_tensors="pt")
        name = "input_features" if "input_features" in given else "input_values"
        heard = given[name].to(device_of(self.model))
        hidden_KD = self.model(heard).last_hidden_state[0].float().cpu()
        hidden_KD, times_K = self._in_time(hidden_KD)
        wanted_T = (torch.arange(num_steps, dtype=torch.float64) + 0.5) * step_s
        return _interpolated(hidden_KD, times_K, wanted_T)

    def _in_time(self, hidden_KD: Tensor) -> tuple[Tensor, Tensor]:
        """Features with the second in whose middle each stands."""
        config: Any = self.model.config
        rate_hz = self.extractor.sampling_rate
        if hasattr(config, "conv_stride"):  # a stack of convolutions over samples
            hop, reach = 1, 1
            for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
                reach += (kernel - 1) * hop
                hop *= stride
            return hidden_KD, (torch.arange(len(hidden_KD)) * hop + reach / 2) / rate_hz
        if hasattr(config, "time_stride"):  # patches of a spectrogram, all of its times for each band
            bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
            times = (config.max_length - config.patch_size) // config.time_stride + 1
            hidden_KD = rearrange(hidden_KD[-bands * times :], "(b k) d -> b k d", b=bands).mean(0)
            frame_s = 0.01  # of Kaldi's filter banks
            return hidden_KD, (torch.arange(times) * config.time_stride + config.patch_size / 2) * frame_s
        frame_s = 2 * self.extractor.hop_length / rate_hz  # Whisper's second convolution halves the rate
        return hidden_KD, (torch.arange(len(hidden_KD)) + 0.5) * frame_s


def load_frozen(
    folder: str | Path, modality: Literal["video", "audio"], *, device: str = "cpu"
) -> FrozenPicture | FrozenSound:
    """NotAnEncoder when the folder holds no encoder of that modality; ValueError for a missing device."""
    check_device(device)
    try:
        from transformers import AutoFeatureExtractor, AutoModel
        from transformers.utils import logging
    except ImportError:
        raise NotAnEncoder(f"{folder}: needs transformers; pip install 'worldmodel[pretrained]'") from None
    config, settings = (_json(Path(folder) / name) for name in ("config.json", PREPROCESSOR))
    logging.set_verbosity_error()  # it lists the heads of a checkpoint that the encoder leaves out
    logging.disable_progress_bar()
    try:
        whole: Any = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise NotAnEncoder(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    model = _part(whole, modality).eval().requires_grad_(False).to(device)
    kind, digest = config.get("model_type", "?"), hash_of_folder(folder)
    if modality == "audio":
        try:
            extractor = AutoFeatureExtractor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError):  # it knows none for this folder
            extractor = None
        if not hasattr(extractor, "sampling_rate"):
            raise NotAnEncoder(f"{folder}: {kind} is no encoder of sound; give one, or modality: video")
        return _tried_sound(folder, FrozenSound(model, digest, 0, extractor))
    if "image_mean" not in settings or not hasattr(model.config, "num_channels"):
        raise NotAnEncoder(f"{folder}: {kind} is no encoder of pictures; give one, or modality: audio")
    mean_C, std_C = (torch.tensor(settings[key], device=device) for key in ("image_mean", "image_std"))
    encoder = FrozenPicture(model, digest, 0, _size(settings, model.config), mean_C, std_C)
    return _tried_picture(folder, encoder)


def _tried_picture(folder: str | Path, encoder: FrozenPicture) -> FrozenPicture:
    """With the width of what comes out for one black frame. NotAnEncoder now, not at the first clip."""
    height, width = encoder.size
    with _told(folder, encoder, f"takes no picture of {height}x{width} pixels", PICTURE_WANTED):
        out_THWD = encoder.encode(np.zeros((1, height, width, 3), np.uint8), [1], (2, 2))
    return replace(encoder, width=out_THWD.shape[-1])


def _tried_sound(folder: str | Path, encoder: FrozenSound) -> FrozenSound:
    """The same for a second of silence."""
    rate_hz = encoder.extractor.sampling_rate
    lacks = f"gives no features in time for a second of silence at {rate_hz} Hz"
    with _told(folder, encoder, lacks, SOUND_WANTED):
        out_TD = encoder.encode(np.zeros(rate_hz, np.float32), rate_hz, 0.1, 10)
    return replace(encoder, width=out_TD.shape[-1])


@contextmanager
def _told(
    folder: str | Path, encoder: FrozenPicture | FrozenSound, lacks: str, wanted: str
) -> Iterator[None]:
    """NotAnEncoder, with the folder, for whatever a model's code raises on input that is not its own."""
    try:
        yield
    except NotAnEncoder as error:
        raise NotAnEncoder(f"{folder}: {error}") from None
    except NOT_ITS_INPUT as error:
        name = type(encoder.model).__name__
        raise NotAnEncoder(f"{folder}: {name} {lacks} ({_in_brief(error)}); {wanted}") from None


def _in_brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def hash_of_folder(folder: str | Path) -> str:
    """Of the weights and of how pictures and sound are put before them."""
    digest = hashlib.sha256(FEATURES_VERSION.encode())
    names = [path for pattern in ("*.json", "*.safetensors", "*.bin") for path in Path(folder).glob(pattern)]
    for path in sorted(names):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _part(model: Any, modality: str) -> Any:
    """The encoder alone: what models of two modalities, or with a decoder, are made of."""
    if modality == "video":
        return getattr(model, "vision_model", model)
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _size(settings: dict[str, Any], config: Any) -> tuple[int, int]:
    """What the preprocessor ends with, in whole patches."""
    told = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(told, dict):
        told = told.get("shortest_edge") or (told.get("height"), told.get("width"))
    height, width = _pair(told or config.image_size)
    patch = _pair(getattr(config, "patch_size", 1))
    return height // patch[0] * patch[0], width // patch[1] * patch[1]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _interpolated(values_KD: Tensor, times_K: Tensor, wanted_T: Tensor) -> Tensor:
    """Linear between features, and the nearest one before the first and behind the last."""
    place_T = torch.from_numpy(np.interp(wanted_T.numpy(), times_K.numpy(), np.arange(len(times_K))))
    low_T = place_T.floor().long()
    high_T = (low_T + 1).clamp(max=len(values_KD) - 1)
    share_T1 = (place_T - low_T).float()[:, None]
    return values_KD[low_T] * (1 - share_T1) + values_KD[high_T] * share_T1


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotAnEncoder(
            f"{path}: {error.__class__.__name__}; give the folder of a transformers encoder"
        ) from None
    return found if isinstance(found, dict) else {}
