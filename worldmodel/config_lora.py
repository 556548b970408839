"""Adapters instead of all weights."""

from __future__ import annotations

from pydantic import Field

from worldmodel.config_part import Part


class LoraConfig(Part):
    """Small matrices beside frozen linear layers, which alone are trained."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16.0, gt=0, description="they are added with weight alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("attention", "feed_forward"),
        min_length=1,
        description="parts of names of linear layers, such as attention.qkv or modulation",
    )
