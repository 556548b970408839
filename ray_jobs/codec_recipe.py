"""What a codec is trained from and how: one YAML, one codec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worldmodel.config import Part

SPEECH = "speech"  # a source: synthetic sentences of a closed grammar


class CodecRecipe(Part):
    """kind `pca` needs no training; `picture` and `sound` are networks of some two million parameters."""

    kind: Literal["pca", "picture", "sound"] = "pca"
    name: str = Field(default="", description="of the codec; empty: the name of its folder")
    sources: tuple[str, ...] = Field(
        default=(), description="embedded worlds by name, `speech`, folders or manifests of clips"
    )
    leave_out: tuple[str, ...] = Field(
        default=(), description="file names kept for evaluation, and cuts of the same recordings"
    )
    fps: int = Field(default=16, gt=0)
    sizes_px: tuple[int, ...] = Field(default=(64,), min_length=1, description="each clip at all of these")
    world_clips: int = Field(default=32, ge=1, description="clips to render of each embedded world")
    sentences: int = Field(default=300, ge=1, description="of the source `speech`")
    seed: int = Field(default=0, ge=0)
    channels: int = Field(default=48, ge=1)
    steps: int = Field(default=2000, ge=1)
    batch: int = Field(default=48, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    noise: float = Field(
        default=0.3, ge=0, description="on latents of half of each batch, share of their rms"
    )
    shares: tuple[float, float, float] = Field(
        default=(0.5, 0.25, 0.25), description="of a batch of sound: speech, recordings, worlds"
    )
    threads: int = Field(default=1, ge=1)
