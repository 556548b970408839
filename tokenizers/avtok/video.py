"""Picture codec without a network: principal components of 4x8x8 patches, one matrix product each way."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from avtok.spec import CodecSpec

# T frames or steps, H W pixels or patches, P values of one patch (4*8*8*3), C components.

PATCH_THW = (4, 8, 8)
_TO_PATCHES = "(t p) (h q) (w r) c -> t h w (p q r c)"
_FROM_PATCHES = "t h w (p q r c) -> (t p) (h q) (w r) c"
_SIDES = {"p": PATCH_THW[0], "q": PATCH_THW[1], "r": PATCH_THW[2]}


def patches_of(video_THWC: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T/4, H/8, W/8, P] in [-1, 1]. ValueError if the patches do not fit."""
    video_THWC = np.asarray(video_THWC)
    if video_THWC.ndim != 4 or video_THWC.shape[-1] != 3 or video_THWC.dtype != np.uint8:
        raise ValueError(
            f"picture must be uint8 [T, H, W, 3], got {video_THWC.dtype} {list(video_THWC.shape)}"
        )
    if len(video_THWC) == 1:  # an image fills one token
        video_THWC = np.repeat(video_THWC, PATCH_THW[0], axis=0)
    if (
        any(size % side for size, side in zip(video_THWC.shape, PATCH_THW, strict=False))
        or not video_THWC.size
    ):
        raise ValueError(
            f"picture [T, H, W] must be multiples of {list(PATCH_THW)}, got {list(video_THWC.shape[:3])}; "
            "crop or resize it"
        )
    return rearrange(video_THWC, _TO_PATCHES, **_SIDES).astype(np.float32) / 127.5 - 1


def pixels_of(patches_THWP: Tensor) -> np.ndarray:
    """float32 [T, H, W, P] in [-1, 1] -> uint8 [4T, 8H, 8W, 3]."""
    pixels = ((patches_THWP + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return rearrange(pixels, _FROM_PATCHES, **_SIDES, c=3).contiguous().numpy()


@dataclass(frozen=True)
class PcaVideoCodec:
    """Latent = projection / sqrt(std of its component) / one global scale; `fit_video_codec` says why.

    trained_on: names of the files that the components were fitted to, and of cuts of the same films, so that
    an evaluation can leave them out.
    """

    spec: CodecSpec
    mean_P: Tensor
    components_CP: Tensor
    std_C: Tensor
    trained_on: tuple[str, ...] = ()

    def encode(self, video_THWC: np.ndarray) -> Tensor:
        """uint8 RGB [T, H, W, 3], T a multiple of 4 or 1 -> float32 [T/4, H/8, W/8, C]."""
        patches_THWP = torch.from_numpy(patches_of(video_THWC)).to(self.mean_P.device)
        return ((patches_THWP - self.mean_P) @ (self.components_CP / self._gain[:, None]).T).cpu()

    def decode(self, latents_THWC: Tensor) -> np.ndarray:
        """Latents [T, H, W, C] -> uint8 RGB [4T, 8H, 8W, 3], clamped."""
        latents_THWC = latents_THWC.detach().float().to(self.mean_P.device)
        return pixels_of((latents_THWC @ (self.components_CP * self._gain[:, None]) + self.mean_P).cpu())

    @property
    def _gain(self) -> Tensor:
        return self.std_C.sqrt() * self.spec.scale

    def save(self, folder: str | Path) -> None:
        """weights.safetensors, and codec.json with the geometry and the hash of the weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "mean": self.mean_P.contiguous(),
            "components": self.components_CP.half().contiguous(),
            "std": self.std_C.contiguous(),
        }
        save_file(tensors, folder / "weights.safetensors")
        (folder / "weights.safetensors").chmod(0o644)  # safetensors makes it private, and other users load it
        spec = replace(self.spec, content_hash=weights_hash(folder / "weights.safetensors"))
        record = {"kind": "pca_video", **spec.to_dict(), "trained_on": list(self.trained_on)}
        (folder / "codec.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, spec: CodecSpec, *, trained_on: tuple[str, ...] = ()) -> PcaVideoCodec:
        """ValueError if the weights are not those that codec.json was written for."""
        path = Path(folder) / "weights.safetensors"
        if spec.content_hash and weights_hash(path) != spec.content_hash:
            raise ValueError(
                f"{path} does not match the content_hash of its codec.json; save the codec again"
            )
        tensors = load_file(path)
        return cls(
            spec, tensors["mean"].float(), tensors["components"].float(), tensors["std"].float(), trained_on
        )


def weights_hash(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
